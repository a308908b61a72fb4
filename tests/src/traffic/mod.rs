//! Clients and servers that notice whatever goes wrong with a flow.

pub mod bulk;
pub mod echo;
pub mod frame;
pub mod poll;
pub mod requests;
pub mod server;
pub mod storm;
pub mod syn;
