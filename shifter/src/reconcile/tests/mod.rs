//! The reconciler over the fake packet path.

mod apply;
mod rig;
mod split;
