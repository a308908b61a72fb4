//! What a rollout shall be, as a file or the command line says it.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use super::OnDoubt;
use crate::{
    judge::{self, GateSpec},
    model::{
        CutRate, PoolName, Weight, duration, file,
        file_table::{Table, place},
        text,
        tree::{Entry, Fault, Node, Value},
    },
};

/// Which preset makes the plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    BlueGreen,
    Canary,
    Rolling,
    Ab,
    CohortFirst,
}

/// Strategies by their words.
const STRATEGIES: [(Strategy, &str); 5] = [
    (Strategy::BlueGreen, "blue-green"),
    (Strategy::Canary, "canary"),
    (Strategy::Rolling, "rolling"),
    (Strategy::Ab, "ab"),
    (Strategy::CohortFirst, "cohort-first"),
];

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = STRATEGIES.iter().find(|(strategy, _)| strategy == self);
        f.write_str(word.map_or("", |(_, word)| word))
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = STRATEGIES.iter().find(|(_, word)| *word == text);
        found.map(|(strategy, _)| *strategy).ok_or_else(|| {
            let words = STRATEGIES.map(|(_, word)| format!("{word:?}")).join(", ");
            format!("{text:?} is no strategy: write one of {words}")
        })
    }
}

/// A step as it is written, before a preset puts it into place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// `5%`: the share, then an analysis of `interval`.
    Share(Weight),
    /// `pause` or `pause 10m`.
    Pause(Option<Duration>),
    /// `analyse 5m`.
    Analyse(Duration),
    /// `await-drain 5m`: until the live pool has no flows.
    AwaitDrain(Duration),
    /// `drain 10.0.0.11:80`.
    Drain(SocketAddr),
    /// `undrain 10.0.0.11:80`.
    Undrain(SocketAddr),
    /// `hook NAME`.
    Hook(String),
}

impl FromStr for Written {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no step: write a share (\"5%\"), \"pause\", \"pause 10m\", \"analyse 5m\", \"await-drain 5m\", \"drain ADDRESS\", \"undrain ADDRESS\" or \"hook NAME\""
            )
        };
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let time = || {
            let time =
                duration::parse(rest.trim()).map_err(|error| format!("{text:?}: {error}"))?;
            in_range(time, SHORTEST, LONGEST).map_err(|why| format!("{text:?}: {why}"))
        };
        let backend =
            || text::parse_backend_addr(rest.trim()).map_err(|error| format!("{text:?}: {error}"));
        match word {
            "pause" if rest.is_empty() => Ok(Self::Pause(None)),
            "pause" => Ok(Self::Pause(Some(time()?))),
            "analyse" => Ok(Self::Analyse(time()?)),
            "await-drain" => Ok(Self::AwaitDrain(time()?)),
            "drain" => Ok(Self::Drain(backend()?)),
            "undrain" => Ok(Self::Undrain(backend()?)),
            "hook" => Ok(Self::Hook(hook_name(rest.trim())?)),
            _ if rest.is_empty() => text.parse().map(Self::Share).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

/// How the share of a canary grows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Growth {
    Steps(Vec<Written>),
    /// By this much each time.
    Linear(Weight),
    /// From this, so many times as much each time.
    Exponential(Weight, u32),
}

/// Shortest and longest time of a step.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// Bounds of the lease.
const LEASE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(86_400)];
/// Steps of one rollout.
const MAX_STEPS: usize = 200;
/// Gates of one rollout.
const MAX_GATES: usize = 20;

/// A rollout as it is described.
#[derive(Clone, Debug)]
pub struct RolloutSpec {
    pub strategy: Strategy,
    pub growth: Growth,
    pub interval: Duration,
    pub gates: Vec<GateSpec>,
    pub bake: Duration,
    pub promote: bool,
    pub lease: Duration,
    pub progress_deadline: Option<Duration>,
    /// Flows that the candidate still carries after a rollback are ended at this pace.
    pub cut: Option<CutRate>,
    /// Of "ab"; 0: only cohorts get the candidate. `None`: as its service has cohorts.
    pub split: Option<Weight>,
    pub duration: Duration,
    /// Of "rolling".
    pub pool: Option<PoolName>,
    pub max_unavailable: u32,
    pub surge: u32,
    pub drain_deadline: Duration,
    pub health_deadline: Duration,
    pub hook: Option<String>,
    pub on_hook_error: OnDoubt,
    /// The same as JSON, as it was written.
    pub source: String,
}

