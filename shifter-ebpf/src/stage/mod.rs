//! The stages of the packet path, in the order a packet meets them.

pub mod classify;
pub mod count;
pub mod fast;
pub mod forward;
pub mod reply;
pub mod route;
pub mod select;
pub mod send;
pub mod signals;
pub mod socket;
pub mod track;
