//! What there is to tell at the end of a rollout, from what was stored of it.

mod html;
mod markdown;
mod plot;
#[cfg(test)]
mod tests;
mod words;

use serde::{Deserialize, Serialize};

use super::{Happened, Plan, RolloutSpec, State, Window, window};
use crate::model::{PoolName, signals::PoolSignals, wilson};

/// Points of the plots.
const POINTS: usize = 240;

/// How long a rollback took, in ns from the decision on.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RollbackTimes {
    pub programmed_ns: Option<u64>,
    /// To the first flow that was chosen under the new weight.
    pub first_flow_ns: Option<u64>,
    /// To the last flow that the candidate was given; negative: before the decision.
    /// The table's clock ticks every few ms.
    pub last_candidate_flow_ns: Option<i64>,
    /// Flows of the candidate that were chosen under the new weight all the same.
    pub candidate_flows_after: Option<u64>,
}

/// What a report is made of.
pub struct Facts<'a> {
    pub id: u64,
    pub service: &'a str,
    pub spec: &'a RolloutSpec,
    pub plan: &'a Plan,
    pub state: &'a State,
    pub actor: &'a str,
    pub reason: &'a str,
    pub began_unix_ms: i64,
    pub ended_unix_ms: i64,
    pub notes: &'a [Happened],
    pub windows: &'a [Window],
    pub times: RollbackTimes,
    /// What shifter has dropped and evicted of live traffic so far.
    pub cut_now: u64,
    /// Flows of the service that were ended on request so far.
    pub ended_now: u64,
}

/// One pool over the whole rollout.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PoolReport {
    pub pool: String,
    pub attempts: u64,
    pub failures: u64,
    /// Share of the attempts that failed for their users; `[low, high]` is its 95%
    /// Wilson interval. Absent without attempts.
    pub failure_share: Option<f64>,
    pub failure_interval: Option<[f64; 2]>,
    pub refused: u64,
    pub unanswered: u64,
    pub resets_before_data: u64,
    pub resets_after_data: u64,
    /// Handshake times in ns: 50%, 90%, 99%.
    pub handshake_ns: [Option<f64>; 3],
    /// Times to the first byte in ns.
    pub first_byte_ns: [Option<f64>; 3],
    pub bytes: u64,
}

/// One point of the plots.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// From the begin, in s.
    pub at_s: f64,
    /// Share of the candidate that was set, in `[0, 1]`.
    pub weight: f64,
    /// Share of new flows that the candidate got; absent without any.
    pub observed: Option<f64>,
    /// New flows a second, `[blue, green]`.
    pub flows_per_s: [f64; 2],
    /// Failures of new flows, `[blue, green]`.
    pub failures: [u64; 2],
    pub attempts: [u64; 2],
    /// Handshakes in ns, `[blue, green]`: 50% and 99%.
    pub handshake_ns: [[Option<f64>; 2]; 2],
    /// Live flows, `[blue, green]`.
    pub live: [u64; 2],
}

/// When it was seen that the candidate is bad.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Detection {
    /// From the first window with a failure of the candidate to the decision, in s.
    pub after_first_failure_s: Option<f64>,
    /// From the first flow of the candidate to the decision, in s.
    pub after_first_flow_s: Option<f64>,
    /// Failures and attempts of the candidate until then.
    pub failures: u64,
    pub attempts: u64,
}

/// See the module.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub id: u64,
    pub service: String,
    pub strategy: String,
    pub candidate: String,
    pub actor: String,
    pub reason: String,
    pub began_unix_ms: i64,
    pub ended_unix_ms: i64,
    /// One word.
    pub outcome: String,
    /// And whole.
    pub outcome_text: String,
    pub pools: [PoolReport; 2],
    /// Flows of the host that shifter cut meanwhile: packets that it dropped, and live
    /// proven flows that it evicted.
    pub reset_by_shifter: u64,
    /// Flows of the service that were ended because somebody asked for it, by the agent
    /// that made this report, up to it; not among the above.
    #[serde(default)]
    pub ended_on_request: u64,
    /// The pace that the rollout asks for.
    #[serde(default)]
    pub cut: Option<String>,
    /// Present after a rollback.
    pub detection: Option<Detection>,
    pub rollback: RollbackTimes,
    /// Share of all new flows that the candidate got, and how many.
    pub exposure: Option<f64>,
    pub exposed_flows: u64,
    /// Integral of the weight over time, in s of 100%.
    pub exposure_s: f64,
    /// Time in which it made progress, held, and was paused, in s.
    pub progress_s: f64,
    pub holding_s: f64,
    pub paused_s: f64,
    /// Live flows of the pool that lost traffic at the end, and those left behind
    /// when a wait for a drain was over.
    pub undrained_flows: u64,
    pub left_behind: u64,
    /// Windows that could not be measured, and why.
    pub unmeasured: Option<String>,
    pub steps: Vec<String>,
    pub last_step: usize,
    pub points: Vec<Point>,
    pub notes: Vec<Happened>,
}

