//! How pools do, as metrics: counters and histograms of few buckets.

use shifter_common::histogram::lower_bound_ns;

use super::text::{
    Kind::{Counter, Gauge},
    Page,
};
use crate::{
    model::{
        PoolName,
        signals::{Histogram, PoolSignals},
    },
    reconcile::controller::ServiceView,
};

/// Bounds of handshakes and first bytes: 131 µs to 2.1 s, each twice the one
/// before. All lie on the edges of the kernel's buckets, so that nothing is guessed.
const WAIT_BOUNDS: [u64; 15] = powers::<15>(17, 1);
/// Bounds of durations: 1 ms to 17 s, each four times the one before.
const DURATION_BOUNDS: [u64; 8] = powers::<8>(20, 2);

const fn powers<const N: usize>(first: u32, step: u32) -> [u64; N] {
    let mut bounds = [0; N];
    let mut i = 0;
    while i < N {
        bounds[i] = 1 << (first + step * i as u32);
        i += 1;
    }
    bounds
}

type Count = fn(&PoolSignals) -> u64;
type Times = fn(&PoolSignals) -> &Histogram;

const COUNTERS: [(&str, &str, Count); 4] = [
    (
        "shifter_pool_attempts_total",
        "TCP flows that were chosen.",
        |s| s.attempts,
    ),
    (
        "shifter_pool_answered_total",
        "Handshakes answered with a SYN-ACK.",
        |s| s.answered,
    ),
    (
        "shifter_pool_client_resets_total",
        "Connections that the client reset.",
        |s| s.client_resets,
    ),
    (
        "shifter_pool_ended_total",
        "Connections that came to an end.",
        |s| s.ended,
    ),
];

const FAILURES: [(&str, Count); 4] = [
    ("refused", |s| s.refused),
    ("unanswered", |s| s.unanswered),
    ("reset_before_data", |s| s.resets_before_data),
    ("reset_after_data", |s| s.resets_after_data),
];

const AGAIN: [(&str, Count); 3] = [
    ("syn", |s| s.syn_retransmits),
    ("client", |s| s.client_retransmits),
    ("backend", |s| s.backend_retransmits),
];

const TIMES: [(&str, &str, &[u64], Times); 3] = [
    (
        "shifter_pool_handshake_seconds",
        "From the SYN to the SYN-ACK as seen on this host; the sum is an estimate.",
        &WAIT_BOUNDS,
        |s| &s.handshake,
    ),
    (
        "shifter_pool_first_byte_seconds",
        "From the client's first data to the backend's; the sum is an estimate.",
        &WAIT_BOUNDS,
        |s| &s.first_byte,
    ),
    (
        "shifter_pool_duration_seconds",
        "From the SYN to the end of a connection; the sum is an estimate.",
        &DURATION_BOUNDS,
        |s| &s.duration,
    ),
];

/// Calls `each` with service, pool and signals.
fn each_pool(services: &[ServiceView], mut each: impl FnMut(&str, &str, &PoolSignals)) {
    for view in services {
        for pool in [PoolName::Blue, PoolName::Green] {
            let word = pool.to_string();
            each(&view.spec.name, &word, &view.signals[pool.index()]);
        }
    }
}

/// All families of signals and breakers.
pub(super) fn families(page: &mut Page, services: &[ServiceView]) {
    for (name, help, count) in COUNTERS {
        let mut family = page.family(name, Counter, help);
        each_pool(services, |service, pool, signals| {
            family.sample(&[("service", service), ("pool", pool)], count(signals));
        });
    }
    let mut family = page.family(
        "shifter_pool_failures_total",
        Counter,
        "Flows that failed for their users, by how.",
    );
    each_pool(services, |service, pool, signals| {
        for (kind, count) in FAILURES {
            let labels = [("service", service), ("pool", pool), ("kind", kind)];
            family.sample(&labels, count(signals));
        }
    });
    let mut family = page.family(
        "shifter_pool_retransmits_total",
        Counter,
        "Segments sent again: SYNs, and data by side, estimated from watched flows.",
    );
    each_pool(services, |service, pool, signals| {
        for (side, count) in AGAIN {
            let labels = [("service", service), ("pool", pool), ("side", side)];
            family.sample(&labels, count(signals));
        }
    });
    for (name, help, bounds, times) in TIMES {
        page.histograms(name, help);
        // With thousands of services the page would be mostly empty buckets.
        each_pool(services, |service, pool, signals| {
            if signals.attempts == 0 {
                return;
            }
            let (below, count, sum_s) = shape(times(signals), bounds);
            page.histogram_of(
                name,
                &[("service", service), ("pool", pool)],
                &below,
                count,
                sum_s,
            );
        });
    }
    breakers(page, services);
}

fn breakers(page: &mut Page, services: &[ServiceView]) {
    let mut gauge = |name, help, value: fn(&ServiceView) -> Option<f64>| {
        let mut family = page.family(name, Gauge, help);
        for view in services {
            if let Some(value) = value(view) {
                family.sample(&[("service", &view.spec.name)], value);
            }
        }
    };
    gauge(
        "shifter_breaker_tripped",
        "1 where the breaker took the candidate's new flows and nobody gave it any since; absent without a breaker.",
        |view| {
            let breaker = view.breaker.as_ref()?;
            Some(f64::from(u8::from(breaker.tripped_ago_s.is_some())))
        },
    );
    gauge(
        "shifter_breaker_attempts",
        "Attempts on the candidate in the breaker's window.",
        |view| Some(view.breaker.as_ref()?.attempts as f64),
    );
    gauge(
        "shifter_breaker_failures",
        "Failures of the candidate in the breaker's window.",
        |view| Some(view.breaker.as_ref()?.failures as f64),
    );
}

/// Counts below each bound, of all, and the sum in seconds by the middles of buckets.
fn shape(histogram: &Histogram, bounds: &[u64]) -> (Vec<(f64, u64)>, u64, f64) {
    let mut below = vec![0; bounds.len()];
    let mut sum_ns = 0.0;
    for (bucket, &count) in histogram.0.iter().enumerate().filter(|(_, c)| **c > 0) {
        let (low, end) = (lower_bound_ns(bucket), lower_bound_ns(bucket + 1));
        sum_ns += count as f64 * (low + end) as f64 / 2.0;
        for (bound, below) in bounds.iter().zip(&mut below) {
            if end <= *bound {
                *below += count;
            }
        }
    }
    let seconds = bounds.iter().map(|ns| *ns as f64 / 1e9);
    (
        seconds.zip(below).collect(),
        histogram.count(),
        sum_ns / 1e9,
    )
}

#[cfg(test)]
mod tests {
    use shifter_common::histogram::{BUCKETS, bucket_of};

    use super::*;

    #[test]
    fn bounds_are_edges_of_buckets() {
        for bound in WAIT_BOUNDS.iter().chain(&DURATION_BOUNDS) {
            assert!(
                (0..BUCKETS).any(|bucket| lower_bound_ns(bucket) == *bound),
                "{bound}"
            );
        }
    }

    #[test]
    fn a_time_is_counted_under_every_bound_above_it() {
        let mut histogram = Histogram::default();
        histogram.0[bucket_of(3_000_000)] = 4;
        let (below, count, sum_s) = shape(&histogram, &WAIT_BOUNDS);
        assert_eq!(count, 4);
        assert!((sum_s - 0.012).abs() < 0.012 / 8.0, "{sum_s}");
        for (bound, count) in below {
            assert_eq!(count, if bound > 0.003 { 4 } else { 0 }, "{bound}");
        }
    }
}
