//! Simulated pools for tests and for the tables of docs/judges.md.

use shifter_common::histogram::bucket_of;

use super::{Window, seeded::Random};
use crate::model::signals::PoolSignals;

/// How a simulated pool behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behaviour {
    /// Share of flows that fail.
    pub failures: f64,
    /// Median of the handshake and sigma of its logarithm.
    pub handshake_ns: f64,
    pub sigma: f64,
    /// Added to each handshake.
    pub delay_ns: f64,
}

impl Behaviour {
    /// Signals of so many flows.
    pub fn flows(&self, count: u64, random: &mut Random) -> PoolSignals {
        let mut signals = PoolSignals {
            attempts: count,
            ..PoolSignals::default()
        };
        for _ in 0..count {
            if random.uniform() < self.failures {
                signals.resets_before_data += 1;
            }
            let ns = self.handshake_ns * (self.sigma * random.normal()).exp() + self.delay_ns;
            signals.answered += 1;
            signals.handshake.0[bucket_of(ns as u64)] += 1;
        }
        signals
    }
}

/// A window of `flows` flows, each the candidate's with a chance of `weight`.
pub(super) fn window(
    live: &Behaviour,
    candidate: &Behaviour,
    flows: u64,
    weight: f64,
    random: &mut Random,
) -> Window {
    let to_candidate = (0..flows).filter(|_| random.uniform() < weight).count() as u64;
    Window {
        live: live.flows(flows - to_candidate, random),
        candidate: candidate.flows(to_candidate, random),
    }
}
