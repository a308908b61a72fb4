//! Replay: what other gates would have said of a rollout that was recorded.

use super::{GateSpec, GateState, Outcome, Policy, Recording, When, Window};

/// A gate said something else than before.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// End of the window, in ms since the rollout began.
    pub at_ms: u64,
    pub step: u32,
    /// Index in the list of gates.
    pub gate: usize,
    pub outcome: Outcome,
    pub policy: Policy,
    pub reason: String,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Replay {
    /// Every change of what a gate says, in the order of time, up to the rollback.
    pub changes: Vec<Change>,
    /// The first that would have rolled back: there the replay ends.
    pub rollback: Option<Change>,
    /// The first that would have held at the end of its step; what was recorded
    /// after it would not have happened then, or later.
    pub hold: Option<Change>,
    /// Gates that reach out of the agent: nothing was recorded of them.
    pub skipped: Vec<usize>,
    /// Windows that were judged.
    pub windows: usize,
}

/// Weights are not recorded: that the candidate had every flow of a window says as much.
fn has_no_live_flows(window: &Window) -> bool {
    window.live.attempts == 0 && window.candidate.attempts > 0
}

/// Judges a recording by a list of gates. States begin anew with each step, as they
/// do in a rollout.
pub fn replay(recording: &Recording, gates: &[GateSpec]) -> Replay {
    let fresh = || -> Vec<_> {
        let seen = |gate| Some((GateState::new(gate)?, None));
        gates.iter().map(seen).collect()
    };
    let mut states: Vec<Option<(GateState, Option<Outcome>)>> = fresh();
    let mut replay = Replay {
        skipped: (0..gates.len()).filter(|i| states[*i].is_none()).collect(),
        ..Replay::default()
    };
    let mut step = recording.windows.first().map_or(0, |it| it.step);
    for (index, recorded) in recording.windows.iter().enumerate() {
        if recorded.step != step {
            step = recorded.step;
            states = fresh();
        }
        replay.windows += 1;
        let window = recorded.window(recording.live);
        let next = recording.windows.get(index + 1);
        let is_last_of_step = next.is_none_or(|next| next.step != step);
        for (gate, (spec, state)) in gates.iter().zip(&mut states).enumerate() {
            let Some((state, before)) = state else {
                continue;
            };
            state.add(spec, &window);
            if spec.when() == When::AtEnd && !is_last_of_step {
                continue;
            }
            let judgement = match has_no_live_flows(&window) {
                true => state.judge_alone(spec),
                false => state.judge(spec),
            };
            let change = Change {
                at_ms: recorded.at_ms,
                step,
                gate,
                outcome: judgement.outcome,
                policy: spec.policy(judgement.outcome),
                reason: judgement.reason,
            };
            if *before != Some(change.outcome) {
                *before = Some(change.outcome);
                replay.changes.push(change.clone());
            }
            match change.policy {
                Policy::Hold if is_last_of_step && replay.hold.is_none() => {
                    replay.hold = Some(change);
                }
                // Fewer samples than wanted and what does not tell are the end's
                // business; that the candidate is worse is not.
                Policy::Rollback if is_last_of_step || change.outcome == Outcome::Fail => {
                    replay.rollback = Some(change);
                    return replay;
                }
                _ => {}
            }
        }
    }
    replay
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        judge::{
            Recorded,
            seeded::Random,
            simulate::{Behaviour, window},
            tests::read,
        },
        model::{PoolName, signals::PoolSignals},
    };

    const GOOD: Behaviour = Behaviour {
        failures: 0.001,
        handshake_ns: 3e5,
        sigma: 0.3,
        delay_ns: 0.0,
    };

    /// Three steps of 60 windows; the candidate is bad in the last.
    fn recording(live: PoolName) -> Recording {
        let mut random = Random(11);
        let windows = (0..180u64).map(|i| {
            let failures = if i < 120 { 0.001 } else { 0.1 };
            let candidate = Behaviour { failures, ..GOOD };
            let it = window(&GOOD, &candidate, 100, 0.2, &mut random);
            let (blue, green) = match live {
                PoolName::Blue => (it.live, it.candidate),
                PoolName::Green => (it.candidate, it.live),
            };
            Recorded {
                at_ms: (i + 1) * 1_000,
                step: (i / 60) as u32,
                blue,
                green,
            }
        });
        Recording {
            service: "web".into(),
            live,
            windows: windows.collect(),
        }
    }

    #[test]
    fn a_policy_decides_in_the_step_that_was_bad() {
        let gates = read(r#"[{ judge = "sequential" }, { judge = "exec", file = "a" }]"#);
        let mut decided = Vec::new();
        for live in [PoolName::Blue, PoolName::Green] {
            let replay = replay(&recording(live), &gates);
            let rollback = replay.rollback.unwrap();
            assert_eq!((rollback.step, rollback.gate), (2, 0));
            assert!((120_000..160_000).contains(&rollback.at_ms), "{rollback:?}");
            assert_eq!((replay.skipped, replay.hold), (vec![1], None));
            decided.push(rollback.at_ms);
        }
        assert_eq!(decided[0], decided[1]);
    }

    #[test]
    fn another_policy_decides_otherwise() {
        let lenient = read(r#"[{ judge = "threshold", failure_ratio_max = "30%" }]"#);
        let it = replay(&recording(PoolName::Blue), &lenient);
        assert_eq!((it.rollback, it.hold, it.windows), (None, None, 180));
        let wants_more = read(r#"[{ judge = "mann-whitney", min_samples = 100000 }]"#);
        let it = replay(&recording(PoolName::Blue), &wants_more);
        let hold = it.hold.unwrap();
        assert_eq!((hold.step, hold.at_ms), (0, 60_000));
        assert_eq!(hold.outcome, Outcome::NoData);
        let strict =
            read(r#"[{ judge = "mann-whitney", min_samples = 100000, on_no_data = "rollback" }]"#);
        let it = replay(&recording(PoolName::Blue), &strict);
        assert_eq!(it.rollback.unwrap().at_ms, 60_000);
    }

    #[test]
    fn what_was_written_to_a_file_replays_alike() {
        let gates = read(r#"[{ judge = "sequential" }, { judge = "mann-whitney" }]"#);
        let recording = recording(PoolName::Blue);
        let again = Recording::parse(&recording.to_text()).unwrap();
        assert_eq!(replay(&again, &gates), replay(&recording, &gates));
    }

    #[test]
    fn an_empty_recording_decides_nothing() {
        let recording = Recording {
            service: "web".into(),
            live: PoolName::Blue,
            windows: Vec::new(),
        };
        let gates = read(r#"[{ judge = "sequential" }]"#);
        assert_eq!(replay(&recording, &gates), Replay::default());
    }

    #[test]
    fn a_bake_of_which_the_live_pool_had_no_flows_holds_nothing_up() {
        let mut recording = recording(PoolName::Blue);
        recording.windows.truncate(120);
        for window in recording.windows.iter_mut().filter(|it| it.step == 1) {
            window.blue = PoolSignals::default();
        }
        let gates = read(r#"[{ judge = "sequential", min_samples = 50 }]"#);
        let replay = replay(&recording, &gates);
        assert_eq!((replay.rollback, replay.hold), (None, None));
        assert_eq!(replay.windows, 120);
    }
}
