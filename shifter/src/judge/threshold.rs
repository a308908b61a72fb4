//! The threshold judge: bounds of the candidate's own signals since the step began.

use super::{
    Bound, Judgement, Outcome, RatioSignal, Threshold,
    state::histogram_of,
    words::{Word as _, show_share},
};
use crate::model::{duration::short, signals::PoolSignals};

/// Compares what the candidate did with its bounds.
pub(super) fn judge(spec: &Threshold, min_samples: u64, candidate: &PoolSignals) -> Judgement {
    let mut statistics = vec![("candidate.flows".to_owned(), candidate.attempts as f64)];
    let (mut over, mut lacking, mut within) = (Vec::new(), Vec::new(), Vec::new());
    for bound in &spec.bounds {
        let (samples, name, value, most, show): (_, _, _, _, fn(f64) -> String) = match bound {
            Bound::Ratio(signal, most) => {
                let name = signal.key().trim_end_matches("_max").to_owned();
                let all = candidate.attempts;
                let ratio = (all > 0).then(|| signal.count(candidate) as f64 / all as f64);
                (all, name, ratio, most.share(), show_share)
            }
            Bound::Quantile(measure, per_mille, most) => {
                let name = format!("{}_p{}_ns", measure.word(), per_mille / 10).replace('-', "_");
                let times = histogram_of(candidate, *measure);
                let count = times.map_or(0, |times| times.count());
                let q = f64::from(*per_mille) / 1_000.0;
                let value = times.and_then(|times| times.quantile_ns(q));
                (count, name, value, most.as_nanos() as f64, short)
            }
        };
        let Some(value) = value.filter(|_| samples >= min_samples) else {
            lacking.push(format!("{name}: {samples} samples of {min_samples}"));
            continue;
        };
        let text = format!("{name} {} of at most {}", show(value), show(most));
        if value > most {
            over.push(text);
        } else {
            within.push(text);
        }
        statistics.push((format!("candidate.{name}"), value));
    }
    let (outcome, reason) = if !over.is_empty() {
        (
            Outcome::Fail,
            format!("above its bound: {}", over.join("; ")),
        )
    } else if !lacking.is_empty() {
        (
            Outcome::NoData,
            format!("too few samples: {}", lacking.join("; ")),
        )
    } else {
        (
            Outcome::Pass,
            format!("within bounds: {}", within.join("; ")),
        )
    };
    Judgement {
        outcome,
        reason,
        statistics,
    }
}

impl RatioSignal {
    /// What is divided by attempts.
    pub fn count(self, pool: &PoolSignals) -> u64 {
        match self {
            Self::Failure => pool.failures(),
            Self::Unanswered => pool.unanswered,
            Self::Refused => pool.refused,
            Self::Reset => pool
                .resets_before_data
                .saturating_add(pool.resets_after_data),
            Self::ResetBeforeData => pool.resets_before_data,
            Self::ClientReset => pool.client_resets,
            Self::SynRetransmit => pool.syn_retransmits,
            Self::ClientRetransmit => pool.client_retransmits,
            Self::BackendRetransmit => pool.backend_retransmits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{GateSpec, Judge, tests::read};
    use shifter_common::histogram::bucket_of;

    fn judged(gates: &[GateSpec], pool: &PoolSignals) -> Judgement {
        let Judge::Threshold(spec) = &gates[0].judge else {
            panic!()
        };
        judge(spec, gates[0].min_samples, pool)
    }

    fn pool(attempts: u64) -> PoolSignals {
        let mut pool = PoolSignals {
            attempts,
            refused: 1,
            resets_after_data: 2,
            backend_retransmits: 3 * attempts,
            ..PoolSignals::default()
        };
        pool.handshake.0[bucket_of(40_000_000)] = attempts;
        pool
    }

    #[test]
    fn a_bound_is_what_may_just_be_reached() {
        let gates = read(r#"[{ judge = "threshold", failure_ratio_max = "3%" }]"#);
        let it = judged(&gates, &pool(100));
        assert_eq!(it.outcome, Outcome::Pass, "{}", it.reason);
        let gates = read(r#"[{ judge = "threshold", failure_ratio_max = "2.9999%" }]"#);
        let it = judged(&gates, &pool(100));
        assert_eq!(it.outcome, Outcome::Fail);
        assert_eq!(
            it.reason,
            "above its bound: failure_ratio 3% of at most 2.9999%"
        );
    }

    #[test]
    fn each_bound_looks_at_its_own_signal() {
        for (bound, outcome) in [
            ("refused_ratio_max = \"0.9%\"", Outcome::Fail),
            ("unanswered_ratio_max = \"0%\"", Outcome::Pass),
            ("reset_ratio_max = \"1.9%\"", Outcome::Fail),
            ("reset_before_data_ratio_max = \"0%\"", Outcome::Pass),
            ("client_reset_ratio_max = \"0%\"", Outcome::Pass),
            ("syn_retransmit_ratio_max = \"0%\"", Outcome::Pass),
            ("client_retransmit_ratio_max = \"0%\"", Outcome::Pass),
            ("backend_retransmit_ratio_max = \"299%\"", Outcome::Fail),
            ("handshake_p99_max = \"35ms\"", Outcome::Fail),
            ("handshake_p50_max = \"46ms\"", Outcome::Pass),
        ] {
            let gates = read(&format!("[{{ judge = \"threshold\", {bound} }}]"));
            let it = judged(&gates, &pool(100));
            assert_eq!(it.outcome, outcome, "{bound}: {}", it.reason);
        }
    }

    #[test]
    fn few_samples_are_no_data_and_a_bound_that_is_passed_counts_all_the_same() {
        let gates =
            read(r#"[{ judge = "threshold", failure_ratio_max = "1%", duration_p99_max = "1s" }]"#);
        let it = judged(&gates, &pool(99));
        assert_eq!(it.outcome, Outcome::NoData);
        assert!(
            it.reason.contains("failure_ratio: 99 samples of 100"),
            "{}",
            it.reason
        );
        assert_eq!(
            judged(&gates, &PoolSignals::default()).outcome,
            Outcome::NoData
        );
        // Duration has no samples, failures have.
        assert_eq!(judged(&gates, &pool(100)).outcome, Outcome::Fail);
    }
}
