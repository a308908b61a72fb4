//! Gates from a file: `gates = [{ judge = "threshold", .. }, ..]`.

use std::time::Duration;

use super::{
    Bound, Direction, Effect, Exec, GateSpec, HookType, Judge, MannWhitney, Measure, MinEffect,
    Number, PassWhen, Policy, Prometheus, Ratio, RatioSignal, Sequential, Threshold, Webhook,
    check_program,
    words::{self, Word},
};
use crate::model::{
    file_table::Table,
    tree::{Entry, Fault, Node, Value},
};

/// Gates in one list.
const MAX_GATES: usize = 32;
const MAX_SAMPLES: i64 = 1_000_000_000;
/// Bytes of a query, a URL, a value of metadata.
pub(super) const MAX_TEXT: usize = 4_096;

const COMMON_KEYS: [&str; 6] = [
    "judge",
    "name",
    "on_fail",
    "on_no_data",
    "on_inconclusive",
    "on_error",
];

/// Reads a list of gates under its key. Unknown keys, values out of range and names
/// that occur twice are refused.
pub fn gates(entry: &Entry) -> Result<Vec<GateSpec>, Fault> {
    let Value::Array(items) = &entry.node.value else {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "{} is {}: write a list of gates, as [{{ judge = \"sequential\" }}]",
                entry.key,
                entry.node.value.kind()
            ),
        ));
    };
    if items.len() > MAX_GATES {
        let text = format!(
            "{} gates are too many: write {MAX_GATES} at most",
            items.len()
        );
        return Err(Fault::new(entry.node.at, text));
    }
    let mut gates: Vec<GateSpec> = Vec::with_capacity(items.len());
    for item in items {
        let gate = gate(item)?;
        if gates.iter().any(|other| other.name == gate.name) {
            let text = format!(
                "two gates are called {:?}: give one of them a name of its own, as name = \"{}-2\"",
                gate.name, gate.name
            );
            return Err(Fault::new(item.at, text));
        }
        gates.push(gate);
    }
    Ok(gates)
}

/// Reads one gate.
pub fn gate(node: &Node) -> Result<GateSpec, Fault> {
    let kind = kind(node)?;
    let keys: Vec<&str> = COMMON_KEYS.iter().chain(kind.keys()).copied().collect();
    let what = format!("a gate of judge {:?}", kind.word());
    let table = Table::of(node, &what, &keys)?;
    let judge = match kind {
        Kind::Sequential => Judge::Sequential(sequential(&table)?),
        Kind::Threshold => Judge::Threshold(threshold(&table)?),
        Kind::MannWhitney => Judge::MannWhitney(mann_whitney(&table)?),
        Kind::Prometheus => Judge::Prometheus(prometheus(&table)?),
        Kind::Webhook => Judge::Webhook(webhook(&table)?),
        Kind::Exec => Judge::Exec(exec(&table)?),
    };
    let name = match table.string("name")? {
        None => kind.word().to_owned(),
        Some((name, at)) => checked_name(name, at)?,
    };
    let on_error = default_on_error(&judge);
    Ok(GateSpec {
        name,
        on_fail: table.word("on_fail")?.unwrap_or(Policy::Rollback),
        on_no_data: table.word("on_no_data")?.unwrap_or(Policy::Hold),
        on_inconclusive: table.word("on_inconclusive")?.unwrap_or(Policy::Hold),
        on_error: table.word("on_error")?.unwrap_or(on_error),
        min_samples: match kind.min_samples() {
            None => 0,
            Some(default) => table
                .integer("min_samples", 1, MAX_SAMPLES)?
                .map_or(default, |samples| samples as u64),
        },
        judge,
    })
}

/// A hook whose answer is not waited for does not hold when it cannot be asked.
fn default_on_error(judge: &Judge) -> Policy {
    match judge {
        Judge::Webhook(hook) => match hook.hook {
            HookType::Rollback | HookType::PostRollout | HookType::Event => Policy::Advance,
            _ => Policy::Hold,
        },
        _ => Policy::Hold,
    }
}

/// Judges by their words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sequential,
    Threshold,
    MannWhitney,
    Prometheus,
    Webhook,
    Exec,
}

impl Kind {
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Sequential => &[
                "min_samples",
                "alpha",
                "min_effect",
                "measures",
                "pass_when",
            ],
            Self::Threshold => &words::THRESHOLD_KEYS,
            Self::MannWhitney => &[
                "min_samples",
                "measure",
                "direction",
                "confidence",
                "tolerance",
                "effect",
                "allowed_increase",
                "allowed_decrease",
            ],
            Self::Prometheus => &["url", "query", "min", "max", "interval", "timeout"],
            Self::Webhook => &["url", "type", "metadata", "interval", "timeout"],
            Self::Exec => &["file", "interval", "timeout"],
        }
    }

    /// Default; `None` for a judge that counts no flows.
    fn min_samples(self) -> Option<u64> {
        match self {
            Self::Sequential | Self::Threshold => Some(100),
            Self::MannWhitney => Some(50),
            _ => None,
        }
    }
}

