//! What a rollout is judged by: gates as they are written, the judges that need
//! nothing but the kernel's counts, and what a judge may say. Pure.
//!
//! A judge compares the *candidate* (the pool that is not live) with the live pool,
//! both over the same time. docs/judges.md says what each one tests.

mod aa;
mod allow;
mod evidence;
mod failures;
mod mann_whitney;
mod normal;
mod number;
mod read;
mod recording;
mod replay;
mod seeded;
mod sequential;
#[cfg(test)]
mod simulate;
mod sparse;
mod state;
mod threshold;
mod times;
mod value;
mod words;
mod write;

use std::time::Duration;

pub use aa::{FalseAlarms, Split, false_alarms};
pub use allow::{
    Allowed, GateError, Origin, UrlError, allowed_host, check_allowed, check_program, host_of,
};
pub use number::{Number, Ratio};
pub use read::{gate, gates};
pub use recording::{Recorded, Recording, RecordingError};
pub use replay::{Change, Replay, replay};
pub use sparse::{signals_from_json, signals_to_json};
pub use state::{GateState, StateError, Window};

/// The probability of a wrong alarm that a gate keeps to, where it is a test that does.
pub fn alpha(gate: &GateSpec) -> Option<f64> {
    match &gate.judge {
        Judge::Sequential(it) => Some(it.alpha.share()),
        _ => None,
    }
}

/// Whether what it looks at is recorded: not of gates that reach out of the agent.
pub fn is_recorded(gate: &GateSpec) -> bool {
    GateState::new(gate).is_some()
}

/// What a gate found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    Pass,
    /// The candidate is worse than it may be.
    Fail,
    /// There is enough data, and it does not tell.
    Inconclusive,
    /// Fewer samples than `min_samples`, or a query without a result.
    NoData,
    /// The gate itself did not work.
    Error,
}

/// The answer of one gate.
#[derive(Clone, PartialEq, Debug)]
pub struct Judgement {
    pub outcome: Outcome,
    /// One sentence with the figures it rests on.
    pub reason: String,
    /// For reports, by name; times in ns, shares in `[0, 1]`.
    pub statistics: Vec<(String, f64)>,
}

/// What a rollout does about an outcome.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Stays where it is, and asks again.
    Hold,
    /// Goes on as if the gate had passed.
    Advance,
    Rollback,
}

/// One gate of a plan. Equal ones are written alike by [`GateSpec::to_json`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateSpec {
    /// Unique within a list; the judge's word where none was given.
    pub name: String,
    pub judge: Judge,
    /// What to do when the candidate is worse; rollback unless told otherwise.
    pub on_fail: Policy,
    pub on_no_data: Policy,
    pub on_inconclusive: Policy,
    pub on_error: Policy,
    /// Flows of each pool (sampled flows, for times) below which the outcome is
    /// [`Outcome::NoData`]. 0 for gates that look at no flows.
    pub min_samples: u64,
}

/// How a gate judges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judge {
    Sequential(Sequential),
    Threshold(Threshold),
    MannWhitney(MannWhitney),
    Prometheus(Prometheus),
    Webhook(Webhook),
    Exec(Exec),
}

/// When a gate is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum When {
    /// At every window, with all that came since the step began.
    Window,
    /// Once, at the end of an analysis: a test for one look.
    AtEnd,
    /// Apart from windows, this long after its last answer.
    Every(Duration),
    /// Once, at the moment of a rollout that its hook type names.
    Hook,
}

/// Which signal a statistical judge compares.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Measure {
    /// Share of attempts that failed: `PoolSignals::failures` of `attempts`.
    Failures,
    /// Time from SYN to SYN-ACK.
    Handshake,
    /// Time from the client's first data to the backend's.
    FirstByte,
    /// Time from the SYN to the end.
    Duration,
}

/// By how much worse the candidate may be before it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MinEffect {
    /// In points of a ratio; default 0.5%.
    pub ratio: Ratio,
    /// For times the larger of `time`, default 1 ms ...
    pub time: Duration,
    /// ... and this share of the live pool's, default 10%.
    pub time_relative: Ratio,
}

impl Default for MinEffect {
    fn default() -> Self {
        Self {
            ratio: Ratio { ppm: 5_000 },
            time: Duration::from_millis(1),
            time_relative: Ratio::percent(10),
        }
    }
}

/// A test that may be looked at as often as one likes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequential {
    /// False alarms over the life of a step, all measures together.
    pub alpha: Ratio,
    pub min_effect: MinEffect,
    /// Not empty, each once.
    pub measures: Vec<Measure>,
    pub pass_when: PassWhen,
}

/// When a sequential test that found nothing has passed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PassWhen {
    /// As soon as there are enough samples.
    NoAlarm,
    /// When it is shown, with the same alpha, that the candidate is not worse by
    /// more than the least effect; inconclusive until then.
    Shown,
}

/// Bounds of the candidate's own signals; at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Threshold {
    pub bounds: Vec<Bound>,
}

/// A signal and what it may be at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Ratio(RatioSignal, Ratio),
    /// Times of a measure, the quantile in parts per thousand, the bound.
    Quantile(Measure, u16, Duration),
}

