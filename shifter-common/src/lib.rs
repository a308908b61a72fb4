//! What the kernel and the host share, without dependencies and without std.
//!
//! `abi` says what lies in maps, `packet` reads and rewrites headers through a
//! small seam, `known` tells whose a packet may be, `hash` and `select` choose, `tcp_state` says what a segment
//! does to a flow. The eBPF crate and the host run the same code.
#![no_std]

pub mod abi;
pub mod breaker;
pub mod hash;
pub mod histogram;
pub mod known;
pub mod life;
pub mod packet;
pub mod select;
pub mod table;
pub mod tcp_state;
