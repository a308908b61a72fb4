//! A/A: the live pool judged against itself, to learn how often a judge would alarm
//! on this traffic where there is nothing to be found.
//!
//! The flows of the live pool are dealt to two pools at random, each with a chance
//! of `weight` to the stand-in for the candidate. Failures may be dealt in clumps of
//! several: failures that come together (one client trying again, one backend that
//! dies) are what the sequential test does not take into account, and clumps show
//! what they would do.

use super::{GateSpec, Outcome, Recorded, Recording, replay, seeded::Random};
use crate::model::{
    PoolName,
    signals::{Histogram, PoolSignals},
};

/// How flows are dealt.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Split {
    /// Share of the flows that stands for the candidate, in `[0, 1]`.
    pub weight: f64,
    /// Failures that go to one side together, from 1.
    pub clump: u64,
}

/// How often each gate alarmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FalseAlarms {
    pub runs: u64,
    /// Runs in which the gate of this index ever failed.
    pub by_gate: Vec<u64>,
    /// Runs in which any did.
    pub any: u64,
}

impl Split {
    /// Deals the flows of one window: `(live, candidate)`.
    pub fn deal(&self, pool: &PoolSignals, random: &mut Random) -> (PoolSignals, PoolSignals) {
        let clump = self.clump.max(1);
        let mut dealt = PoolSignals::default();
        let mut failed = 0;
        for (all, to) in [
            (pool.unanswered, &mut dealt.unanswered),
            (pool.refused, &mut dealt.refused),
            (pool.resets_before_data, &mut dealt.resets_before_data),
            (pool.resets_after_data, &mut dealt.resets_after_data),
        ] {
            let whole = random.binomial(all / clump, self.weight) * clump;
            *to = whole + random.binomial(1, self.weight) * (all % clump);
            failed += *to;
        }
        // A failed flow was an attempt too, where there are as many.
        let rest = pool.attempts.saturating_sub(pool.failures());
        let attempts = failed.saturating_add(random.binomial(rest, self.weight));
        dealt.attempts = attempts.min(pool.attempts);
        for (all, to) in [
            (pool.answered, &mut dealt.answered),
            (pool.syn_retransmits, &mut dealt.syn_retransmits),
            (pool.client_resets, &mut dealt.client_resets),
            (pool.client_retransmits, &mut dealt.client_retransmits),
            (pool.backend_retransmits, &mut dealt.backend_retransmits),
            (pool.ended, &mut dealt.ended),
        ] {
            *to = random.binomial(all, self.weight);
        }
        dealt.bytes = (pool.bytes as f64 * self.weight) as u64;
        for (all, to) in [
            (&pool.handshake, &mut dealt.handshake),
            (&pool.first_byte, &mut dealt.first_byte),
            (&pool.duration, &mut dealt.duration),
        ] {
            self.deal_times(all, to, random);
        }
        // What was not dealt stays: the two are all that was there.
        (pool.since(&dealt), dealt)
    }

    fn deal_times(&self, all: &Histogram, to: &mut Histogram, random: &mut Random) {
        for (count, to) in all.0.iter().zip(to.0.iter_mut()) {
            *to = random.binomial(*count, self.weight);
        }
    }
}

/// Judges the live pool of a recording against itself so many times.
pub fn false_alarms(
    recording: &Recording,
    gates: &[GateSpec],
    split: Split,
    runs: u64,
    seed: u64,
) -> FalseAlarms {
    let mut alarms = FalseAlarms {
        runs,
        by_gate: vec![0; gates.len()],
        any: 0,
    };
    for run in 0..runs {
        let mut random = Random(seed.wrapping_add(run.wrapping_mul(0x9e37_79b9)));
        let windows = recording.windows.iter().map(|recorded| {
            let pool = recorded.window(recording.live).live;
            let (blue, green) = split.deal(&pool, &mut random);
            Recorded {
                blue,
                green,
                ..*recorded
            }
        });
        let dealt = Recording {
            service: recording.service.clone(),
            live: PoolName::Blue,
            windows: windows.collect(),
        };
        let mut has_alarmed = false;
        for (gate, alarms) in gates.iter().zip(&mut alarms.by_gate) {
            let replay = replay(&dealt, std::slice::from_ref(gate));
            let is_alarm = replay.changes.iter().any(|it| it.outcome == Outcome::Fail);
            *alarms += u64::from(is_alarm);
            has_alarmed |= is_alarm;
        }
        alarms.any += u64::from(has_alarmed);
    }
    alarms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{
        simulate::{Behaviour, window},
        tests::read,
    };

    fn recording() -> Recording {
        let behaviour = Behaviour {
            failures: 0.02,
            handshake_ns: 5e5,
            sigma: 0.5,
            delay_ns: 0.0,
        };
        let mut random = Random(21);
        let windows = (0..120u64).map(|i| {
            let it = window(&behaviour, &behaviour, 60, 0.0, &mut random);
            Recorded {
                at_ms: (i + 1) * 1_000,
                step: 0,
                blue: it.candidate,
                green: it.live,
            }
        });
        Recording {
            service: "web".into(),
            live: PoolName::Green,
            windows: windows.collect(),
        }
    }

    #[test]
    fn what_is_dealt_is_all_that_was_there() {
        let recording = recording();
        let mut random = Random(1);
        for clump in [1, 3] {
            let split = Split { weight: 0.3, clump };
            let mut shares = 0.0;
            for recorded in &recording.windows {
                let pool = &recorded.green;
                let (live, candidate) = split.deal(pool, &mut random);
                assert_eq!(live.attempts + candidate.attempts, pool.attempts);
                assert_eq!(live.failures() + candidate.failures(), pool.failures());
                assert!(candidate.failures() <= candidate.attempts);
                assert!(live.failures() <= live.attempts);
                let times = live.handshake.count() + candidate.handshake.count();
                assert_eq!(times, pool.handshake.count());
                shares += candidate.attempts as f64 / pool.attempts as f64 / 120.0;
            }
            assert!((shares - 0.3).abs() < 0.03, "{shares}");
        }
    }

    #[test]
    fn a_sequential_test_keeps_its_alpha_and_a_bound_that_is_too_low_shows() {
        let gates = read(
            r#"[{ judge = "sequential" }, { judge = "threshold", failure_ratio_max = "0.5%" }]"#,
        );
        let split = Split {
            weight: 0.2,
            clump: 1,
        };
        let alarms = false_alarms(&recording(), &gates, split, 100, 9);
        // 13 of 100 at 5% would happen once in a thousand.
        assert!(alarms.by_gate[0] <= 12, "{alarms:?}");
        assert!(alarms.by_gate[1] > 90, "{alarms:?}");
        assert!(alarms.any >= alarms.by_gate[1]);
    }
}
