//! The Mann-Whitney judge: ranks of times in buckets, the shift between the pools
//! with its interval, and how large the effect is.
//!
//! H. B. Mann and D. R. Whitney, "On a test of whether one of two random variables
//! is stochastically larger than the other", 1947, with the correction for ties;
//! the shift and its interval as J. L. Hodges and E. L. Lehmann, "Estimates of
//! location based on rank tests", 1963. Classified as Kayenta does: *High* if the
//! interval lies wholly above a share (`tolerance`) of the shift, *Low* if wholly
//! below minus that.
//!
//! It is a test for one look: asked again and again it would alarm more often than
//! its confidence says. So it is asked at the end of an analysis.

use shifter_common::histogram::{BUCKETS, lower_bound_ns};

use super::{Direction, Effect, Judgement, MannWhitney, Outcome, normal, words::Word as _};
use crate::model::{duration::short, signals::Histogram};

/// What the test found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Found {
    /// Pairs in which the candidate's is the larger, ties half.
    pub u: f64,
    /// Two-sided, by the normal approximation with correction for continuity.
    pub p: f64,
    /// Hodges-Lehmann estimate of candidate less live, in ns, and its interval.
    pub shift_ns: f64,
    pub low_ns: f64,
    pub high_ns: f64,
    pub mean_ratio: f64,
    pub cles: f64,
}

/// A time stands for its bucket by the middle of it.
fn middle_ns(bucket: usize) -> f64 {
    0.5 * (lower_bound_ns(bucket) + lower_bound_ns(bucket + 1)) as f64
}

fn mean_ns(times: &Histogram) -> f64 {
    let sum = times.0.iter().enumerate();
    let sum: f64 = sum.map(|(b, n)| *n as f64 * middle_ns(b)).sum();
    sum / times.count() as f64
}

/// `None` if a pool has no times or all times are in one bucket.
pub(super) fn compare(live: &Histogram, candidate: &Histogram, confidence: f64) -> Option<Found> {
    let (m, n) = (live.count() as f64, candidate.count() as f64);
    if m == 0.0 || n == 0.0 {
        return None;
    }
    let (mut u, mut below, mut ties) = (0.0, 0.0, 0.0);
    for bucket in 0..BUCKETS {
        let (l, c) = (live.0[bucket] as f64, candidate.0[bucket] as f64);
        u += c * (below + 0.5 * l);
        below += l;
        ties += (l + c).powi(3) - (l + c);
    }
    let all = m + n;
    let variance = m * n / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        return None;
    }
    let sigma = variance.sqrt();
    let off = u - 0.5 * m * n;
    let z = (off.abs() - 0.5).max(0.0) / sigma;
    let width = normal::quantile_above(0.5 * (1.0 - confidence)) * sigma;
    let (low_ns, shift_ns, high_ns) = shifts(live, candidate, width);
    Some(Found {
        u,
        p: (2.0 * normal::above(z)).min(1.0),
        shift_ns,
        low_ns,
        high_ns,
        mean_ratio: mean_ns(candidate) / mean_ns(live),
        cles: u / (m * n),
    })
}

/// Differences of all pairs at the middle and `width` pairs to both sides of it.
fn shifts(live: &Histogram, candidate: &Histogram, width: f64) -> (f64, f64, f64) {
    let filled = |times: &Histogram| -> Vec<(f64, f64)> {
        let all = times.0.iter().enumerate().filter(|(_, n)| **n > 0);
        all.map(|(b, n)| (middle_ns(b), *n as f64)).collect()
    };
    let live = filled(live);
    let mut pairs: Vec<(f64, f64)> = filled(candidate)
        .into_iter()
        .flat_map(|(c, n)| live.iter().map(move |(l, m)| (c - l, n * m)))
        .collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: f64 = pairs.iter().map(|(_, weight)| weight).sum();
    let at = |wanted: f64| {
        let mut sum = 0.0;
        for (difference, weight) in &pairs {
            sum += weight;
            if sum >= wanted {
                return *difference;
            }
        }
        pairs.last().map_or(0.0, |(difference, _)| *difference)
    };
    let half = 0.5 * all;
    (at(half - width), at(half), at(half + width))
}

/// Judges the candidate's times against the live pool's.
pub(super) fn judge(
    spec: &MannWhitney,
    min_samples: u64,
    live: &Histogram,
    candidate: &Histogram,
) -> Judgement {
    let word = spec.measure.word();
    let (m, n) = (live.count(), candidate.count());
    let mut statistics = vec![
        (format!("{word}.live.samples"), m as f64),
        (format!("{word}.candidate.samples"), n as f64),
    ];
    if m.min(n) < min_samples {
        return Judgement {
            outcome: Outcome::NoData,
            reason: format!(
                "fewer than {min_samples} samples of a pool: {word}: candidate {n}, live {m}"
            ),
            statistics,
        };
    }
    let Some(found) = compare(live, candidate, spec.confidence.share()) else {
        return Judgement {
            outcome: Outcome::Pass,
            reason: format!("{word}: all times are in one bucket"),
            statistics,
        };
    };
    for (name, value) in [
        ("u", found.u),
        ("p", found.p),
        ("shift_ns", found.shift_ns),
        ("shift_low_ns", found.low_ns),
        ("shift_high_ns", found.high_ns),
        ("mean_ratio", found.mean_ratio),
        ("cles", found.cles),
    ] {
        statistics.push((format!("{word}.{name}"), value));
    }
    let (class, outcome) = classify(spec, &found);
    let reason = format!(
        "{word} is {class}: candidate less live {} ({} to {} at {}), mean ratio {:.3}, larger in {:.1}% of pairs, of {n} and {m}",
        signed(found.shift_ns),
        signed(found.low_ns),
        signed(found.high_ns),
        spec.confidence,
        found.mean_ratio,
        found.cles * 100.0,
    );
    Judgement {
        outcome,
        reason,
        statistics,
    }
}

