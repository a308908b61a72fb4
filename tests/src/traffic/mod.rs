//! Clients and servers that notice whatever goes wrong with a flow.

pub mod bulk;
pub mod echo;
pub mod flood;
pub mod frame;
pub mod hold;
pub mod honest;
pub mod poll;
pub mod requests;
pub mod resetting;
pub mod server;
pub mod slow;
pub mod storm;
pub mod syn;
pub mod tunnel;
