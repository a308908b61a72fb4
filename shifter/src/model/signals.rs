//! What the kernel sees of how a pool does, as sums that only grow, and the
//! difference of two readings.

use shifter_common::{
    abi::signals::{BACKEND_RETRANSMITS, CLIENT_RETRANSMITS, SIGNAL_COUNTERS},
    histogram::{BUCKETS, lower_bound_ns},
};

/// Counts by bucket of `shifter_common::histogram`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram(pub Box<[u64; BUCKETS]>);

impl Default for Histogram {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Histogram {
    /// Number of times counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The time in ns below which a share `q` in `[0, 1]` lies, by linear
    /// interpolation within its bucket; `None` without data.
    pub fn quantile_ns(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let wanted = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0u64;
        for (bucket, &here) in self.0.iter().enumerate() {
            if here > 0 && (below + here) as f64 >= wanted {
                let (low, next) = (lower_bound_ns(bucket), lower_bound_ns(bucket + 1));
                let within = (wanted - below as f64) / here as f64;
                return Some(low as f64 + within.clamp(0.0, 1.0) * (next - low) as f64);
            }
            below += here;
        }
        None
    }

    /// What was counted since `earlier`; zero where that is not an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.clone();
        for (count, before) in counts.0.iter_mut().zip(earlier.0.iter()) {
            *count = count.saturating_sub(*before);
        }
        counts
    }
}

/// A count of one flow in `before` as one of one flow in `now`: what it stands for stays,
/// rounded up, because a sum never falls.
const fn rescaled(count: u64, before: u32, now: u32) -> u64 {
    match before >= now {
        true => count.saturating_mul((before / now) as u64),
        false => count.div_ceil((now / before) as u64),
    }
}

/// Rescales what was counted of watched flows, on every CPU: the sum, which the first CPU
/// then has, so that it is rounded once.
pub fn rescale(of_cpus: &mut [[u64; SIGNAL_COUNTERS]], before: u32, now: u32) {
    for counter in [CLIENT_RETRANSMITS, BACKEND_RETRANSMITS] {
        let sum = of_cpus.iter().map(|counts| counts[counter]).sum();
        of_cpus.iter_mut().for_each(|counts| counts[counter] = 0);
        if let Some(first) = of_cpus.first_mut() {
            first[counter] = rescaled(sum, before, now);
        }
    }
}

/// Signals of one pool of one service, cumulative. Adopted flows and flows
/// of UDP are in none of them but `bytes`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PoolSignals {
    /// TCP flows that were chosen, by weight or by a cohort.
    pub attempts: u64,
    /// Of these, handshakes that the backend answered with a SYN-ACK.
    pub answered: u64,
    /// SYNs that were sent again before any answer.
    pub syn_retransmits: u64,
    /// Handshakes that ended, by time or by giving way, without an answer.
    pub unanswered: u64,
    /// SYNs that the backend answered with a RST.
    pub refused: u64,
    /// Connections that the backend reset before it had sent data.
    pub resets_before_data: u64,
    /// And after.
    pub resets_after_data: u64,
    /// Connections that the client reset.
    pub client_resets: u64,
    /// Segments with data that a client sent again.
    pub client_retransmits: u64,
    /// And that a backend did.
    pub backend_retransmits: u64,
    /// Connections that came to an end, by FIN both ways or RST.
    pub ended: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// From the SYN to the SYN-ACK as seen here. Of sampled flows.
    pub handshake: Histogram,
    /// From the client's first data to the backend's. Of sampled flows.
    pub first_byte: Histogram,
    /// From the SYN to the end. Of sampled flows.
    pub duration: Histogram,
}

impl PoolSignals {
    /// Flows that failed for their users: refused, never answered, or reset by the
    /// backend.
    pub fn failures(&self) -> u64 {
        self.unanswered + self.refused + self.resets_before_data + self.resets_after_data
    }

    /// What was counted since `earlier`; zero where that is not an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = u64::saturating_sub;
        Self {
            attempts: less(self.attempts, earlier.attempts),
            answered: less(self.answered, earlier.answered),
            syn_retransmits: less(self.syn_retransmits, earlier.syn_retransmits),
            unanswered: less(self.unanswered, earlier.unanswered),
            refused: less(self.refused, earlier.refused),
            resets_before_data: less(self.resets_before_data, earlier.resets_before_data),
            resets_after_data: less(self.resets_after_data, earlier.resets_after_data),
            client_resets: less(self.client_resets, earlier.client_resets),
            client_retransmits: less(self.client_retransmits, earlier.client_retransmits),
            backend_retransmits: less(self.backend_retransmits, earlier.backend_retransmits),
            ended: less(self.ended, earlier.ended),
            bytes: less(self.bytes, earlier.bytes),
            handshake: self.handshake.since(&earlier.handshake),
            first_byte: self.first_byte.since(&earlier.first_byte),
            duration: self.duration.since(&earlier.duration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_common::histogram::bucket_of;

    fn of(times_ns: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for ns in times_ns {
            histogram.0[bucket_of(*ns)] += 1;
        }
        histogram
    }

    #[test]
    fn quantiles_lie_within_an_eighth() {
        let times: Vec<u64> = (1..=1_000).map(|i| i * 10_000).collect();
        let histogram = of(&times);
        assert_eq!(histogram.count(), 1_000);
        for (q, ns) in [(0.5, 5e6), (0.99, 9.9e6), (1.0, 1e7)] {
            let got = histogram.quantile_ns(q).unwrap();
            assert!((got - ns).abs() < ns / 8.0, "{q}: {got}");
        }
        assert_eq!(of(&[]).quantile_ns(0.5), None);
    }

    #[test]
    fn a_difference_is_what_came_in_between() {
        let earlier = PoolSignals {
            attempts: 5,
            refused: 1,
            handshake: of(&[1_000_000]),
            ..PoolSignals::default()
        };
        let later = PoolSignals {
            attempts: 9,
            refused: 3,
            handshake: of(&[1_000_000, 2_000_000]),
            ..PoolSignals::default()
        };
        let between = later.since(&earlier);
        assert_eq!((between.attempts, between.failures()), (4, 2));
        assert_eq!(between.handshake, of(&[2_000_000]));
    }
}