fn signed(ns: f64) -> String {
    let sign = if ns < 0.0 { "-" } else { "" };
    format!("{sign}{}", short(ns.abs()))
}

fn classify(spec: &MannWhitney, found: &Found) -> (&'static str, Outcome) {
    let bound = spec.tolerance.share() * found.shift_ns.abs();
    let effect = match spec.effect {
        Effect::MeanRatio => found.mean_ratio,
        Effect::Cles => found.cles,
    };
    let up = spec.direction != Direction::Decrease;
    let down = spec.direction != Direction::Increase;
    if up && found.low_ns > bound && effect > spec.allowed_increase.get() {
        ("High", Outcome::Fail)
    } else if down && found.high_ns < -bound && effect < spec.allowed_decrease.get() {
        ("Low", Outcome::Fail)
    } else {
        ("Pass", Outcome::Pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{GateSpec, Judge, tests::read};
    use shifter_common::histogram::bucket_of;

    fn of(times_us: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for us in times_us {
            histogram.0[bucket_of(us * 1_000)] += 1;
        }
        histogram
    }

    fn judged(gates: &[GateSpec], live: &Histogram, candidate: &Histogram) -> Judgement {
        let Judge::MannWhitney(spec) = &gates[0].judge else {
            panic!()
        };
        judge(spec, gates[0].min_samples, live, candidate)
    }

    /// U, by every pair.
    fn brute(live: &Histogram, candidate: &Histogram) -> f64 {
        let mut u = 0.0;
        for c in 0..BUCKETS {
            for l in 0..BUCKETS {
                let pairs = (candidate.0[c] * live.0[l]) as f64;
                u += match c.cmp(&l) {
                    std::cmp::Ordering::Greater => pairs,
                    std::cmp::Ordering::Equal => 0.5 * pairs,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        u
    }

    #[test]
    fn agrees_with_values_computed_elsewhere() {
        // U by counting pairs, p by erfc of the C library, of the buckets' numbers.
        let live = of(&[1, 2, 2, 3, 4, 5, 5, 6, 7, 7]);
        let candidate = of(&[3, 5, 6, 7, 7, 7, 4, 6]);
        let found = compare(&live, &candidate, 0.95).unwrap();
        assert_eq!(found.u, brute(&live, &candidate));
        assert_eq!(found.u, 56.0);
        assert!((found.p - 0.161_578_038).abs() < 1e-6, "{}", found.p);
        assert_eq!(found.cles, 56.0 / 80.0);
    }

    #[test]
    fn a_shift_is_estimated_and_what_is_equal_passes() {
        let live: Vec<u64> = (0..200).map(|i| 1_000 + 5 * i).collect();
        let later: Vec<u64> = live.iter().map(|us| us + 3_000).collect();
        let (live, later) = (of(&live), of(&later));
        let gates = read(r#"[{ judge = "mann-whitney" }]"#);
        let it = judged(&gates, &live, &later);
        assert_eq!(it.outcome, Outcome::Fail, "{}", it.reason);
        let found = compare(&live, &later, 0.98).unwrap();
        assert!((found.shift_ns - 3e6).abs() < 3e5, "{found:?}");
        assert!(found.low_ns <= found.shift_ns && found.shift_ns <= found.high_ns);
        assert_eq!(judged(&gates, &later, &live).outcome, Outcome::Pass);
        assert_eq!(judged(&gates, &live, &live).outcome, Outcome::Pass);
        let gates = read(r#"[{ judge = "mann-whitney", direction = "either" }]"#);
        let it = judged(&gates, &later, &live);
        assert_eq!(it.outcome, Outcome::Fail);
        assert!(it.reason.contains("handshake is Low"), "{}", it.reason);
    }

    #[test]
    fn an_effect_that_is_allowed_passes() {
        let live = of(&[1_000; 100]);
        let later = of(&[1_300; 100]);
        for (allowed, outcome) in [(1.2, Outcome::Fail), (1.4, Outcome::Pass)] {
            let gate = format!(r#"[{{ judge = "mann-whitney", allowed_increase = {allowed} }}]"#);
            let it = judged(&read(&gate), &live, &later);
            assert_eq!(it.outcome, outcome, "{allowed}: {}", it.reason);
        }
    }

    #[test]
    fn few_times_are_no_data_and_one_bucket_passes() {
        let gates = read(r#"[{ judge = "mann-whitney" }]"#);
        let few = judged(&gates, &of(&[1_000; 49]), &of(&[9_000; 500]));
        assert_eq!(few.outcome, Outcome::NoData);
        let one = judged(&gates, &of(&[1_000; 50]), &of(&[1_000; 500]));
        assert_eq!(one.outcome, Outcome::Pass);
    }
}