fn kind(node: &Node) -> Result<Kind, Fault> {
    let Value::Table(entries) = &node.value else {
        let text = format!(
            "a gate is {}: write a table, as {{ judge = \"sequential\" }}",
            node.value.kind()
        );
        return Err(Fault::new(node.at, text));
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == "judge") else {
        let text = format!("a gate lacks the key judge: write one of {}", Kind::words());
        return Err(Fault::new(node.at, text));
    };
    match &entry.node.value {
        Value::String(text) => {
            Kind::read(text).map_err(|text| Fault::new(entry.node.at, format!("judge: {text}")))
        }
        other => Err(Fault::new(
            entry.node.at,
            format!("judge is {}: write one of {}", other.kind(), Kind::words()),
        )),
    }
}

fn checked_name(name: &str, at: usize) -> Result<String, Fault> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(is_good) {
        let text = format!(
            "{name:?} is no name of a gate: write 1 to 63 letters, digits, '-', '_' or '.'"
        );
        return Err(Fault::new(at, text));
    }
    Ok(name.to_owned())
}

fn sequential(table: &Table<'_>) -> Result<Sequential, Fault> {
    let alpha = table.ratio("alpha", 1, 500_000)?;
    Ok(Sequential {
        alpha: alpha.unwrap_or(Ratio::percent(5)),
        min_effect: min_effect(table)?,
        measures: measures(table)?,
        pass_when: table.word("pass_when")?.unwrap_or(PassWhen::NoAlarm),
    })
}

fn min_effect(table: &Table<'_>) -> Result<MinEffect, Fault> {
    let mut effect = MinEffect::default();
    let Some(entry) = table.find("min_effect") else {
        return Ok(effect);
    };
    let what = "min_effect";
    let table = Table::of(&entry.node, what, &["ratio", "time", "time_relative"])?;
    if let Some(ratio) = table.ratio("ratio", 0, 990_000)? {
        effect.ratio = ratio;
    }
    if let Some(time) = table.time("time", Duration::ZERO, Duration::from_secs(30))? {
        effect.time = time;
    }
    if let Some(ratio) = table.ratio("time_relative", 0, 100_000_000)? {
        effect.time_relative = ratio;
    }
    Ok(effect)
}

fn measures(table: &Table<'_>) -> Result<Vec<Measure>, Fault> {
    let Some(entry) = table.find("measures") else {
        return Ok(vec![Measure::Failures, Measure::Handshake]);
    };
    let wrong = |at, what: &str| {
        let words = Measure::words();
        Fault::new(
            at,
            format!("measures: {what}: write a list of {words}, each once"),
        )
    };
    let Value::Array(items) = &entry.node.value else {
        return Err(wrong(entry.node.at, entry.node.value.kind()));
    };
    let mut measures = Vec::new();
    for item in items {
        let Value::String(text) = &item.value else {
            return Err(wrong(item.at, item.value.kind()));
        };
        let measure = Measure::read(text).map_err(|e| Fault::new(item.at, e))?;
        if measures.contains(&measure) {
            return Err(wrong(item.at, &format!("{text:?} occurs twice")));
        }
        measures.push(measure);
    }
    if measures.is_empty() {
        return Err(wrong(entry.node.at, "it is empty"));
    }
    Ok(measures)
}

fn threshold(table: &Table<'_>) -> Result<Threshold, Fault> {
    let mut bounds = Vec::new();
    for signal in RatioSignal::ALL {
        // Segments sent again may be more than flows.
        let high = match signal {
            RatioSignal::ClientRetransmit | RatioSignal::BackendRetransmit => 4_000_000_000,
            RatioSignal::SynRetransmit => 100_000_000,
            _ => 1_000_000,
        };
        if let Some(most) = table.ratio(signal.key(), 0, high)? {
            bounds.push(Bound::Ratio(signal, most));
        }
    }
    for (key, measure, per_mille) in words::QUANTILE_KEYS {
        let (low, high) = (Duration::from_micros(1), Duration::from_secs(34));
        if let Some(most) = table.time(key, low, high)? {
            bounds.push(Bound::Quantile(measure, per_mille, most));
        }
    }
    if bounds.is_empty() {
        let text = "a gate of judge \"threshold\" bounds nothing: write at least one bound, as failure_ratio_max = \"1%\" or handshake_p99_max = \"50ms\"";
        return Err(Fault::new(table.at, text));
    }
    Ok(Threshold { bounds })
}