impl PartialEq for RolloutSpec {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for RolloutSpec {}

impl RolloutSpec {
    /// Names of the hooks that its steps run.
    pub fn hooks(&self) -> Vec<&str> {
        let of_steps: &[Written] = match &self.growth {
            Growth::Steps(steps) => steps,
            _ => &[],
        };
        let named = of_steps.iter().filter_map(|step| match step {
            Written::Hook(name) => Some(name.as_str()),
            _ => None,
        });
        named.chain(self.hook.as_deref()).collect()
    }
}

/// Keys that every strategy has, and those of each.
const COMMON: [&str; 4] = ["strategy", "gates", "lease", "progress_deadline"];
const GROWING: [&str; 8] = [
    "steps",
    "linear",
    "exponential",
    "factor",
    "interval",
    "bake",
    "promote",
    "cut",
];
const ROLLING: [&str; 7] = [
    "pool",
    "max_unavailable",
    "surge",
    "drain_deadline",
    "health_deadline",
    "hook",
    "on_hook_error",
];

fn keys(strategy: Strategy) -> Vec<&'static str> {
    let own: &[&str] = match strategy {
        Strategy::BlueGreen => &["bake", "promote", "cut"],
        Strategy::Canary | Strategy::CohortFirst => &GROWING,
        Strategy::Rolling => &ROLLING,
        Strategy::Ab => &["split", "duration", "cut"],
    };
    COMMON.iter().chain(own).copied().collect()
}

/// Reads `[service.rollout]`.
pub fn read(node: &Node) -> Result<RolloutSpec, Fault> {
    let any: Vec<&str> = COMMON
        .iter()
        .chain(&GROWING)
        .chain(&ROLLING)
        .chain(&["split", "duration"])
        .copied()
        .collect();
    let table = Table::of(node, "a rollout", &any)?;
    let Some(strategy) = table.parse::<Strategy>("strategy")? else {
        return Err(Fault::new(
            node.at,
            "a rollout lacks the key strategy: write strategy = \"canary\", or another of \"blue-green\", \"rolling\", \"ab\", \"cohort-first\"",
        ));
    };
    let what = format!("a rollout of the strategy {:?}", strategy.to_string());
    let known = keys(strategy);
    let table = Table::of(node, &what, &known)?;
    let time = |key: &str, default: Duration, low: Duration, high: Duration| {
        read_time(&table, key, low, high).map(|time| time.unwrap_or(default))
    };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let spec = RolloutSpec {
        strategy,
        growth: growth(&table)?,
        interval: time("interval", minutes(2), SHORTEST, LONGEST)?,
        gates: gates(&table)?,
        bake: time("bake", default_bake(strategy), Duration::ZERO, LONGEST)?,
        promote: table.boolean("promote")?.unwrap_or(true),
        lease: time("lease", minutes(1), LEASE[0], LEASE[1])?,
        cut: table.parse("cut")?,
        progress_deadline: read_time(&table, "progress_deadline", SHORTEST, LONGEST)?,
        split: split(&table)?,
        duration: time("duration", minutes(60), SHORTEST, LONGEST)?,
        pool: table.parse("pool")?,
        max_unavailable: count(&table, "max_unavailable", 1)?,
        surge: count(&table, "surge", 0)?,
        drain_deadline: time("drain_deadline", minutes(5), Duration::ZERO, LONGEST)?,
        health_deadline: time("health_deadline", minutes(1), SHORTEST, LONGEST)?,
        hook: hook(&table)?,
        on_hook_error: table.parse("on_hook_error")?.unwrap_or_default(),
        source: source(node).to_string(),
    };
    if spec.max_unavailable == 0 && spec.surge == 0 {
        return Err(Fault::new(
            node.at,
            "max_unavailable and surge are both 0, so that no backend could ever be updated: raise one of them",
        ));
    }
    Ok(spec)
}

/// Reads the JSON of one rollout, as the API and the store have it.
pub fn from_json(text: &str) -> Result<RolloutSpec, file::FileError> {
    crate::model::json::from_json(text)
        .and_then(|node| read(&node))
        .map_err(|fault| file::locate(text, "rollout", fault))
}

fn default_bake(strategy: Strategy) -> Duration {
    match strategy {
        Strategy::BlueGreen => Duration::from_secs(600),
        _ => Duration::ZERO,
    }
}

fn in_range(time: Duration, low: Duration, high: Duration) -> Result<Duration, String> {
    if time < low || time > high {
        return Err(format!(
            "{} is out of range: write {} to {}",
            duration::show(time),
            duration::show(low),
            duration::show(high)
        ));
    }
    Ok(time)
}

fn read_time(
    table: &Table<'_>,
    key: &str,
    low: Duration,
    high: Duration,
) -> Result<Option<Duration>, Fault> {
    let Some((text, at)) = table.string(key)? else {
        return Ok(None);
    };
    let time = duration::parse(text).map_err(|e| place(at, format_args!("{key}: {e}")))?;
    in_range(time, low, high)
        .map(Some)
        .map_err(|why| place(at, format_args!("{key} = {why}")))
}

