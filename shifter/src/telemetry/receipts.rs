//! What the API's writes took and how they ended.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::reconcile::controller::Receipt;

/// Upper bounds of the histograms' buckets, in ns.
const BOUNDS_NS: [u64; 14] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Counts writes by verb and result, and their times. Shared by API and metrics.
#[derive(Debug, Default)]
pub struct Receipts {
    programmed: Histogram,
    total: Histogram,
    /// By (verb, result); results are "ok", "unchanged" and the reasons of refusals.
    writes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last is what lies above all bounds.
    buckets: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
pub(super) struct Times {
    /// `(upper bound in s, observations at or below it)`.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum_s: f64,
}

impl Receipts {
    /// Counts a write that was carried out.
    pub fn record(&self, verb: &'static str, receipt: &Receipt) {
        if receipt.unchanged {
            return self.count(verb, "unchanged");
        }
        self.count(verb, "ok");
        self.programmed.add(receipt.programmed_ns);
        self.total.add(receipt.total_ns);
    }

    /// Counts a write that was refused for one of the API's reasons.
    pub fn record_refusal(&self, verb: &'static str, reason: &'static str) {
        self.count(verb, reason);
    }

    fn count(&self, verb: &'static str, result: &'static str) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        *writes.entry((verb, result)).or_default() += 1;
    }

    pub(super) fn programmed(&self) -> Times {
        self.programmed.read()
    }

    pub(super) fn total(&self) -> Times {
        self.total.read()
    }

    /// `(verb, result, count)`.
    pub fn writes(&self) -> Vec<(&'static str, &'static str, u64)> {
        let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes
            .iter()
            .map(|((verb, result), n)| (*verb, *result, *n))
            .collect()
    }
}

impl Histogram {
    fn add(&self, ns: u64) {
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn read(&self) -> Times {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_NS.len());
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if let Some(bound) = BOUNDS_NS.get(index) {
                buckets.push((*bound as f64 / 1e9, count));
            }
        }
        let sum_s = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        Times {
            buckets,
            count,
            sum_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_cumulative_buckets_and_unchanged_writes_into_none() {
        let receipts = Receipts::default();
        for ns in [10_000, 50_000, 50_001, 20_000_000_000] {
            let receipt = Receipt {
                programmed_ns: ns,
                total_ns: ns,
                ..Receipt::default()
            };
            receipts.record("set_weight", &receipt);
        }
        receipts.record(
            "apply",
            &Receipt {
                unchanged: true,
                ..Receipt::default()
            },
        );
        receipts.record_refusal("apply", "INVALID");
        let times = receipts.programmed();
        assert_eq!(times.buckets[0], (50e-6, 2));
        assert_eq!(times.buckets[1], (100e-6, 3));
        assert_eq!(times.buckets.last(), Some(&(10.0, 3)));
        assert_eq!(times.count, 4);
        assert_eq!(
            receipts.writes(),
            [
                ("apply", "INVALID", 1),
                ("apply", "unchanged", 1),
                ("set_weight", "ok", 4)
            ]
        );
    }
}
