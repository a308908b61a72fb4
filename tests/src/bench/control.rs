//! Writes through the agent's gRPC, passes over the flow table, and memory.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shifter::{
    proto::{BackendSpec, Pool, Receipt, ServiceSpec},
    ring,
};

use super::{packets, report, stat::Spread};
use crate::{
    agent::{Agent, Settings},
    rpc::Rpc,
    topology::{Family, Lab, Placement, Side},
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub object: PathBuf,
    pub rounds: usize,
    /// Weight changes of a round.
    pub writes: usize,
    /// Backends of a pool whose ring is published.
    pub backends: Vec<usize>,
    /// Services of one apply.
    pub services: usize,
    /// Flows that are swept; a power of two.
    pub flows: u32,
    pub flow_capacity: u32,
}

impl Default for Options {
    /// All but the object, in full.
    fn default() -> Self {
        Self {
            object: PathBuf::new(),
            rounds: 5,
            writes: 1_000,
            backends: vec![10, 100, 1_000],
            services: 5_000,
            flows: 1 << 20,
            flow_capacity: shifter_common::abi::DEFAULT_FLOW_CAPACITY,
        }
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Line {
    pub what: String,
    pub unit: &'static str,
    pub spread: Spread,
}

/// The figures, in the order in which they were first found.
#[derive(Default)]
pub(super) struct Figures {
    pub lines: Vec<Line>,
}

impl Figures {
    pub fn add(&mut self, what: &str, unit: &'static str, values: impl IntoIterator<Item = f64>) {
        let at = self.lines.iter().position(|line| line.what == what);
        let at = at.unwrap_or_else(|| {
            self.lines.push(Line {
                what: what.to_owned(),
                unit,
                spread: Spread::default(),
            });
            self.lines.len() - 1
        });
        self.lines[at].spread.values.extend(values);
    }
}

/// Measures; `progress` is told of each step.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Line>> {
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        progress(&format!(
            "round {} of {}: writes",
            round + 1,
            options.rounds
        ));
        let lab = Lab::new(Placement::RemoteOther)?;
        let capacity = u64::from(options.flow_capacity);
        let agent = Agent::start(&lab, Settings::hook("tc").with_capacity(capacity))?;
        let mut rpc = Rpc::connect_with(&agent, Duration::from_secs(120))?;
        weights(&lab, &mut rpc, options.writes, &mut figures)?;
        for backends in &options.backends {
            publish(&lab, &mut rpc, *backends, &mut figures)?;
        }
        memory(&mut rpc, "agent, few services", &mut figures)?;
        progress(&format!(
            "round {} of {}: services",
            round + 1,
            options.rounds
        ));
        apply(&lab, &mut rpc, options.services, &mut figures)?;
        let what = format!("agent, {} services", options.services);
        memory(&mut rpc, &what, &mut figures)?;
    }
    progress("sweeps");
    let passes = packets::passes(
        &options.object,
        options.flows,
        options.flow_capacity,
        options.rounds.max(3),
    )?;
    let of = format!("{} flows", passes.flows);
    figures.add(&format!("sweep of {of}"), "ms", passes.sweep_ms);
    figures.add(&format!("sweep of {of}, CPU"), "ms", passes.sweep_cpu_ms);
    figures.add(&format!("census of {of}"), "ms", passes.census_ms);
    figures.add(&format!("census of {of}, CPU"), "ms", passes.census_cpu_ms);
    Ok(figures.lines)
}

/// A service on a port of the VIP.
fn spec(lab: &Lab, name: &str, port: u16, blue: Vec<BackendSpec>) -> ServiceSpec {
    let vip = Lab::at_port(lab.vip(Family::V4), port);
    ServiceSpec {
        name: name.to_owned(),
        vip: format!("{vip}/tcp"),
        mode: "nat".to_owned(),
        live: Pool::Blue.into(),
        green: "5%".to_owned(),
        affinity: "flow".to_owned(),
        blue,
        green_pool: vec![backend(lab, Side::Green, 7_002)],
        ..ServiceSpec::default()
    }
}

fn backend(lab: &Lab, side: Side, port: u16) -> BackendSpec {
    let address = Lab::at_port(lab.listen(side, Family::V4), port);
    BackendSpec {
        address: address.to_string(),
        weight: 1,
        ..BackendSpec::default()
    }
}

fn weights(lab: &Lab, rpc: &mut Rpc, writes: usize, figures: &mut Figures) -> Result<()> {
    rpc.apply(vec![spec(
        lab,
        "web",
        7_000,
        vec![backend(lab, Side::Blue, 7_001)],
    )])?;
    let start = Instant::now();
    let receipts = (0..writes)
        .map(|i| rpc.set_weight("web", ["10%", "20%"][i % 2]))
        .collect::<Result<Vec<Receipt>, _>>()?;
    let took = start.elapsed().as_secs_f64();
    ensure!(
        receipts.iter().all(|receipt| !receipt.unchanged),
        "a weight change changed nothing"
    );
    figures.add("weight changes", "/s", [writes as f64 / took]);
    let us = |ns: u64| ns as f64 / 1e3;
    let programmed = receipts.iter().map(|receipt| us(receipt.programmed_ns));
    figures.add("weight: request to programmed", "µs", programmed.clone());
    let worst = Spread {
        values: programmed.collect(),
    };
    let p99 = worst.quantile(0.99);
    figures.add("weight: request to programmed, p99", "µs", [p99]);
    let total = receipts.iter().map(|receipt| us(receipt.total_ns));
    figures.add("weight: request to answer", "µs", total);
    Ok(())
}

