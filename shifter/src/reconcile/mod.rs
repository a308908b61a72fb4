//! The one place where model, store and datapath meet.

pub mod controller;

pub use controller::Controller;
