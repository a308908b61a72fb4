//! What a user can want: services, pools, backends, weights. Pure.

pub mod service;
pub mod weight;

pub use service::{
    Affinity, BackendSpec, BackendState, Mode, PoolName, Protocol, Seed, ServiceSpec, Vip,
};
pub use weight::Weight;
