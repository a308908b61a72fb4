//! End to end: requests, connections and bulk traffic over every way, in
//! interleaved rounds.

pub mod compare;
mod load;
mod way;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use self::{
    load::Requests,
    way::{InForce, Way},
};
use super::{report, stat::Spread};
use crate::{
    command::Process,
    need::on_path,
    topology::{self, Lab, Placement},
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub object: PathBuf,
    pub rounds: usize,
    /// Of each kind of load.
    pub seconds: u64,
    /// Ways with any of these in their names; none: all.
    pub ways: Vec<String>,
}

/// Visits of each way in a round. All ways stand for the whole round, so that these are
/// short and close together: a second later the machine is another one.
const TURNS: usize = 3;

/// What is measured of a way, as named in JSON.
const METRICS: [&str; 12] = [
    "requests_per_s",
    "requests_p50_ms",
    "requests_p99_ms",
    "requests_p999_ms",
    "requests_cpu_s_per_million",
    "connections_per_s",
    "connections_p50_ms",
    "connections_p99_ms",
    "connections_p999_ms",
    "connections_cpu_s_per_million",
    "bulk_gbit_per_s",
    "failed",
];

/// All rounds of one way.
#[derive(Clone, Debug)]
pub struct Line {
    way: Way,
    metrics: [Spread; METRICS.len()],
}

/// What was measured, and what must not have been: then figures are not to be quoted.
#[derive(Clone, Debug)]
pub struct Measured<Line> {
    pub lines: Vec<Line>,
    pub complaints: Vec<String>,
}

/// Measures; `progress` is told of each turn.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Measured<Line>> {
    for (tool, package) in load::TOOLS {
        if !on_path(tool) {
            bail!("{tool} is missing: apt-get install {package} (Debian 12)");
        }
    }
    let mut lines: Vec<Line> = Vec::new();
    for way in Way::ALL {
        let name = way.name();
        if !options.ways.is_empty() && !options.ways.iter().any(|part| name.contains(part)) {
            continue;
        }
        match way.tool() {
            Some((tool, package)) if !on_path(tool) => {
                println!("{name} is left out: it needs {tool} (Debian package {package})");
            }
            _ => lines.push(Line {
                way,
                metrics: Default::default(),
            }),
        }
    }
    let mut complaints = Vec::new();
    for round in 0..options.rounds {
        // Fresh ones: what memory a way happens to get is worth some percent.
        let labs: Vec<Lab> = lines.iter().map(|_| lab()).collect::<Result<_>>()?;
        let mut stands = Vec::new();
        for (line, lab) in lines.iter().zip(&labs) {
            let stand = Stand::new(options, line.way, lab);
            stands.push(stand.with_context(|| line.way.name())?);
        }
        for turn in 0..TURNS {
            progress(&format!(
                "round {} of {}, turn {} of {TURNS}",
                round + 1,
                options.rounds,
                turn + 1
            ));
            let count = lines.len();
            for i in 0..count {
                let place = (i + round + turn) % count;
                let line = &mut lines[place];
                let found = stands[place]
                    .measure(options.seconds)
                    .with_context(|| line.way.name())?;
                for (spread, value) in line.metrics.iter_mut().zip(found) {
                    spread.values.push(value);
                }
            }
        }
        for (line, stand) in lines.iter().zip(&stands) {
            stand.in_force.rest(false);
            if let Err(error) = stand.in_force.check(stand.connections, stand.failed) {
                complaints.push(format!(
                    "{}, round {}: {error:#}",
                    line.way.name(),
                    round + 1
                ));
            }
        }
    }
    Ok(Measured { lines, complaints })
}

/// Servers receive as the kernel has it, for what steering costs would be in every way.
fn lab() -> Result<Lab> {
    Lab::with(topology::Options {
        one_cpu_a_flow: false,
        ..topology::Options::new(Placement::RemoteOther)
    })
}

/// A way in force, with its servers.
#[derive(Debug)]
struct Stand<'lab> {
    lab: &'lab Lab,
    way: Way,
    in_force: InForce<'lab>,
    _servers: Vec<Process>,
    /// Connections made so far, but for kept ones.
    connections: u64,
    /// Requests that failed so far.
    failed: u64,
}

