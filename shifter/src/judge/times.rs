//! The sequential test on times: the candidate's are later than the live pool's by
//! more than the least effect.
//!
//! # What is tested
//!
//! The null hypothesis is that the candidate's times `C` are stochastically not
//! later than `L + m(L)`, where `L` are the live pool's over the same time and
//! `m(x)` is the larger of a time and a share of `x`. Then for every bound `x`
//! `P(C ≥ x + m(x)) ≤ P(L ≥ x)`, and any such pair of shares may be bet on by
//! [`super::evidence`].
//!
//! Times come in buckets. The live pool's are counted from the lower bound of a
//! bucket `i`, the candidate's from the least lower bound that is at or above
//! `x + m(x)`: so the inequality holds for the counts too, exactly, whatever lies
//! within a bucket. Rounding up costs power only: a delay of the least effect and
//! two buckets (each at most an eighth of its bound) is always found.
//!
//! Which bounds: where the live pool's earlier windows have their median, 90th and
//! 99th percentile. They are chosen before the window that they judge.

use serde::{Deserialize, Serialize};
use shifter_common::histogram::{BUCKETS, lower_bound_ns};

use super::{
    MinEffect,
    evidence::{Bet, Evidence, Exact, Null, Pair},
    sparse,
};
use crate::model::signals::Histogram;

const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
/// The share above its bound is this many times as large, in odds.
const WORSE: [Bet; 4] = [
    Bet::Odds(3.0),
    Bet::Odds(20.0),
    Bet::Odds(400.0),
    Bet::AsBefore,
];
/// Of these it is to be shown that not more lie above.
const SHOWN: [f64; 2] = [0.5, 0.9];
const NOT_WORSE: [Bet; 3] = [Bet::Odds(0.5), Bet::Odds(0.05), Bet::AsBefore];
/// Fewer earlier times say nothing of where a quantile lies.
const LEAST_PAST: u64 = 20;
/// The past is halved above this, so that it follows what changes.
const MOST_PAST: u64 = 20_000;

/// What a test on times has seen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Times {
    #[serde(with = "sparse::histogram")]
    pub live: Histogram,
    #[serde(with = "sparse::histogram")]
    pub candidate: Histogram,
    /// The live pool's, older ones with less weight.
    #[serde(with = "sparse::histogram")]
    past: Histogram,
    worse: Vec<Evidence>,
    shown: Vec<Evidence>,
    /// The largest mean of `worse` so far.
    peak: Exact,
}

impl Times {
    pub fn new() -> Self {
        Self {
            live: Histogram::default(),
            candidate: Histogram::default(),
            past: Histogram::default(),
            worse: vec![Evidence::new(WORSE.len()); QUANTILES.len()],
            shown: vec![Evidence::new(NOT_WORSE.len()); SHOWN.len()],
            peak: Exact(1.0),
        }
    }

    pub fn fits(&self) -> bool {
        self.worse.len() == QUANTILES.len()
            && self.shown.len() == SHOWN.len()
            && self.worse.iter().all(|it| it.fits(WORSE.len()))
            && self.shown.iter().all(|it| it.fits(NOT_WORSE.len()))
    }

    /// Takes in a window.
    pub fn add(&mut self, live: &Histogram, candidate: &Histogram, least: &MinEffect) {
        if self.past.count() >= LEAST_PAST {
            self.look(live, candidate, least);
        }
        add(&mut self.live, live);
        add(&mut self.candidate, candidate);
        add(&mut self.past, live);
        if self.past.count() > MOST_PAST {
            for count in self.past.0.iter_mut() {
                *count /= 2;
            }
        }
    }

