//! A plan: steps in their order, and what to do where a step is in doubt.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::as_text;
use crate::model::{PoolName, Weight};

/// What a rollout does where it cannot know whether green is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDoubt {
    /// Stay at this step, and say why.
    #[default]
    Hold,
    /// Go on as if it were good.
    Advance,
    /// Give the live pool everything again.
    Rollback,
}

impl fmt::Display for OnDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hold => "hold",
            Self::Advance => "advance",
            Self::Rollback => "rollback",
        })
    }
}

impl FromStr for OnDoubt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hold" => Ok(Self::Hold),
            "advance" => Ok(Self::Advance),
            "rollback" => Ok(Self::Rollback),
            _ => Err(format!(
                "{text:?} is none of the policies: write \"hold\", \"advance\" or \"rollback\""
            )),
        }
    }
}

impl From<crate::judge::Policy> for OnDoubt {
    fn from(policy: crate::judge::Policy) -> Self {
        match policy {
            crate::judge::Policy::Hold => Self::Hold,
            crate::judge::Policy::Advance => Self::Advance,
            crate::judge::Policy::Rollback => Self::Rollback,
        }
    }
}

/// What the machine knows of a gate: its name, and its policies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GatePolicy {
    pub name: String,
    pub on_fail: OnDoubt,
    pub on_no_data: OnDoubt,
    pub on_inconclusive: OnDoubt,
    pub on_error: OnDoubt,
}

/// One step. Times in ms.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Give the candidate this share of new flows.
    Weight {
        #[serde(with = "as_text")]
        candidate: Weight,
    },
    /// Wait so long, or until told to advance.
    Pause { for_ms: Option<u64> },
    /// Wait so long while the gates of these indices judge; go on when none of
    /// them objects.
    Analyse { for_ms: u64, gates: Vec<usize> },
    /// Wait until the pool carries no flow, or so long.
    AwaitPool {
        #[serde(with = "as_text")]
        pool: PoolName,
        deadline_ms: u64,
    },
    /// Offer the backend no new flows.
    Drain { backend: SocketAddr },
    /// Wait until these backends carry no flow, or so long.
    AwaitDrained {
        backends: Vec<SocketAddr>,
        deadline_ms: u64,
    },
    /// Run a hook of the agent's own configuration, for a backend or for the rollout.
    Hook {
        name: String,
        backend: Option<SocketAddr>,
        on_error: OnDoubt,
    },
    /// Wait until a person says that these backends are updated.
    AwaitPerson { backends: Vec<SocketAddr> },
    /// Wait until none of these backends is known to be down.
    AwaitHealthy {
        backends: Vec<SocketAddr>,
        deadline_ms: u64,
    },
    /// Offer the backend new flows again.
    Undrain { backend: SocketAddr },
    /// The candidate takes everything and becomes live.
    Promote,
}

impl Step {
    /// How long it takes if all goes well, in ms.
    pub fn expected_ms(&self) -> u64 {
        match self {
            Self::Pause { for_ms } => for_ms.unwrap_or(0),
            Self::Analyse { for_ms, .. } => *for_ms,
            Self::AwaitPool { deadline_ms, .. }
            | Self::AwaitDrained { deadline_ms, .. }
            | Self::AwaitHealthy { deadline_ms, .. } => *deadline_ms,
            _ => 0,
        }
    }

    /// Whether only a person ends it.
    pub fn awaits_person(&self) -> bool {
        matches!(
            self,
            Self::Pause { for_ms: None } | Self::AwaitPerson { .. }
        )
    }

    /// Backends whose update is under way in this step.
    pub fn updates(&self) -> &[SocketAddr] {
        match self {
            Self::Hook {
                backend: Some(backend),
                ..
            } => std::slice::from_ref(backend),
            Self::AwaitPerson { backends } | Self::AwaitHealthy { backends, .. } => backends,
            _ => &[],
        }
    }
}

/// `10.0.0.11:80, 10.0.0.12:80`.
pub fn list(backends: &[SocketAddr]) -> String {
    let texts: Vec<String> = backends.iter().map(SocketAddr::to_string).collect();
    texts.join(", ")
}

fn time(ms: u64) -> String {
    crate::model::duration::show(std::time::Duration::from_millis(ms))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight { candidate } => write!(f, "weight {candidate}"),
            Self::Pause { for_ms: Some(ms) } => write!(f, "pause for {}", time(*ms)),
            Self::Pause { for_ms: None } => f.write_str("pause until told to advance"),
            Self::Analyse { for_ms, .. } => write!(f, "analyse for {}", time(*for_ms)),
            Self::AwaitPool { pool, deadline_ms } => {
                write!(
                    f,
                    "wait until {pool} has no flows, {} at most",
                    time(*deadline_ms)
                )
            }
            Self::Drain { backend } => write!(f, "drain {backend}"),
            Self::AwaitDrained {
                backends,
                deadline_ms,
            } => write!(
                f,
                "wait until {} carries no flows, {} at most",
                list(backends),
                time(*deadline_ms)
            ),
            Self::Hook { name, backend, .. } => match backend {
                Some(backend) => write!(f, "run hook {name:?} for {backend}"),
                None => write!(f, "run hook {name:?}"),
            },
            Self::AwaitPerson { backends } => write!(
                f,
                "update {} by hand, then `shifter rollout advance`",
                list(backends)
            ),
            Self::AwaitHealthy { backends, .. } => {
                write!(f, "wait until {} is healthy", list(backends))
            }
            Self::Undrain { backend } => write!(f, "undrain {backend}"),
            Self::Promote => f.write_str("promote"),
        }
    }
}

/// Steps and policies of one rollout.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The pool that may gain.
    #[serde(with = "as_text")]
    pub candidate: PoolName,
    pub steps: Vec<Step>,
    /// The rollout is over when it comes to this step…
    pub end: usize,
    /// …or, when told to promote, goes on here and ends with the last step.
    /// `None`: there is nothing to promote.
    pub promote_at: Option<usize>,
    pub gates: Vec<GatePolicy>,
    /// Those of them that watch the traffic, and not one moment.
    pub watching: Vec<usize>,
    /// A step that takes so much longer than it should is a failure, in ms.
    pub progress_deadline_ms: Option<u64>,
    /// The kernel takes the weight back when the agent was away for so long, in ms.
    pub lease_ms: u64,
    /// Backends that were drained before, which the plan leaves so.
    pub spares: Vec<SocketAddr>,
}

impl Plan {
    /// Whether it is over at this step.
    pub fn is_over(&self, step: usize, promoting: bool) -> bool {
        let end = if promoting {
            self.steps.len()
        } else {
            self.end
        };
        step >= end
    }

    /// Gates that may judge in this step: those of an analysis, and while it only
    /// waits, those of every analysis.
    pub fn judges_in(&self, step: usize) -> Vec<usize> {
        match self.steps.get(step) {
            Some(Step::Analyse { gates, .. }) => gates.clone(),
            Some(Step::Pause { .. } | Step::AwaitPool { .. } | Step::Hook { .. }) => {
                self.watching.clone()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a step changes the weight, so that a lease guards it.
    pub fn has_weight(&self) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::Weight { .. }))
    }
}