impl<'lab> Stand<'lab> {
    fn new(options: &Options, way: Way, lab: &'lab Lab) -> Result<Self> {
        let servers = load::servers(lab)?;
        let in_force = InForce::start(lab, way, &options.object)?;
        // Neighbours and caches.
        let first = load::wrk(lab, in_force.requests_to(), 1, true)?;
        first.tell(way.name());
        in_force.rest(true);
        Ok(Self {
            lab,
            way,
            in_force,
            _servers: servers,
            connections: first.count,
            failed: first.failed,
        })
    }

    fn measure(&mut self, seconds: u64) -> Result<[f64; METRICS.len()]> {
        self.in_force.rest(false);
        let found = self.visit(seconds);
        self.in_force.rest(true);
        found
    }

    fn visit(&mut self, seconds: u64) -> Result<[f64; METRICS.len()]> {
        let to = self.in_force.requests_to();
        let kept = load::wrk(self.lab, to, seconds, false)?;
        let short = load::wrk(self.lab, to, seconds, true)?;
        for requests in [&kept, &short] {
            requests.tell(self.way.name());
        }
        self.connections += short.count;
        self.failed += kept.failed + short.failed;
        let bulk = load::bulk(self.lab, self.in_force.bulk_to(), seconds)?;
        Ok(figures(&kept, &short, bulk))
    }
}

impl Drop for Stand<'_> {
    /// What rests does not end when it is told to.
    fn drop(&mut self) {
        self.in_force.rest(false);
    }
}

fn figures(kept: &Requests, short: &Requests, bulk: f64) -> [f64; METRICS.len()] {
    let mut found = [0.0; METRICS.len()];
    for (i, requests) in [kept, short].into_iter().enumerate() {
        found[5 * i..5 * i + 5].copy_from_slice(&[
            requests.per_s,
            requests.p50_ms,
            requests.p99_ms,
            requests.p999_ms,
            requests.cpu_s_per_million,
        ]);
    }
    found[10] = bulk;
    found[11] = (kept.failed + short.failed) as f64;
    found
}

/// For people: requests, connections, bulk.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::new();
    for (first, what) in [(0, "requests/s, kept alive"), (5, "new connections/s")] {
        let head = [
            "way",
            what,
            "of routed",
            "of ECMP",
            "of bare NAT",
            "p50, ms",
            "p99, ms",
            "p99.9, ms",
            "CPU s/million",
        ];
        let rows: Vec<Vec<String>> = lines
            .iter()
            .map(|line| {
                let metric = |i: usize| &line.metrics[first + i];
                vec![
                    line.way.name().to_owned(),
                    metric(0).text(0),
                    of(lines, Way::Routed, line, first),
                    of(lines, Way::RoutedEcmp, line, first),
                    of(lines, line.way.bare(), line, first),
                    metric(1).text(2),
                    metric(2).text(2),
                    metric(3).text(2),
                    metric(4).text(1),
                ]
            })
            .collect();
        text += &report::table(&head, &rows);
        text += "\n";
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.way.name().to_owned(),
                line.metrics[10].text(2),
                of(lines, Way::Routed, line, 10),
                format!("{:.0}", line.metrics[11].values.iter().sum::<f64>()),
            ]
        })
        .collect();
    text + &report::table(
        &[
            "way",
            "bulk, Gbit/s",
            "of routed",
            "failed requests, all loads",
        ],
        &rows,
    )
}

/// A metric as a multiple of another way's in the same turn.
fn of(lines: &[Line], way: Way, line: &Line, metric: usize) -> String {
    let Some(other) = lines.iter().find(|line| line.way == way) else {
        return "-".to_owned();
    };
    let pairs = line.metrics[metric]
        .values
        .iter()
        .zip(&other.metrics[metric].values);
    let ratios = Spread {
        values: pairs.map(|(own, other)| own / other).collect(),
    };
    ratios.text(2)
}

/// For programs.
pub fn json(lines: &[Line]) -> Value {
    let lines = lines.iter().map(|line| {
        let mut value = json!({ "way": line.way.name() });
        for (name, spread) in METRICS.iter().zip(&line.metrics) {
            value[*name] = spread.json();
        }
        value
    });
    Value::Array(lines.collect())
}
