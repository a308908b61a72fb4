//! Evidence that one share is larger than another, which may be looked at at any
//! time: a test by betting on windows of counts.
//!
//! # What is tested
//!
//! In each window `n_l` flows of the live pool and `n_c` of the candidate are
//! counted, and how many of each have a property (failed; were late). The null
//! hypothesis is `θ_c ≤ θ_l + δ` for the mean shares **within each window**: what
//! changes with time for both pools alike is no evidence.
//!
//! # How
//!
//! For an alternative `(θ_l*, θ_c*)` outside the null, chosen before the window is
//! seen, let `(θ_l°, θ_c°)` be the point of the null nearest to it in relative
//! entropy, weighted by `n_l` and `n_c`. Then
//! `e = Π p_{θ*}(y) / p_{θ°}(y)` over the flows of the window has an expectation of
//! at most 1 under every member of the null: R. Turner and P. Grünwald, "Exact
//! anytime-valid confidence intervals for contingency tables and beyond",
//! Statistics & Probability Letters 198 (2023), theorem 1, after R. Turner, A. Ly,
//! P. Grünwald, "Generic E-variables for exact sequential k-sample tests that allow
//! for optional stopping" (2021). In short: a flow of share θ contributes a factor
//! of expectation `1 + (θ − θ°)(θ* − θ°) / (θ°(1 − θ°))`; by `1 + x ≤ exp(x)` the
//! product is at most the exponential of a sum that is linear in the mean shares,
//! and the sum is not positive in the null because θ° is nearest.
//!
//! The product of such factors, one a window, is a test supermartingale, and so is
//! a mean of several with different alternatives (I. Waudby-Smith and A. Ramdas,
//! "Estimating means of bounded random variables by betting", JRSS B 86, 2024). By
//! Ville's inequality it ever reaches `1/α` with a probability of at most α,
//! however often it is looked at.
//!
//! Each bettor puts in its stake bit by bit, `1/(t(t + 1))` in its window `t`, and
//! keeps the rest, so that a fault which begins late meets money that was not lost
//! before. The sum of what is put in is below 1: still a test supermartingale.
//!
//! What is taken for granted: given the past, flows of a window fail independently.

use serde::{Deserialize, Serialize};

/// A float that is stored as its bits, so that a restart loses nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.to_bits())
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::from_bits(u64::deserialize(deserializer)?);
        // Minus infinity is a stake that is lost.
        if number.is_nan() || number == f64::INFINITY {
            return Err(serde::de::Error::custom("a stored number is not finite"));
        }
        Ok(Self(number))
    }
}

/// Counts of one window, both pools over the same time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Pair {
    pub live: u64,
    /// At most `live`.
    pub live_hits: u64,
    pub candidate: u64,
    /// At most `candidate`.
    pub candidate_hits: u64,
}

/// Which way a hypothesis lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Null {
    /// `θ_c ≤ θ_l + δ`: rejected, the candidate is worse.
    NotWorse,
    /// `θ_c ≥ θ_l + δ`: rejected, it is shown not to be.
    Worse,
}

/// The point `(θ_l°, θ_c°)` of the null nearest to an alternative outside it.
pub(super) fn nearest(pair: Pair, delta: f64, live: f64, candidate: f64) -> (f64, f64) {
    let (n_l, n_c) = (pair.live as f64, pair.candidate as f64);
    if delta == 0.0 {
        let mean = (n_l * live + n_c * candidate) / (n_l + n_c);
        return (mean, mean);
    }
    // On the border θ_c = θ_l + δ: the zero of the derivative, which rises.
    let part = |n: f64, t: f64, star: f64| {
        let spread = t * (1.0 - t);
        let slope = n * (t - star) / spread;
        let curve = n * (spread - (t - star) * (1.0 - 2.0 * t)) / (spread * spread);
        (slope, curve)
    };
    let (mut low, mut high) = (1e-12, 1.0 - delta - 1e-12);
    let mut middle = live.clamp(low, high);
    for round in 0..200 {
        let (l, c) = (
            part(n_l, middle, live),
            part(n_c, middle + delta, candidate),
        );
        if l.0 + c.0 > 0.0 {
            high = middle;
        } else {
            low = middle;
        }
        // Newton's step, but where it leaves the bracket or is slow, the half.
        let newton = middle - (l.0 + c.0) / (l.1 + c.1);
        let is_within = newton > low && newton < high;
        if is_within && (newton - middle).abs() <= 1e-13 * middle.min(1.0 - middle) {
            break;
        }
        middle = if is_within && round % 3 != 2 {
            newton
        } else {
            0.5 * (low + high)
        };
        if high - low <= 1e-15 * high {
            break;
        }
    }
    (middle, middle + delta)
}