impl Report {
    /// Made of what was stored.
    pub fn new(facts: &Facts<'_>) -> Self {
        let mut sums = <[PoolSignals; 2]>::default();
        for window in facts.windows {
            for (sum, more) in sums.iter_mut().zip(&window.signals) {
                window::add(sum, more);
            }
        }
        let candidate = facts.plan.candidate;
        let attempts = sums[0].attempts + sums[1].attempts;
        let exposed_flows = sums[candidate.index()].attempts;
        let outcome = facts.state.outcome();
        let rolled_back = matches!(outcome, Some(super::Outcome::RolledBack { .. }));
        let (holding_s, paused_s) = held(facts);
        let whole_s = (facts.ended_unix_ms - facts.began_unix_ms).max(0) as f64 / 1e3;
        let last = facts.windows.last();
        // The pool that gains nothing more once it is over.
        let losing = match rolled_back {
            true => candidate,
            false => candidate.other(),
        };
        Self {
            version: 1,
            id: facts.id,
            service: facts.service.to_owned(),
            strategy: facts.spec.strategy.to_string(),
            candidate: candidate.to_string(),
            actor: facts.actor.to_owned(),
            reason: facts.reason.to_owned(),
            began_unix_ms: facts.began_unix_ms,
            ended_unix_ms: facts.ended_unix_ms,
            outcome: facts.state.word().to_owned(),
            outcome_text: outcome.map_or(String::new(), ToString::to_string),
            pools: [PoolName::Blue, PoolName::Green]
                .map(|pool| pool_report(pool, &sums[pool.index()])),
            reset_by_shifter: facts.cut_now.saturating_sub(facts.state.cut_before),
            ended_on_request: facts.ended_now.saturating_sub(facts.state.ended_before),
            cut: facts.spec.cut.map(|rate| rate.to_string()),
            detection: rolled_back.then(|| detection(facts)),
            rollback: facts.times,
            exposure: (attempts > 0).then(|| exposed_flows as f64 / attempts as f64),
            exposed_flows,
            exposure_s: facts
                .windows
                .iter()
                .map(|window| share(&window.weight) * window.ms as f64 / 1e3)
                .sum(),
            progress_s: (whole_s - holding_s - paused_s).max(0.0),
            holding_s,
            paused_s,
            undrained_flows: last.map_or(0, |window| window.flows[losing.index()]),
            left_behind: facts.state.left_behind,
            unmeasured: facts
                .windows
                .is_empty()
                .then(|| "no window of signals was stored".to_owned()),
            steps: facts.plan.steps.iter().map(ToString::to_string).collect(),
            last_step: facts.state.step,
            points: points(facts),
            notes: facts.notes.to_vec(),
        }
    }
}

fn share(weight: &str) -> f64 {
    weight
        .parse::<crate::model::Weight>()
        .map_or(0.0, |weight| weight.share())
}

fn quantiles(histogram: &crate::model::signals::Histogram) -> [Option<f64>; 3] {
    [0.5, 0.9, 0.99].map(|q| histogram.quantile_ns(q))
}

