//! The one place where model, store and datapath meet.

mod apply;
mod asked;
mod backends;
mod breaker;
mod changes;
pub mod clock;
mod cohorts;
mod control;
pub mod controller;
mod cut;
mod cutter;
mod delete;
mod drain;
pub mod dropped;
mod entry;
mod events;
mod explain;
pub mod facts;
mod file_load;
mod free;
pub mod freeze;
mod gone;
mod health;
mod ids;
mod maintain;
mod observe;
mod origin;
mod plan;
mod reconciler;
mod recover;
pub mod rollouts;
mod shed;
mod split;
mod standing;
mod start;
mod told;
mod view;
mod write;

pub use clock::{Clock, SystemClock};
pub use controller::Controller;
pub use facts::HostFacts;
pub use reconciler::{Reconciler, Settings, StartError};

#[cfg(test)]
mod tests;