/// Logarithm of the factor of one window; 0 if the alternative is no bet against
/// the null, or a pool had no flow.
pub(super) fn log_factor(pair: Pair, null: Null, delta: f64, live: f64, candidate: f64) -> f64 {
    let is_outside = match null {
        Null::NotWorse => candidate > live + delta,
        Null::Worse => candidate < live + delta,
    };
    if !is_outside || pair.live == 0 || pair.candidate == 0 {
        return 0.0;
    }
    let (live_null, candidate_null) = nearest(pair, delta, live, candidate);
    let part = |hits: u64, all: u64, star: f64, null: f64| {
        let (hits, misses) = (hits as f64, (all - hits) as f64);
        hits * (star / null).ln() + misses * ((1.0 - star) / (1.0 - null)).ln()
    };
    part(pair.live_hits, pair.live, live, live_null)
        + part(
            pair.candidate_hits,
            pair.candidate,
            candidate,
            candidate_null,
        )
}

/// Shares as they were, older windows with less weight.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    all: Exact,
    hits: Exact,
}

impl Memory {
    fn add(&mut self, all: u64, hits: u64, keep: f64) {
        self.all.0 = self.all.0 * keep + all as f64;
        self.hits.0 = self.hits.0 * keep + hits as f64;
    }

    /// Within (0, 1); half a flow of each kind is added.
    fn share(&self) -> f64 {
        (self.hits.0 + 0.5) / (self.all.0 + 1.0)
    }
}

/// What a bettor bets on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Bet {
    /// The candidate's share lies this much above the border.
    Above(f64),
    /// Its odds are those of the live pool times this.
    Odds(f64),
    /// It is what it has been, by its memory.
    AsBefore,
    /// It is the live pool's.
    Equal,
}

/// How much of what it knows a bettor keeps from window to window.
const KEEP: f64 = 0.95;
const SHARE: (f64, f64) = (1e-9, 1.0 - 1e-9);

/// Stakes on several alternatives against one null.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Evidence {
    /// Windows with a bet.
    windows: u64,
    live: Memory,
    candidate: Memory,
    /// Logarithm of what each bettor has on the table.
    stakes: Vec<Exact>,
    /// Logarithm of the mean of what the bettors have.
    whole: Exact,
    /// The largest one so far.
    peak: Exact,
}

impl Evidence {
    /// Nothing seen yet.
    pub fn new(bettors: usize) -> Self {
        Self {
            windows: 0,
            live: Memory::default(),
            candidate: Memory::default(),
            stakes: vec![Exact(f64::NEG_INFINITY); bettors],
            whole: Exact(0.0),
            peak: Exact(0.0),
        }
    }

    /// Whether this is the state of as many bettors.
    pub fn fits(&self, bettors: usize) -> bool {
        self.stakes.len() == bettors
    }

    /// Takes in a window. The first one only teaches what to bet on.
    pub fn add(&mut self, pair: Pair, null: Null, delta: f64, bets: &[Bet]) {
        if self.live.all.0 > 0.0 && pair.live > 0 && pair.candidate > 0 {
            self.bet(pair, null, delta, bets);
        }
        self.live.add(pair.live, pair.live_hits, KEEP);
        self.candidate
            .add(pair.candidate, pair.candidate_hits, KEEP);
    }

    /// The same with what earlier windows say of the live pool given, because what
    /// counts as a hit changes from window to window.
    pub fn add_knowing(&mut self, pair: Pair, null: Null, past: (u64, u64), bets: &[Bet]) {
        self.live = Memory {
            all: Exact(past.0 as f64),
            hits: Exact(past.1 as f64),
        };
        if pair.live > 0 && pair.candidate > 0 {
            self.bet(pair, null, 0.0, bets);
        }
        self.candidate
            .add(pair.candidate, pair.candidate_hits, KEEP);
    }

    fn bet(&mut self, pair: Pair, null: Null, delta: f64, bets: &[Bet]) {
        self.windows += 1;
        let t = self.windows as f64;
        let put_in = -(t * (t + 1.0)).ln();
        let live = self.live.share();
        let mut sum = 0.0;
        for (stake, bet) in self.stakes.iter_mut().zip(bets) {
            let (live, candidate) = self.candidate.against(live, delta, *bet);
            let factor = log_factor(pair, null, delta, live, candidate);
            stake.0 = log_sum(stake.0, put_in) + factor;
            // What was never put in is kept.
            sum += stake.0.min(700.0).exp() + 1.0 / (t + 1.0);
        }
        self.whole.0 = (sum / bets.len() as f64).ln();
        self.peak.0 = self.peak.0.max(self.whole.0);
    }

    /// What the bettors have now, as a factor of what they began with.
    pub fn whole(&self) -> f64 {
        self.whole.0.exp()
    }

    /// The largest evidence so far against the null, as a factor: at least `1/α`
    /// with a probability of at most α if the null holds.
    pub fn peak(&self) -> f64 {
        self.peak.0.exp()
    }
}

impl Memory {
    /// The alternative of a bet, within the open square of shares.
    fn against(&self, live: f64, delta: f64, bet: Bet) -> (f64, f64) {
        let live = live.clamp(SHARE.0, SHARE.1);
        let candidate = match bet {
            Bet::Above(more) => live + delta + more,
            Bet::Odds(times) => {
                let odds = times * live / (1.0 - live);
                odds / (1.0 + odds)
            }
            Bet::AsBefore => self.share(),
            Bet::Equal => live,
        };
        (live, candidate.clamp(SHARE.0, SHARE.1))
    }
}

/// `ln(exp(a) + exp(b))`.
fn log_sum(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
