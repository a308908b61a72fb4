//! The reconciler over the fake packet path.

mod apply;
mod chaos;
mod delete;
mod observe;
mod restart;
mod rig;
mod split;
