//! The messages of `shifter.v1` as both ends of the API use them.

pub mod error;
pub mod word;

#[allow(clippy::all, missing_docs)]
mod v1 {
    tonic::include_proto!("shifter.v1");
}

pub use v1::*;

/// The encoded file descriptor set, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Longest message either end takes, in bytes: every service of a full
/// installation with its backends fits.
pub const MESSAGE_BYTES: usize = 256 * 1024 * 1024;
