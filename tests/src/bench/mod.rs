//! `cargo xtask bench`: what packets, traffic and writes cost, beside the
//! usual ways of doing the same. docs/bench.md says how to read it.

pub mod control;
pub mod migration;
pub mod object;
pub mod packets;
pub mod report;
pub mod start;
pub mod stat;
pub mod traffic;
