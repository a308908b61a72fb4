//! Two builds of shifter take turns on one host, one hot replacement after the other: same
//! interfaces, same tables, same memory.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Measured, lab, load,
    way::{check_agent, shifter},
};
use crate::{
    bench::{report, stat::Spread},
    topology::Family,
};

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// Another build than the one that the bench runs.
    pub other: PathBuf,
    /// Hosts, one after the other.
    pub rounds: usize,
    /// Turns of each build on each host.
    pub turns: usize,
}

/// Index of the failed requests, which are added up.
const FAILED: usize = 4;

/// What is measured in a turn, and how it is printed.
const METRICS: [&str; FAILED + 1] = [
    "requests/s, kept alive",
    "CPU s/million requests",
    "new connections/s",
    "CPU s/million connections",
    "failed requests",
];

/// All turns of both builds at one hook.
#[derive(Clone, Debug)]
pub struct Line {
    hook: &'static str,
    own: [Spread; METRICS.len()],
    other: [Spread; METRICS.len()],
}

/// Measures; `progress` is told of each host.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Measured<Line>> {
    if !options.other.is_file() {
        bail!(
            "there is no other build at {}: name a `shifter` that `cargo xtask build --release` has made of other sources",
            options.other.display()
        );
    }
    let mut lines = ["tc", "xdp"].map(|hook| Line {
        hook,
        own: Default::default(),
        other: Default::default(),
    });
    let mut complaints = Vec::new();
    for round in 0..options.rounds {
        for line in &mut lines {
            progress(&format!(
                "round {} of {}: {}",
                round + 1,
                options.rounds,
                line.hook
            ));
            if let Err(error) = host(options, line)? {
                complaints.push(format!("{}, round {}: {error:#}", line.hook, round + 1));
            }
        }
    }
    Ok(Measured {
        lines: lines.into(),
        complaints,
    })
}

/// Adds to the line what one host shows, and says whether shifter kept every flow.
fn host(options: &Options, line: &mut Line) -> Result<Result<()>> {
    let lab = lab()?;
    let _servers = load::servers(&lab)?;
    let mut agent = shifter(&lab, line.hook)?;
    let to = [lab.vip(Family::V4); 2];
    let (mut connections, mut all_failed) = (0, 0);
    for turn in 0..2 * options.turns {
        // Own, other, other, own, so that neither is always the first.
        let is_own = matches!(turn % 4, 0 | 3);
        let build = (!is_own).then(|| options.other.clone());
        agent.change(|settings| settings.build = build)?;
        agent
            .replace()
            .context("one build takes over from the other")?;
        let first = load::wrk(&lab, to, 1, true)?;
        let kept = load::wrk(&lab, to, 1, false)?;
        let short = load::wrk(&lab, to, 1, true)?;
        let whose = format!("{}, {}", line.hook, if is_own { "own" } else { "other" });
        for requests in [&first, &kept, &short] {
            requests.tell(&whose);
        }
        let failed = first.failed + kept.failed + short.failed;
        connections += first.count + short.count;
        all_failed += failed;
        let found = [
            kept.per_s,
            kept.cpu_s_per_million,
            short.per_s,
            short.cpu_s_per_million,
            failed as f64,
        ];
        let spreads = if is_own {
            &mut line.own
        } else {
            &mut line.other
        };
        for (spread, value) in spreads.iter_mut().zip(found) {
            spread.values.push(value);
        }
    }
    Ok(check_agent(&agent, connections, all_failed))
}

/// This build's values as multiples of the other's in the neighbouring turn.
fn ratios(line: &Line, metric: usize) -> Spread {
    let pairs = line.own[metric]
        .values
        .iter()
        .zip(&line.other[metric].values);
    Spread {
        values: pairs.map(|(own, other)| own / other).collect(),
    }
}

/// For people.
pub fn table(lines: &[Line]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .flat_map(|line| {
            METRICS.iter().enumerate().map(|(i, name)| {
                let sum = |spread: &Spread| format!("{:.0}", spread.values.iter().sum::<f64>());
                let shown = match i {
                    FAILED => [sum(&line.own[i]), sum(&line.other[i]), "-".to_owned()],
                    _ => [
                        line.own[i].text(1),
                        line.other[i].text(1),
                        ratios(line, i).text(3),
                    ],
                };
                let mut row = vec![line.hook.to_owned(), (*name).to_owned()];
                row.extend(shown);
                row
            })
        })
        .collect();
    let head = ["hook", "what", "this build", "the other", "ratio"];
    report::table(&head, &rows)
}

/// For programs.
pub fn json(lines: &[Line]) -> Value {
    let lines = lines.iter().map(|line| {
        let metrics: Vec<Value> = METRICS
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let (own, other) = (line.own[i].json(), line.other[i].json());
                match i {
                    FAILED => json!({ "what": name, "own": own, "other": other }),
                    _ => {
                        let ratio = ratios(line, i).json();
                        json!({ "what": name, "own": own, "other": other, "ratio": ratio })
                    }
                }
            })
            .collect();
        json!({ "hook": line.hook, "metrics": metrics })
    });
    Value::Array(lines.collect())
}
