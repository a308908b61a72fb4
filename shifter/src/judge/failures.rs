//! The sequential test on failures: of the candidate's flows a larger share fails
//! than of the live pool's, by more than the least effect.

use serde::{Deserialize, Serialize};

use super::{
    Ratio,
    evidence::{Bet, Evidence, Null, Pair},
};
use crate::model::signals::PoolSignals;

/// How far above the border the candidate's share may be.
const WORSE: [Bet; 6] = [
    Bet::Above(0.0025),
    Bet::Above(0.01),
    Bet::Above(0.04),
    Bet::Above(0.15),
    Bet::Above(0.5),
    Bet::AsBefore,
];
const NOT_WORSE: [Bet; 2] = [Bet::Equal, Bet::AsBefore];

/// What a test on failures has seen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Failures {
    /// Sums of flows and of failures.
    pub live: (u64, u64),
    pub candidate: (u64, u64),
    /// Failures of windows that had fewer flows than failures: counted later.
    over: (u64, u64),
    pub worse: Evidence,
    pub shown: Evidence,
}

impl Failures {
    pub fn new() -> Self {
        Self {
            live: (0, 0),
            candidate: (0, 0),
            over: (0, 0),
            worse: Evidence::new(WORSE.len()),
            shown: Evidence::new(NOT_WORSE.len()),
        }
    }

    pub fn fits(&self) -> bool {
        self.worse.fits(WORSE.len()) && self.shown.fits(NOT_WORSE.len())
    }

    /// Takes in a window. A failure may be seen windows after its flow was
    /// counted: what is above the flows of this window waits for the next.
    pub fn add(&mut self, live: &PoolSignals, candidate: &PoolSignals, least: Ratio) {
        let live_hits = part(live, &mut self.live, &mut self.over.0);
        let candidate_hits = part(candidate, &mut self.candidate, &mut self.over.1);
        let pair = Pair {
            live: live.attempts,
            live_hits,
            candidate: candidate.attempts,
            candidate_hits,
        };
        self.worse.add(pair, Null::NotWorse, least.share(), &WORSE);
        self.shown.add(pair, Null::Worse, least.share(), &NOT_WORSE);
    }
}

fn part(pool: &PoolSignals, sums: &mut (u64, u64), over: &mut u64) -> u64 {
    let failures = pool.failures();
    sums.0 = sums.0.saturating_add(pool.attempts);
    sums.1 = sums.1.saturating_add(failures);
    let waiting = over.saturating_add(failures);
    let hits = waiting.min(pool.attempts);
    *over = waiting - hits;
    hits
}