/// A pool of so many backends, then the weight of one of them changed: its
/// ring is computed and published anew.
fn publish(lab: &Lab, rpc: &mut Rpc, count: usize, figures: &mut Figures) -> Result<()> {
    let blue: Vec<BackendSpec> = (0..count)
        .map(|i| backend(lab, Side::Blue, 20_000 + i as u16))
        .collect();
    let name = format!("ring-{count}");
    let port = 8_000 + count as u16;
    let ms = |receipts: &[Receipt]| -> Result<f64> {
        let receipt = receipts.first().context("a write without a receipt")?;
        Ok(receipt.programmed_ns as f64 / 1e6)
    };
    let made = rpc.apply(vec![spec(lab, &name, port, blue.clone())])?;
    figures.add(
        &format!("service with {count} new backends: request to programmed"),
        "ms",
        [ms(&made)?],
    );
    for weight in [2, 1, 2] {
        let mut changed = blue.clone();
        changed[0].weight = weight;
        let receipts = rpc.apply(vec![spec(lab, &name, port, changed)])?;
        figures.add(
            &format!("ring of {count} backends: request to programmed"),
            "ms",
            [ms(&receipts)?],
        );
    }
    let members: Vec<ring::Member> = blue
        .iter()
        .enumerate()
        .map(|(i, backend)| {
            Ok(ring::Member {
                id: i as u16 + 1,
                weight: 1,
                key: ring::member_key(backend.address.parse()?),
                ready: true,
            })
        })
        .collect::<Result<_>>()?;
    let start = Instant::now();
    let slots = ring::build([1, 2], &members).len();
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(slots >= 100 * count, "a ring of {slots} slots");
    figures.add(
        &format!("ring of {count} backends: computed alone"),
        "ms",
        [took],
    );
    Ok(())
}

pub(super) fn apply(
    lab: &Lab,
    rpc: &mut Rpc,
    services: usize,
    figures: &mut Figures,
) -> Result<()> {
    let specs: Vec<ServiceSpec> = (0..services)
        .map(|i| {
            let blue = vec![backend(lab, Side::Blue, 7_001)];
            spec(lab, &format!("many-{i}"), 10_000 + i as u16, blue)
        })
        .collect();
    let start = Instant::now();
    let receipts = rpc.apply(specs)?;
    let took = start.elapsed().as_secs_f64();
    ensure!(
        receipts.len() == services,
        "{} receipts for {services} services",
        receipts.len()
    );
    figures.add(
        &format!("apply of {services} services: request to answer"),
        "s",
        [took],
    );
    let programmed = receipts.iter().map(|receipt| receipt.programmed_ns).max();
    let programmed = programmed.context("a service at least")?;
    figures.add(
        &format!("apply of {services} services: request to last programmed"),
        "s",
        [programmed as f64 / 1e9],
    );
    Ok(())
}

/// Resident memory of the agent, what it shares with the kernel apart, and of
/// the maps.
fn memory(rpc: &mut Rpc, what: &str, figures: &mut Figures) -> Result<()> {
    let info = rpc.info()?;
    let path = format!("/proc/{}/status", info.pid);
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mib = |key: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let text = line.with_context(|| format!("{path} has no {key}"))?;
        let kib: f64 = text.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1_024.0)
    };
    figures.add(&format!("memory of {what}: own"), "MiB", [mib("RssAnon:")?]);
    figures.add(
        &format!("memory of {what}: resident, with the mapped tables"),
        "MiB",
        [mib("VmRSS:")?],
    );
    let maps: u64 = info.limits.iter().map(|limit| limit.memory_bytes).sum();
    figures.add("memory of the maps", "MiB", [maps as f64 / 1_048_576.0]);
    Ok(())
}

/// For people.
pub fn table(lines: &[Line]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let digits = if line.spread.median() < 100.0 { 2 } else { 0 };
            vec![
                line.what.clone(),
                format!("{} {}", line.spread.text(digits), line.unit),
            ]
        })
        .collect();
    report::table(&["what", "median (quartiles)"], &rows)
}

/// For programs.
pub fn json(lines: &[Line]) -> Value {
    let lines = lines.iter().map(|line| {
        let spread = Spread {
            // A thousand writes a round: the quartiles say it.
            values: line.spread.values.iter().copied().take(100).collect(),
        };
        let mut value = line.spread.json();
        value["values"] = spread.json()["values"].clone();
        json!({ "what": line.what, "unit": line.unit, "spread": value })
    });
    Value::Array(lines.collect())
}
