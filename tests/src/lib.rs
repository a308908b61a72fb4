//! Namespaces, traffic and statistics for the scenarios in `tests/` and for the demo.
//!
//! Everything a scenario makes (namespaces, processes, mounts, directories) is
//! an object that removes it when dropped; what a killed run left behind is
//! swept at the next start.

pub mod agent;
pub mod bench;
pub mod blocker;
pub mod certificates;
pub mod command;
pub mod evidence;
pub mod mover;
pub mod need;
pub mod next;
pub mod packet;
pub mod programs;
pub mod prometheus;
pub mod records;
pub mod rpc;
pub mod scene;
pub mod standin;
pub mod stat;
pub mod topology;
pub mod traffic;
