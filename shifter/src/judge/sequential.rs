//! The sequential judge: its measures share `alpha`, each bets for itself.

use serde::{Deserialize, Serialize};

use super::{
    Judgement, Measure, Outcome, PassWhen, Sequential, Window,
    failures::Failures,
    state::histogram_of,
    times::Times,
    words::{Word as _, show_evidence, show_share},
};
use crate::model::duration::short;

/// What each measure has seen, in the order of the gate's measures.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct SequentialState {
    measures: Vec<Seen>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Seen {
    Failures(Failures),
    Times(Times),
}

/// What one measure says.
struct Said {
    /// The fewer of the two pools' samples.
    samples: u64,
    is_worse: bool,
    is_shown: bool,
    text: String,
}

impl SequentialState {
    pub fn new(spec: &Sequential) -> Self {
        let seen = |measure: &Measure| match measure {
            Measure::Failures => Seen::Failures(Failures::new()),
            _ => Seen::Times(Times::new()),
        };
        Self {
            measures: spec.measures.iter().map(seen).collect(),
        }
    }

    /// Whether this is the state of such a gate.
    pub fn fits(&self, spec: &Sequential) -> bool {
        let fits = |(seen, measure): (&Seen, &Measure)| match seen {
            Seen::Failures(it) => *measure == Measure::Failures && it.fits(),
            Seen::Times(it) => *measure != Measure::Failures && it.fits(),
        };
        self.measures.len() == spec.measures.len()
            && self.measures.iter().zip(&spec.measures).all(fits)
    }

    pub fn add(&mut self, spec: &Sequential, window: &Window) {
        let least = &spec.min_effect;
        for (seen, measure) in self.measures.iter_mut().zip(&spec.measures) {
            match seen {
                Seen::Failures(it) => it.add(&window.live, &window.candidate, least.ratio),
                Seen::Times(it) => {
                    let live = histogram_of(&window.live, *measure);
                    let candidate = histogram_of(&window.candidate, *measure);
                    if let (Some(live), Some(candidate)) = (live, candidate) {
                        it.add(live, candidate, least);
                    }
                }
            }
        }
    }

    pub fn judge(&self, spec: &Sequential, min_samples: u64) -> Judgement {
        let mut statistics = Vec::new();
        let alpha = spec.alpha.share();
        let alarm = spec.measures.len() as f64 / alpha;
        let mut said = Vec::with_capacity(self.measures.len());
        for (seen, measure) in self.measures.iter().zip(&spec.measures) {
            let word = measure.word();
            let (one, evidence, shown) = match seen {
                Seen::Failures(it) => failures_said(it, spec, alarm, 1.0 / alpha, &mut statistics),
                Seen::Times(it) => times_said(it, spec, word, alarm, 1.0 / alpha, &mut statistics),
            };
            statistics.push((format!("{word}.evidence"), evidence));
            statistics.push((format!("{word}.alarm_at"), alarm));
            statistics.push((format!("{word}.shown_evidence"), shown));
            said.push(one);
        }
        let (outcome, reason) = sum_up(&said, spec, min_samples);
        Judgement {
            outcome,
            reason,
            statistics,
        }
    }
}

fn failures_said(
    it: &Failures,
    spec: &Sequential,
    alarm: f64,
    shown_at: f64,
    statistics: &mut Vec<(String, f64)>,
) -> (Said, f64, f64) {
    let share = |(all, hits): (u64, u64)| {
        if all == 0 {
            0.0
        } else {
            hits as f64 / all as f64
        }
    };
    for (pool, sums) in [("live", it.live), ("candidate", it.candidate)] {
        statistics.push((format!("failures.{pool}.flows"), sums.0 as f64));
        statistics.push((format!("failures.{pool}.failed"), sums.1 as f64));
        statistics.push((format!("failures.{pool}.ratio"), share(sums)));
    }
    let evidence = it.worse.peak();
    let text = format!(
        "failures: candidate {} of {} flows, live {} of {}, at most {} more; evidence {} of {alarm:.0}",
        show_share(share(it.candidate)),
        it.candidate.0,
        show_share(share(it.live)),
        it.live.0,
        spec.min_effect.ratio,
        show_evidence(evidence),
    );
    let said = Said {
        samples: it.live.0.min(it.candidate.0),
        is_worse: evidence >= alarm,
        is_shown: it.shown.peak() >= shown_at,
        text,
    };
    (said, evidence, it.shown.peak())
}

fn times_said(
    it: &Times,
    spec: &Sequential,
    word: &str,
    alarm: f64,
    shown_at: f64,
    statistics: &mut Vec<(String, f64)>,
) -> (Said, f64, f64) {
    let mut medians = [0.0; 2];
    let pools = [("candidate", &it.candidate), ("live", &it.live)];
    for ((pool, times), median) in pools.into_iter().zip(&mut medians) {
        statistics.push((format!("{word}.{pool}.samples"), times.count() as f64));
        for (name, q) in [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99)] {
            if let Some(ns) = times.quantile_ns(q) {
                statistics.push((format!("{word}.{pool}.{name}"), ns));
            }
        }
        *median = times.quantile_ns(0.5).unwrap_or(0.0);
    }
    let evidence = it.peak();
    let text = format!(
        "{word}: median of candidate {} of {} flows, of live {} of {}, at most {} or {} more; evidence {} of {alarm:.0}",
        short(medians[0]),
        it.candidate.count(),
        short(medians[1]),
        it.live.count(),
        short(spec.min_effect.time.as_nanos() as f64),
        spec.min_effect.time_relative,
        show_evidence(evidence),
    );
    let said = Said {
        samples: it.live.count().min(it.candidate.count()),
        is_worse: evidence >= alarm,
        is_shown: it.shown() >= shown_at,
        text,
    };
    (said, evidence, it.shown())
}

fn sum_up(said: &[Said], spec: &Sequential, min_samples: u64) -> (Outcome, String) {
    let texts = |keep: &dyn Fn(&Said) -> bool| {
        let texts: Vec<&str> = said
            .iter()
            .filter(|it| keep(it))
            .map(|it| &*it.text)
            .collect();
        texts.join("; ")
    };
    let has_enough = |it: &Said| it.samples >= min_samples;
    let is_worse = |it: &Said| has_enough(it) && it.is_worse;
    if said.iter().any(is_worse) {
        let text = texts(&is_worse);
        return (Outcome::Fail, format!("the candidate is worse: {text}"));
    }
    if !said.iter().all(has_enough) {
        let text = texts(&|it| !has_enough(it));
        let reason = format!("fewer than {min_samples} samples of a pool: {text}");
        return (Outcome::NoData, reason);
    }
    match spec.pass_when {
        PassWhen::NoAlarm => (Outcome::Pass, format!("no alarm: {}", texts(&|_| true))),
        PassWhen::Shown if said.iter().all(|it| it.is_shown) => {
            let text = texts(&|_| true);
            (Outcome::Pass, format!("shown not to be worse: {text}"))
        }
        PassWhen::Shown => {
            let text = texts(&|it| !it.is_shown);
            (Outcome::Inconclusive, format!("not shown yet: {text}"))
        }
    }
}
