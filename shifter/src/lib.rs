//! Shifter moves live traffic between two versions of a service in the kernel.
//!
//! `model` and `ring` are pure; `datapath` is the only module with aya,
//! `control` the only one with tonic; `reconcile` is where they meet.

pub mod datapath;
pub mod model;
pub mod reconcile;
pub mod ring;
pub mod store;
