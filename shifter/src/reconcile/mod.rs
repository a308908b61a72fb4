//! The one place where model, store and datapath meet.

pub mod controller;
pub mod facts;

pub use controller::Controller;
pub use facts::HostFacts;
