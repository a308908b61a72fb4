//! What a gate has seen since its step began: taken in window by window, judged at
//! any time, stored and restored without a bit lost.

use serde::{Deserialize, Serialize};

use super::{
    GateSpec, Judge, Judgement, Measure, Outcome, mann_whitney, sequential::SequentialState,
    sparse, threshold,
};
use crate::model::signals::{Histogram, PoolSignals};

/// What both pools did over one and the same time: differences of two readings.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Window {
    pub live: PoolSignals,
    pub candidate: PoolSignals,
}

/// Sums of one gate. Begun anew with each step.
#[derive(Clone, PartialEq, Debug)]
pub struct GateState(Seen);

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Seen {
    Sequential(SequentialState),
    Sums(Box<Sums>),
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
struct Sums {
    #[serde(with = "sparse::signals")]
    live: PoolSignals,
    #[serde(with = "sparse::signals")]
    candidate: PoolSignals,
}

/// Why a stored state is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    #[error("the stored state of gate {gate:?} cannot be read: {text}; its step begins anew")]
    Unreadable { gate: String, text: String },
    #[error(
        "the stored state of gate {gate:?} is that of another judge or of other measures; its step begins anew"
    )]
    Other { gate: String },
}

impl GateState {
    /// Nothing seen; `None` for a gate that reaches out of the agent.
    pub fn new(gate: &GateSpec) -> Option<Self> {
        match &gate.judge {
            Judge::Sequential(spec) => Some(Self(Seen::Sequential(SequentialState::new(spec)))),
            Judge::Threshold(_) | Judge::MannWhitney(_) => Some(Self(Seen::Sums(Box::default()))),
            _ => None,
        }
    }

    /// Takes in a window.
    pub fn add(&mut self, gate: &GateSpec, window: &Window) {
        match (&mut self.0, &gate.judge) {
            (Seen::Sequential(state), Judge::Sequential(spec)) => state.add(spec, window),
            (Seen::Sums(sums), _) => {
                add(&mut sums.live, &window.live);
                add(&mut sums.candidate, &window.candidate);
            }
            _ => {}
        }
    }

    /// What the gate says of all that it has seen. Changes nothing.
    pub fn judge(&self, gate: &GateSpec) -> Judgement {
        match (&self.0, &gate.judge) {
            (Seen::Sequential(state), Judge::Sequential(spec)) => {
                state.judge(spec, gate.min_samples)
            }
            (Seen::Sums(sums), Judge::Threshold(spec)) => {
                threshold::judge(spec, gate.min_samples, &sums.candidate)
            }
            (Seen::Sums(sums), Judge::MannWhitney(spec)) => {
                let times = |pool| histogram_of(pool, spec.measure);
                match (times(&sums.live), times(&sums.candidate)) {
                    (Some(live), Some(candidate)) => {
                        mann_whitney::judge(spec, gate.min_samples, live, candidate)
                    }
                    _ => not_mine(gate),
                }
            }
            _ => not_mine(gate),
        }
    }

    /// The same where the live pool is given no new flows. A judge that compares has
    /// nothing to compare with then, and would wait for ever: it passes once the
    /// candidate has enough samples. Thresholds judge as always.
    pub fn judge_alone(&self, gate: &GateSpec) -> Judgement {
        let judgement = self.judge(gate);
        let compares = matches!(gate.judge, Judge::Sequential(_) | Judge::MannWhitney(_));
        if !compares || judgement.outcome != Outcome::NoData {
            return judgement;
        }
        let is_count = |name: &str| {
            name.contains(".candidate.") && (name.ends_with(".flows") || name.ends_with(".samples"))
        };
        let counts = judgement.statistics.iter();
        let least = counts
            .filter(|(name, _)| is_count(name))
            .map(|(_, count)| *count)
            .fold(f64::INFINITY, f64::min);
        if !least.is_finite() || least < gate.min_samples as f64 {
            return judgement;
        }
        Judgement {
            outcome: Outcome::Pass,
            reason: format!(
                "the live pool is given no new flows to compare with; the candidate has {least} samples"
            ),
            ..judgement
        }
    }

    /// For the store.
    pub fn to_json(&self) -> serde_json::Value {
        // Tables of whole numbers always have a JSON.
        serde_json::to_value(&self.0).unwrap_or_default()
    }

    /// From the store. A state that is not this gate's is refused.
    pub fn from_json(gate: &GateSpec, json: &serde_json::Value) -> Result<Self, StateError> {
        let name = || gate.name.clone();
        let seen = Seen::deserialize(json).map_err(|error| StateError::Unreadable {
            gate: name(),
            text: error.to_string(),
        })?;
        let fits = match (&seen, &gate.judge) {
            (Seen::Sequential(state), Judge::Sequential(spec)) => state.fits(spec),
            (Seen::Sums(_), Judge::Threshold(_) | Judge::MannWhitney(_)) => true,
            _ => false,
        };
        if fits {
            Ok(Self(seen))
        } else {
            Err(StateError::Other { gate: name() })
        }
    }
}

fn not_mine(gate: &GateSpec) -> Judgement {
    Judgement {
        outcome: Outcome::Error,
        reason: format!(
            "what gate {:?} has seen is that of another judge",
            gate.name
        ),
        statistics: Vec::new(),
    }
}

/// The times of a measure; none of [`Measure::Failures`].
pub(super) fn histogram_of(pool: &PoolSignals, measure: Measure) -> Option<&Histogram> {
    match measure {
        Measure::Failures => None,
        Measure::Handshake => Some(&pool.handshake),
        Measure::FirstByte => Some(&pool.first_byte),
        Measure::Duration => Some(&pool.duration),
    }
}

fn add(sum: &mut PoolSignals, more: &PoolSignals) {
    for (sum, more) in [
        (&mut sum.attempts, more.attempts),
        (&mut sum.answered, more.answered),
        (&mut sum.syn_retransmits, more.syn_retransmits),
        (&mut sum.unanswered, more.unanswered),
        (&mut sum.refused, more.refused),
        (&mut sum.resets_before_data, more.resets_before_data),
        (&mut sum.resets_after_data, more.resets_after_data),
        (&mut sum.client_resets, more.client_resets),
        (&mut sum.client_retransmits, more.client_retransmits),
        (&mut sum.backend_retransmits, more.backend_retransmits),
        (&mut sum.ended, more.ended),
        (&mut sum.bytes, more.bytes),
    ] {
        *sum = sum.saturating_add(more);
    }
    for (sum, more) in [
        (&mut sum.handshake, &more.handshake),
        (&mut sum.first_byte, &more.first_byte),
        (&mut sum.duration, &more.duration),
    ] {
        for (count, here) in sum.0.iter_mut().zip(more.0.iter()) {
            *count = count.saturating_add(*here);
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
