//! Shifter moves live traffic between two versions of a service in the kernel.
//!
//! `model`, `ring`, `rollout` and `judge` are pure; `datapath` is the only module with aya,
//! `control` serves gRPC, `telemetry` metrics, `cli` is a gRPC client;
//! `reconcile` is where they meet.

pub mod agent;
pub mod cli;
pub mod control;
pub mod datapath;
pub mod doctor;
pub mod fault;
pub mod gate;
pub mod health;
pub mod judge;
pub mod model;
pub mod network;
pub mod proto;
pub mod reconcile;
pub mod ring;
pub mod rollout;
pub mod store;
pub mod telemetry;
pub mod tls;