fn pool_report(pool: PoolName, sum: &PoolSignals) -> PoolReport {
    let failures = sum.failures();
    // A failure of a flow that began before the rollout has no attempt in it.
    let of = sum.attempts.max(failures);
    let interval = wilson::interval(failures, of);
    PoolReport {
        pool: pool.to_string(),
        attempts: sum.attempts,
        failures,
        failure_share: (of > 0).then(|| failures as f64 / of as f64),
        failure_interval: interval.map(|(_, low, high)| [low, high]),
        refused: sum.refused,
        unanswered: sum.unanswered,
        resets_before_data: sum.resets_before_data,
        resets_after_data: sum.resets_after_data,
        handshake_ns: quantiles(&sum.handshake),
        first_byte_ns: quantiles(&sum.first_byte),
        bytes: sum.bytes,
    }
}

/// When a rollback was decided, by the wall clock.
fn decided_ms(facts: &Facts<'_>) -> i64 {
    let note = facts.notes.iter().find(|note| note.kind == "rolling back");
    note.map_or(facts.ended_unix_ms, |note| note.at_unix_ms)
}

fn detection(facts: &Facts<'_>) -> Detection {
    let decided = decided_ms(facts);
    let candidate = facts.plan.candidate.index();
    let until = facts
        .windows
        .iter()
        .filter(|w| w.at_unix_ms - w.ms as i64 <= decided);
    let (mut first_failure, mut first_flow, mut sum) = (None, None, PoolSignals::default());
    for window in until {
        let signals = &window.signals[candidate];
        if signals.failures() > 0 {
            first_failure.get_or_insert(window.at_unix_ms);
        }
        if signals.attempts > 0 {
            first_flow.get_or_insert(window.at_unix_ms);
        }
        window::add(&mut sum, signals);
    }
    let after = |since: Option<i64>| since.map(|ms| (decided - ms).max(0) as f64 / 1e3);
    Detection {
        after_first_failure_s: after(first_failure),
        after_first_flow_s: after(first_flow),
        failures: sum.failures(),
        attempts: sum.attempts,
    }
}

/// Seconds that it held and that it was paused, by what was noted.
fn held(facts: &Facts<'_>) -> (f64, f64) {
    let (mut holding_ms, mut paused_ms) = (0i64, 0i64);
    let (mut holds, mut paused): (Option<i64>, Option<i64>) = (None, None);
    let mut close = |holds: &mut Option<i64>, paused: &mut Option<i64>, at: i64| {
        if let Some(since) = paused.take() {
            paused_ms += at - since;
            *holds = None;
        } else if let Some(since) = holds.take() {
            holding_ms += at - since;
        }
    };
    for note in facts.notes {
        let at = note.at_unix_ms;
        match note.kind.as_str() {
            "holding" if holds.is_none() => holds = Some(at),
            "paused" => {
                close(&mut holds, &mut paused, at);
                paused = Some(at);
            }
            "step" | "goes on" | "resumed" | "rolling back" | "over" => {
                close(&mut holds, &mut paused, at);
            }
            _ => {}
        }
    }
    close(&mut holds, &mut paused, facts.ended_unix_ms);
    (
        holding_ms.max(0) as f64 / 1e3,
        paused_ms.max(0) as f64 / 1e3,
    )
}

/// Windows put together to so many points as a plot can show.
fn points(facts: &Facts<'_>) -> Vec<Point> {
    let together = facts.windows.len().div_ceil(POINTS).max(1);
    let candidate = facts.plan.candidate.index();
    facts
        .windows
        .chunks(together)
        .filter_map(|windows| {
            let last = windows.last()?;
            let mut sums = <[PoolSignals; 2]>::default();
            for window in windows {
                for (sum, more) in sums.iter_mut().zip(&window.signals) {
                    window::add(sum, more);
                }
            }
            let seconds = windows.iter().map(|w| w.ms).sum::<u64>() as f64 / 1e3;
            let attempts = sums.each_ref().map(|sum| sum.attempts);
            let all = attempts[0] + attempts[1];
            Some(Point {
                at_s: (last.at_unix_ms - facts.began_unix_ms) as f64 / 1e3,
                weight: share(&last.weight),
                observed: (all > 0).then(|| attempts[candidate] as f64 / all as f64),
                flows_per_s: attempts.map(|count| count as f64 / seconds.max(0.001)),
                failures: sums.each_ref().map(PoolSignals::failures),
                attempts,
                handshake_ns: sums
                    .each_ref()
                    .map(|sum| [0.5, 0.99].map(|q| sum.handshake.quantile_ns(q))),
                live: last.flows,
            })
        })
        .collect()
}