fn mann_whitney(table: &Table<'_>) -> Result<MannWhitney, Fault> {
    let measure = table.word("measure")?.unwrap_or(Measure::Handshake);
    if measure == Measure::Failures {
        let at = table.find("measure").map_or(table.at, |e| e.node.at);
        let text = "measure: this test ranks times and a failure has none: write \"handshake\", \"first-byte\" or \"duration\", and judge failures by \"sequential\" or \"threshold\"";
        return Err(Fault::new(at, text));
    }
    let effect = table.word("effect")?.unwrap_or(Effect::MeanRatio);
    let none = match effect {
        Effect::MeanRatio => 1.0,
        Effect::Cles => 0.5,
    };
    let high = match effect {
        Effect::MeanRatio => 1_000.0,
        Effect::Cles => 1.0,
    };
    let increase = table.number("allowed_increase", none, high)?;
    let decrease = table.number("allowed_decrease", 0.0, none)?;
    Ok(MannWhitney {
        measure,
        direction: table.word("direction")?.unwrap_or(Direction::Increase),
        confidence: table
            .ratio("confidence", 500_000, 999_999)?
            .unwrap_or(Ratio::percent(98)),
        tolerance: table
            .ratio("tolerance", 0, 10_000_000)?
            .unwrap_or(Ratio::percent(25)),
        effect,
        allowed_increase: increase.unwrap_or_else(|| Number::of(none)),
        allowed_decrease: decrease.unwrap_or_else(|| Number::of(none)),
    })
}

fn prometheus(table: &Table<'_>) -> Result<Prometheus, Fault> {
    let (min, max) = (
        table.number("min", f64::MIN, f64::MAX)?,
        table.number("max", f64::MIN, f64::MAX)?,
    );
    if min.is_none() && max.is_none() {
        let text =
            "a gate of judge \"prometheus\" bounds nothing: write max = 0.01, min = 0.99, or both";
        return Err(Fault::new(table.at, text));
    }
    if let (Some(low), Some(high)) = (min, max)
        && low > high
    {
        let text = format!(
            "min = {} is above max = {}: nothing lies between",
            low.get(),
            high.get()
        );
        return Err(Fault::new(table.at, text));
    }
    let query = table.need_text("query", "a PromQL expression that gives one number")?;
    let (interval, timeout) = times(table)?;
    Ok(Prometheus {
        url: table.url()?,
        query,
        min,
        max,
        interval,
        timeout,
    })
}

fn webhook(table: &Table<'_>) -> Result<Webhook, Fault> {
    let Some(hook) = table.word("type")? else {
        let text = format!(
            "a gate of judge \"webhook\" lacks the key type: write one of {}",
            HookType::words()
        );
        return Err(Fault::new(table.at, text));
    };
    let (interval, timeout) = times(table)?;
    Ok(Webhook {
        url: table.url()?,
        hook,
        metadata: metadata(table)?,
        interval,
        timeout,
    })
}

fn metadata(table: &Table<'_>) -> Result<Vec<(String, String)>, Fault> {
    let Some(entry) = table.find("metadata") else {
        return Ok(Vec::new());
    };
    let Value::Table(entries) = &entry.node.value else {
        let text = "metadata is no table: write { key = \"text\" }";
        return Err(Fault::new(entry.node.at, text));
    };
    let mut pairs = Vec::new();
    for entry in entries {
        match &entry.node.value {
            Value::String(text) if text.len() <= MAX_TEXT => {
                pairs.push((entry.key.clone(), text.clone()));
            }
            _ => {
                let text = format!(
                    "metadata.{} is no text of up to {MAX_TEXT} bytes: write it in quotes",
                    entry.key
                );
                return Err(Fault::new(entry.node.at, text));
            }
        }
    }
    pairs.sort();
    Ok(pairs)
}

fn exec(table: &Table<'_>) -> Result<Exec, Fault> {
    let (file, at) = table.need(
        "file",
        "a file of the agent's exec_dir, as file = \"check.sh\"",
    )?;
    check_program(file).map_err(|text| Fault::new(at, text))?;
    let (interval, timeout) = times(table)?;
    Ok(Exec {
        file: file.to_owned(),
        interval,
        timeout,
    })
}

/// Interval and timeout of what is asked again and again.
fn times(table: &Table<'_>) -> Result<(Duration, Duration), Fault> {
    let second = Duration::from_secs(1);
    let interval = table.time("interval", second, 86_400 * second)?;
    let timeout = table.time("timeout", second / 10, 300 * second)?;
    Ok((
        interval.unwrap_or(10 * second),
        timeout.unwrap_or(5 * second),
    ))
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
