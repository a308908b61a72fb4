//! Where a rollout is, what can happen to it, and what it asks for.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Facts, as_text};
use crate::{
    judge::{self, Judgement},
    model::Weight,
};

/// Format of a stored [`State`].
pub const VERSION: u32 = 1;

/// Where it is in its life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Phase {
    Running,
    /// A person has stopped its progress; gates go on judging.
    Paused,
    /// The live pool shall have everything again, and does not yet.
    RollingBack {
        reason: String,
    },
    Over {
        outcome: Outcome,
    },
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The candidate is live.
    Promoted,
    /// Every step was done, and nothing was to be promoted.
    Completed,
    /// The live pool has everything again, and drained backends have new flows.
    RolledBack { reason: String },
}

impl Outcome {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Completed => "completed",
            Self::RolledBack { .. } => "rolled back",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RolledBack { reason } => write!(f, "rolled back: {reason}"),
            other => f.write_str(other.word()),
        }
    }
}

/// What is to be done. Each is done once: whoever does it compares with what
/// is there before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// Give the candidate this share, guarded by the lease.
    Weight {
        #[serde(with = "as_text")]
        candidate: Weight,
    },
    Drain {
        backend: SocketAddr,
    },
    Undrain {
        backend: SocketAddr,
    },
    Hook {
        name: String,
        backend: Option<SocketAddr>,
    },
    Promote,
    /// Keep the weight as it is: the lease ends.
    Keep,
    /// Give the live pool everything, and these backends new flows again.
    /// And take them from these again, which only helped out.
    Rollback {
        undrain: Vec<SocketAddr>,
        drain: Vec<SocketAddr>,
    },
}

/// An action under a number that no other of the rollout bears.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effect {
    pub id: u64,
    #[serde(flatten)]
    pub action: Action,
}

/// What can happen.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Time passes; this is how things are.
    Tick(Facts),
    /// An effect was carried out.
    Done {
        id: u64,
    },
    /// An effect could not be carried out, and has changed nothing.
    Failed {
        id: u64,
        reason: String,
    },
    /// What a gate says now.
    Judged {
        gate: usize,
        judgement: Judgement,
    },
    Pause,
    Resume,
    /// Leave the step that it is in.
    Advance,
    /// Run the hook of its step again, which failed.
    Retry,
    /// Go to the end at once: everything to the candidate, which becomes live.
    Promote,
    /// Roll back.
    Abort {
        reason: String,
    },
    /// The live pool has everything again already, by somebody else.
    TakenBack {
        reason: String,
    },
}

/// What a gate concluded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    Inconclusive,
    NoData,
    Error,
}

impl Verdict {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::NoData => "no data",
            Self::Error => "error",
        }
    }
}

/// A judgement as it is kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Said {
    pub verdict: Verdict,
    pub reason: String,
    pub statistics: Vec<(String, f64)>,
}

impl From<Judgement> for Said {
    fn from(judgement: Judgement) -> Self {
        Self {
            verdict: match judgement.outcome {
                judge::Outcome::Pass => Verdict::Pass,
                judge::Outcome::Fail => Verdict::Fail,
                judge::Outcome::Inconclusive => Verdict::Inconclusive,
                judge::Outcome::NoData => Verdict::NoData,
                judge::Outcome::Error => Verdict::Error,
            },
            reason: judgement.reason,
            // JSON has no numbers beyond the finite ones.
            statistics: judgement
                .statistics
                .into_iter()
                .filter(|(_, value)| value.is_finite())
                .collect(),
        }
    }
}

/// Where a rollout is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub phase: Phase,
    /// Index of the step that it is in.
    pub step: usize,
    /// It was told to promote.
    pub promoting: bool,
    /// Time that counted in this step so far, in ms.
    pub spent_ms: u64,
    /// When it came to this step, and when it was last told the time; ms since 1970.
    pub entered_ms: i64,
    pub last_ms: i64,
    /// Share of the candidate that is in force by its writes.
    #[serde(with = "as_text")]
    pub weight: Weight,
    /// One of its weights is in force, if only 0%.
    pub wrote_weight: bool,
    /// Asked for, without a result yet.
    pub pending: Option<Effect>,
    /// The pending effect failed, so it is asked for again.
    pub failed: Option<String>,
    /// Number of the next effect.
    pub next_id: u64,
    /// Why it does not go on, although it would be time.
    pub holding: Option<String>,
    /// That is a freeze.
    #[serde(default)]
    pub frozen: bool,
    /// What each gate said last in this step.
    pub judged: Vec<Option<Said>>,
    /// Backends that it has drained.
    pub drained: Vec<SocketAddr>,
    /// Spare backends that it has brought in.
    pub brought_in: Vec<SocketAddr>,
    /// Flows that were still there when waiting for a drain ended.
    pub left_behind: u64,
    /// What shifter had dropped and evicted of live traffic when it began.
    pub cut_before: u64,
    /// Flows of the service that were ended on request when it began; by this agent,
    /// so it is not stored.
    #[serde(skip)]
    pub ended_before: u64,
}

impl State {
    /// At the first step, with nothing done.
    pub fn new(gates: usize, now_ms: i64) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Running,
            step: 0,
            promoting: false,
            spent_ms: 0,
            entered_ms: now_ms,
            last_ms: now_ms,
            weight: Weight::ZERO,
            wrote_weight: false,
            pending: None,
            failed: None,
            next_id: 1,
            holding: None,
            frozen: false,
            judged: vec![None; gates],
            drained: Vec::new(),
            brought_in: Vec::new(),
            left_behind: 0,
            cut_before: 0,
            ended_before: 0,
        }
    }

    /// Whether a weight of its own may be in force.
    pub fn has_written(&self) -> bool {
        self.wrote_weight
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Over { outcome } => Some(outcome),
            _ => None,
        }
    }

    /// "running", "holding", "paused", "rolling back", or how it ended.
    pub fn word(&self) -> &'static str {
        match &self.phase {
            Phase::Running if self.holding.is_some() => "holding",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::RollingBack { .. } => "rolling back",
            Phase::Over { outcome } => outcome.word(),
        }
    }
}
