//! What a user can want: services, pools, backends, weights. Pure.

pub mod breaker;
pub mod cohort;
pub mod cohort_file;
pub mod config;
pub mod cut;
pub mod duration;
pub mod file;
pub(crate) mod file_table;
pub mod gates;
pub mod health;
mod health_file;
mod health_read;
pub mod json;
pub mod service;
pub mod signals;
pub mod text;
pub mod tree;
pub mod validate;
pub mod weight;
pub mod wilson;

pub use cohort::{CohortSpec, Prefix};
pub use cut::CutRate;
pub use health::{HealthSpec, OnDown, OnPoolDown};
pub use service::{
    Affinity, BackendSpec, BackendState, Mode, PoolName, Protocol, Seed, ServiceSpec, SplitMethod,
    Vip,
};
pub use weight::Weight;
