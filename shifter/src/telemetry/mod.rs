//! Metrics in Prometheus' text format, and the agent's health, over HTTP.
//!
//! Every label comes from what is configured or from a fixed list, so the
//! number of series is bounded by services and backends.

mod checks;
mod cohorts;
mod cuts;
mod http;
mod interfaces;
mod metrics;
mod receipts;
mod rollouts;
mod signals;
#[cfg(test)]
mod tests;
mod text;

use shifter_common::abi::stats::Verdict;

pub use http::{TelemetryError, bind, serve};
pub use metrics::render;
pub use receipts::Receipts;

/// Whether packets that ended with this verdict were dropped.
pub const fn is_drop(verdict: u32) -> bool {
    verdict >= Verdict::TableFull as u32 && verdict <= Verdict::RewriteFailed as u32
}
