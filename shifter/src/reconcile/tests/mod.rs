//! The reconciler over the fake packet path.

mod apply;
mod breaker;
mod chaos;
mod cohorts;
mod cut;
mod delete;
mod faults;
mod free;
mod gone;
mod health;
mod observe;
mod outward;
mod refresh;
mod restart;
mod rig;
mod rollout_waits;
mod rollouts;
mod split;
mod told;