fn count(table: &Table<'_>, key: &str, default: u32) -> Result<u32, Fault> {
    Ok(table.integer(key, 0, 1_000)?.map_or(default, |n| n as u32))
}

fn split(table: &Table<'_>) -> Result<Option<Weight>, Fault> {
    let Some((text, at)) = table.string("split")? else {
        return Ok(None);
    };
    let weight: Weight = text.parse().map_err(|error| place(at, error))?;
    match weight.threshold() {
        0 => Ok(Some(Weight::ZERO)),
        _ => share(text, at).map(Some),
    }
}

/// A share between nothing and all, both left out.
fn share(text: &str, at: usize) -> Result<Weight, Fault> {
    let weight: Weight = text.parse().map_err(|error| place(at, error))?;
    if weight == Weight::ZERO || weight.threshold() == Weight::ONE.threshold() {
        return Err(Fault::new(
            at,
            format!(
                "{text} leaves one of the pools without new flows: write a share between 0 and 100%"
            ),
        ));
    }
    Ok(weight)
}

fn hook_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} is no name of a hook: write the name of one in the agent's own configuration, letters, digits, '-', '_' and '.'"
        ));
    }
    Ok(name.to_owned())
}

fn hook(table: &Table<'_>) -> Result<Option<String>, Fault> {
    let Some((name, at)) = table.string("hook")? else {
        return Ok(None);
    };
    hook_name(name).map(Some).map_err(|why| Fault::new(at, why))
}

fn growth(table: &Table<'_>) -> Result<Growth, Fault> {
    let given: Vec<&str> = ["steps", "linear", "exponential"]
        .into_iter()
        .filter(|key| table.find(key).is_some())
        .collect();
    if let [first, second, ..] = given.as_slice() {
        let at = table.find(second).map_or(0, |entry| entry.at);
        return Err(Fault::new(
            at,
            format!("{first} and {second} both say how the share grows: write one of them"),
        ));
    }
    if let Some(factor) = table.find("factor")
        && given != ["exponential"]
    {
        return Err(Fault::new(
            factor.at,
            "factor goes with exponential only: write exponential = \"1%\" as well",
        ));
    }
    if let Some((text, at)) = table.string("linear")? {
        return Ok(Growth::Linear(share(text, at)?));
    }
    if let Some((text, at)) = table.string("exponential")? {
        let factor = table.integer("factor", 2, 100)?.unwrap_or(2);
        return Ok(Growth::Exponential(share(text, at)?, factor as u32));
    }
    match table.find("steps") {
        Some(entry) => steps(entry).map(Growth::Steps),
        None => {
            let default = ["5%", "25%", "50%"].map(|text| text.parse().map(Written::Share));
            let default = default.into_iter().filter_map(Result::ok).collect();
            Ok(Growth::Steps(default))
        }
    }
}

fn steps(entry: &Entry) -> Result<Vec<Written>, Fault> {
    let Value::Array(items) = &entry.node.value else {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "steps is {}: write a list, as [\"5%\", \"25%\", \"50%\"]",
                entry.node.value.kind()
            ),
        ));
    };
    if items.is_empty() || items.len() > MAX_STEPS {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "{} steps are out of range: write 1 to {MAX_STEPS}",
                items.len()
            ),
        ));
    }
    let mut steps = Vec::with_capacity(items.len());
    let mut highest: Option<Weight> = None;
    for item in items {
        let Value::String(text) = &item.value else {
            return Err(Fault::new(
                item.at,
                format!(
                    "a step is {}: write it in quotes, as \"5%\"",
                    item.value.kind()
                ),
            ));
        };
        let step: Written = text
            .parse()
            .map_err(|why: String| Fault::new(item.at, why))?;
        if let Written::Share(weight) = step {
            if let Some(before) = highest.filter(|before| weight.threshold() <= before.threshold())
            {
                return Err(Fault::new(
                    item.at,
                    format!("{text} is not more than {before} before it: shares of steps rise"),
                ));
            }
            highest = Some(weight);
        }
        steps.push(step);
    }
    Ok(steps)
}

fn gates(table: &Table<'_>) -> Result<Vec<GateSpec>, Fault> {
    let Some(entry) = table.find("gates") else {
        return Ok(Vec::new());
    };
    let gates = judge::gates(entry)?;
    if gates.len() > MAX_GATES {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "{} gates are too many: write {MAX_GATES} at most",
                gates.len()
            ),
        ));
    }
    Ok(gates)
}

/// A read table as JSON.
pub fn source(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::Array(items) => items.iter().map(source).collect(),
        Value::Table(entries) => {
            let pair = |entry: &Entry| (entry.key.clone(), source(&entry.node));
            serde_json::Value::Object(entries.iter().map(pair).collect())
        }
        Value::Float(number) => (*number).into(),
        Value::Other(_) => serde_json::Value::Null,
    }
}