/// Counts of a pool over its attempts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RatioSignal {
    /// Refused, unanswered, and reset by the backend.
    Failure,
    Unanswered,
    Refused,
    /// Reset by the backend, before data or after.
    Reset,
    ResetBeforeData,
    ClientReset,
    SynRetransmit,
    /// Segments sent again, a flow; may be above 100%.
    ClientRetransmit,
    BackendRetransmit,
}

/// The Mann-Whitney U test with an effect size, as in Kayenta.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MannWhitney {
    /// Not [`Measure::Failures`].
    pub measure: Measure,
    /// Which change counts against the candidate.
    pub direction: Direction,
    /// Of the interval of the shift; default 98%.
    pub confidence: Ratio,
    /// Share of the estimated shift that the interval must leave out; default 25%.
    pub tolerance: Ratio,
    pub effect: Effect,
    /// An effect up to this one passes, whatever the test says.
    pub allowed_increase: Number,
    /// And down to this one.
    pub allowed_decrease: Number,
}

/// Which change a Mann-Whitney test fails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    Increase,
    Decrease,
    Either,
}

/// How the size of an effect is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Mean of the candidate over that of the live pool; 1 is no effect.
    MeanRatio,
    /// Common-language effect size: the share of pairs in which the candidate's is
    /// the larger, ties half; 0.5 is no effect.
    Cles,
}

/// An instant query of a Prometheus server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prometheus {
    /// As `http://127.0.0.1:9090`.
    pub url: String,
    pub query: String,
    /// At least one of the two.
    pub min: Option<Number>,
    pub max: Option<Number>,
    pub interval: Duration,
    pub timeout: Duration,
}

/// A hook that is called by HTTP POST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Webhook {
    pub url: String,
    pub hook: HookType,
    /// Handed on in the payload; sorted by key.
    pub metadata: Vec<(String, String)>,
    pub interval: Duration,
    pub timeout: Duration,
}

/// When a webhook is called and what its answer means; the words of Flagger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HookType {
    /// Before the first weight is set: holds until it says yes.
    ConfirmRollout,
    /// Before the first weight is set: a no rolls back.
    PreRollout,
    /// Again and again during an analysis.
    Rollout,
    /// Before promotion: holds until it says yes.
    ConfirmPromotion,
    /// After a rollout, whatever came of it; its answer changes nothing.
    PostRollout,
    /// Again and again: a yes rolls back. Rollback never waits for it.
    Rollback,
    /// Told of everything that happens; its answer changes nothing.
    Event,
}

/// A program of the agent's `exec_dir`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exec {
    /// Name of a file in that directory; no path, no arguments.
    pub file: String,
    pub interval: Duration,
    pub timeout: Duration,
}

impl GateSpec {
    /// What the rollout does about an outcome.
    pub fn policy(&self, outcome: Outcome) -> Policy {
        match outcome {
            Outcome::Pass => Policy::Advance,
            Outcome::Fail => self.on_fail,
            Outcome::Inconclusive => self.on_inconclusive,
            Outcome::NoData => self.on_no_data,
            Outcome::Error => self.on_error,
        }
    }

    /// When it is asked.
    pub fn when(&self) -> When {
        match &self.judge {
            Judge::Sequential(_) | Judge::Threshold(_) => When::Window,
            Judge::MannWhitney(_) => When::AtEnd,
            Judge::Prometheus(it) => When::Every(it.interval),
            Judge::Exec(it) => When::Every(it.interval),
            Judge::Webhook(it) => match it.hook {
                HookType::PreRollout | HookType::PostRollout | HookType::Event => When::Hook,
                _ => When::Every(it.interval),
            },
        }
    }

    /// How long it may take to answer; `None` for a gate that asks nobody.
    pub fn timeout(&self) -> Option<Duration> {
        match &self.judge {
            Judge::Prometheus(it) => Some(it.timeout),
            Judge::Webhook(it) => Some(it.timeout),
            Judge::Exec(it) => Some(it.timeout),
            _ => None,
        }
    }

    /// Whether it reaches out of the agent: such gates come from the agent's own
    /// file only.
    pub fn reaches_out(&self) -> bool {
        matches!(
            self.judge,
            Judge::Prometheus(_) | Judge::Webhook(_) | Judge::Exec(_)
        )
    }
}

#[cfg(test)]
mod power_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::{self, Value};

    /// Gates from the value of `gates =`.
    pub(super) fn read(text: &str) -> Vec<GateSpec> {
        try_read(text).unwrap()
    }

    pub(super) fn try_read(text: &str) -> Result<Vec<GateSpec>, String> {
        let root = tree::from_toml(&format!("gates = {text}")).map_err(|e| e.text)?;
        let Value::Table(entries) = root.value else {
            return Err("no table".into());
        };
        gates(&entries[0]).map_err(|fault| fault.text)
    }

    #[test]
    fn each_outcome_has_its_policy() {
        let gate =
            &read(r#"[{ judge = "sequential", on_no_data = "advance", on_error = "rollback" }]"#)
                [0];
        for (outcome, policy) in [
            (Outcome::Pass, Policy::Advance),
            (Outcome::Fail, Policy::Rollback),
            (Outcome::NoData, Policy::Advance),
            (Outcome::Inconclusive, Policy::Hold),
            (Outcome::Error, Policy::Rollback),
        ] {
            assert_eq!(gate.policy(outcome), policy, "{outcome:?}");
        }
    }
}
