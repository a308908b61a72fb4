//! From the start of an agent to attached and serving, with many services and
//! flows present.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use shifter::datapath::{flows::now_tick, load::flow_sets, memory::MappedArray};
use shifter_common::abi::flow::{
    FLOW_GREEN, FlowEntry, FlowSet, SET_ENTRIES, STATE_ESTABLISHED, control_word,
};

use super::control::{self, Figures, Line, Options};
use crate::{
    agent::{Agent, Settings, binary, number},
    rpc::Rpc,
    scene::open_pin,
    topology::{Lab, Placement},
};

/// Longer than any start takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Starts of a round.
const STARTS: usize = 5;

/// Starts agents; `progress` is told of each step.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Line>> {
    let mut figures = Figures::default();
    // `SHIFTER_BIN` names another one.
    let is_debug = binary()?
        .components()
        .any(|part| part.as_os_str() == "debug");
    let build = if is_debug { "debug" } else { "release" };
    let with = format!(
        "{} services, {} flows, {build} build",
        options.services, options.flows
    );
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        let lab = Lab::new(Placement::RemoteOther)?;
        let capacity = u64::from(options.flow_capacity);
        let mut agent = Agent::start(&lab, Settings::hook("tc").with_capacity(capacity))?;
        let mut rpc = Rpc::connect_with(&agent, LIMIT)?;
        control::apply(&lab, &mut rpc, options.services, &mut Figures::default())?;
        drop(rpc);
        agent.stop();
        fill(&lab, options.flows, options.flow_capacity)?;
        for _ in 0..STARTS {
            start_once(&mut agent, &with, &mut figures)?;
        }
        let live = number(&agent.json(&["status"])?["table"]["live"]);
        ensure!(
            live >= u64::from(options.flows),
            "of {} flows only {live} are there after the starts",
            options.flows
        );
    }
    Ok(figures.lines)
}

/// From before the process is there to its word that it serves, and what it
/// says took how long.
fn start_once(agent: &mut Agent<'_>, with: &str, figures: &mut Figures) -> Result<()> {
    agent.stop();
    let start = Instant::now();
    let mut process = agent.begin(&[], &[])?;
    process.wait_for("serving took_ms", LIMIT)?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    figures.add(&format!("start to serving ({with})"), "ms", [wall_ms]);
    let log = process.output();
    for (field, what) in [
        ("took_ms", "of that by the agent's own clock"),
        ("open_ms", "programs loaded and maps adopted"),
        ("reconcile_ms", "kernel and store brought together"),
        ("attach_ms", "programs attached"),
    ] {
        // Older versions say less.
        if let Some(ms) = said(&log, "serving took_ms=", field) {
            figures.add(&format!("- {what}"), "ms", [ms]);
        }
    }
    agent.follow(process);
    Ok(())
}

/// A field of the line of the agent's log that has these words.
pub(super) fn said(log: &str, words: &str, field: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains(words))?;
    let (_, rest) = line.split_once(&format!("{field}="))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Puts flows of one service into the table of an agent that does not run:
/// established, one in every second place.
pub(super) fn fill(lab: &Lab, flows: u32, capacity: u32) -> Result<()> {
    let sets = flow_sets(capacity);
    ensure!(
        u64::from(flows) * 2 <= u64::from(sets) * SET_ENTRIES as u64,
        "{flows} flows do not fit"
    );
    let path = find(&lab.bpffs().join("shifter/maps"), "FLOWS").context("a pinned flow table")?;
    let table: MappedArray<FlowSet> = MappedArray::new(open_pin(&path), sets)?;
    for flow in 0..flows {
        let place = flow * 2;
        let (set, at) = (place / SET_ENTRIES as u32, place as usize % SET_ENTRIES);
        let mut entries = table.read(set);
        entries[at] = entry(flow);
        table.write(set, entries);
    }
    Ok(())
}

fn entry(flow: u32) -> FlowEntry {
    let [a, b, c, d] = (0x0a50_0000 + flow).to_be_bytes();
    let mut client = [0; 16];
    client[..4].copy_from_slice(&[a, b, c, d]);
    let now = now_tick();
    FlowEntry {
        control: control_word(STATE_ESTABLISHED, flow, 1, now as u16),
        client,
        client_port: (10_000 + flow as u16 % 50_000).to_be_bytes(),
        flags: if flow.is_multiple_of(20) {
            FLOW_GREEN
        } else {
            0
        },
        service: 0,
        backend: 1,
        next_hop: 0,
        route_generation: 0,
        generation: 1,
        last_seen: now,
        created: now,
        seq_a: 1,
        seq_b: 1,
        high: 100,
        home: 0,
    }
}

/// A file of this name in a directory or below it.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries.flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => find(&path, name),
            false => (entry.file_name() == name).then_some(path),
        }
    })
}