    fn look(&mut self, live: &Histogram, candidate: &Histogram, least: &MinEffect) {
        let all = self.past.count();
        for (evidence, q) in self.worse.iter_mut().zip(QUANTILES) {
            // The least bucket from which on at most a share 1 - q lies.
            let most = (1.0 - q) * all as f64;
            let from = (1..BUCKETS).find(|i| above(&self.past, *i) as f64 <= most);
            let pair = from.and_then(|i| Some((i, late_from(i, least)?)));
            if let Some((i, j)) = pair {
                let past = (all, above(&self.past, i));
                let counts = pair_of(live, i, candidate, j);
                evidence.add_knowing(counts, Null::NotWorse, past, &WORSE);
            }
        }
        for (evidence, q) in self.shown.iter_mut().zip(SHOWN) {
            // The last bucket from which on at least a share 1 - q lies.
            let least_above = (1.0 - q) * all as f64;
            let from = (0..BUCKETS)
                .rev()
                .find(|i| above(&self.past, *i) as f64 >= least_above);
            if let Some(i) = from {
                let past = (all, above(&self.past, i));
                let counts = pair_of(live, i, candidate, on_time_up_to(i, least));
                evidence.add_knowing(counts, Null::Worse, past, &NOT_WORSE);
            }
        }
        let sum: f64 = self.worse.iter().map(Evidence::whole).sum();
        self.peak.0 = self.peak.0.max(sum / self.worse.len() as f64);
    }

    /// The largest evidence so far that the candidate is later.
    pub fn peak(&self) -> f64 {
        self.peak.0
    }

    /// The evidence that it is not, at each bound that is to be shown: the least.
    pub fn shown(&self) -> f64 {
        let peaks = self.shown.iter().map(Evidence::peak);
        peaks.fold(f64::INFINITY, f64::min)
    }
}

fn add(sum: &mut Histogram, more: &Histogram) {
    for (count, here) in sum.0.iter_mut().zip(more.0.iter()) {
        *count = count.saturating_add(*here);
    }
}

/// Times from a bucket on.
fn above(histogram: &Histogram, from: usize) -> u64 {
    histogram.0[from.min(BUCKETS)..].iter().sum()
}

fn pair_of(live: &Histogram, i: usize, candidate: &Histogram, j: usize) -> Pair {
    Pair {
        live: live.count(),
        live_hits: above(live, i),
        candidate: candidate.count(),
        candidate_hits: above(candidate, j),
    }
}

/// `x + m(x)` of the lower bound of a bucket, in ns.
fn allowed_ns(bucket: usize, least: &MinEffect) -> f64 {
    let x = lower_bound_ns(bucket) as f64;
    x + (least.time.as_nanos() as f64).max(x * least.time_relative.share())
}

/// The least bucket that lies wholly at or above what a bucket's bound allows.
fn late_from(bucket: usize, least: &MinEffect) -> Option<usize> {
    let allowed = allowed_ns(bucket, least);
    (bucket..BUCKETS).find(|j| lower_bound_ns(*j) as f64 >= allowed)
}

/// The last bucket whose bound is still allowed, but at least the next one.
fn on_time_up_to(bucket: usize, least: &MinEffect) -> usize {
    let allowed = allowed_ns(bucket, least);
    let last = (bucket..BUCKETS)
        .rev()
        .find(|j| lower_bound_ns(*j) as f64 <= allowed);
    last.unwrap_or(bucket).max(bucket + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::judge::Ratio;

    #[test]
    fn a_late_time_lies_wholly_above_what_is_allowed() {
        for (time, relative) in [(0, 0), (1_000, 10), (1_000, 0), (0, 10), (250, 50)] {
            let least = MinEffect {
                time: Duration::from_micros(time),
                time_relative: Ratio::percent(relative),
                ..MinEffect::default()
            };
            for i in 1..BUCKETS {
                let allowed = allowed_ns(i, &least);
                if let Some(j) = late_from(i, &least) {
                    assert!(lower_bound_ns(j) as f64 >= allowed);
                    assert!((lower_bound_ns(j - 1) as f64) < allowed || j == i);
                }
                let on_time = on_time_up_to(i, &least);
                assert!(on_time == i + 1 || lower_bound_ns(on_time) as f64 <= allowed);
            }
        }
    }
}
