//! `cargo xtask bench`: measures, prints tables, writes JSON.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use shifter::datapath::attach::Place;
use shifter_tests::bench::{
    control, migration, object, packets, report, start,
    traffic::{self, compare},
};

/// Parts of the bench.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// What a packet costs, by BPF_PROG_TEST_RUN.
    Packets,
    /// Requests, connections and bulk traffic in network namespaces.
    Traffic,
    /// Another build beside this one under the same traffic: `--other FILE`. Only if named.
    Compare,
    /// Writes, sweeps and memory of the agent.
    Control,
    /// Starts of the agent with many services and flows.
    Start,
    /// Flows that move to another table under traffic.
    Migration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Hook {
    Xdp,
    Tc,
}

/// Measures shifter beside the usual ways of doing the same.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Which parts; all but compare if none is named.
    parts: Vec<Part>,
    /// Fewer loads and rounds: to see whether a change is worth a full run.
    #[arg(long)]
    quick: bool,
    /// Also write what was found as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// packets: only cases with this in their names (repeatable).
    #[arg(long, value_name = "TEXT")]
    case: Vec<String>,
    /// packets: only this hook.
    #[arg(long)]
    hook: Option<Hook>,
    /// packets: numbers of flows, powers of two.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_024, 65_536, 1_048_576])]
    flows: Vec<u32>,
    /// packets: fresh loads (7, quick 3).
    #[arg(long)]
    loads: Option<usize>,
    /// traffic: only ways with this in their names (repeatable).
    #[arg(long, value_name = "TEXT")]
    way: Vec<String>,
    /// compare: the other build of shifter, by `cargo xtask build --release`.
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
    /// Rounds of traffic, compare and control (5, quick 1), start and migration (3, quick 1).
    #[arg(long)]
    rounds: Option<usize>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the bench loads eBPF programs: run `cargo xtask bench` as root");
    }
    if arguments.parts.contains(&Part::Compare) != arguments.other.is_some() {
        bail!("compare needs another build of shifter, and only compare: `compare --other FILE`");
    }
    println!("{}", report::machine());
    if arguments.quick {
        println!("QUICK: fewer rounds than a full run; no figures to quote");
    }
    let wants = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let mut found = Vec::new();
    let mut complaints = Vec::new();
    if wants(Part::Packets) {
        let lines = packets::measure(&packet_options(&arguments)?, &mut |text| {
            eprintln!("{text}");
        })?;
        println!("\nns a packet over the driver's own, median (quartiles)\n");
        print!("{}", packets::table(&lines));
        found.push(("packets", packets::json(&lines)));
    }
    if wants(Part::Traffic) {
        let options = traffic::Options {
            object: object::path()?,
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.quick { 1 } else { 5 }),
            seconds: 1,
            ways: arguments.way.clone(),
        };
        let measured = traffic::measure(&options, &mut |text| eprintln!("{text}"))?;
        complaints.extend(measured.complaints);
        let lines = measured.lines;
        println!("\nend to end, median (quartiles)\n");
        print!("{}", traffic::table(&lines));
        found.push(("traffic", traffic::json(&lines)));
    }
    if let Some(other) = arguments.other.clone() {
        let options = compare::Options {
            other,
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.quick { 1 } else { 5 }),
            turns: 4,
        };
        let measured = compare::measure(&options, &mut |text| eprintln!("{text}"))?;
        complaints.extend(measured.complaints);
        let lines = measured.lines;
        println!("\nthis build and another, median (quartiles)\n");
        print!("{}", compare::table(&lines));
        found.push(("compare", compare::json(&lines)));
    }
    if wants(Part::Control) {
        let options = control::Options {
            object: object::path()?,
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.quick { 1 } else { 5 }),
            ..control::Options::default()
        };
        let lines = control::measure(&options, &mut |text| eprintln!("{text}"))?;
        println!("\ncontrol, median (quartiles)\n");
        print!("{}", control::table(&lines));
        found.push(("control", control::json(&lines)));
    }
    if wants(Part::Start) {
        let options = control::Options {
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.quick { 1 } else { 3 }),
            ..control::Options::default()
        };
        let lines = start::measure(&options, &mut |text| eprintln!("{text}"))?;
        println!("\nstarts, median (quartiles)\n");
        print!("{}", control::table(&lines));
        found.push(("start", control::json(&lines)));
    }
    if wants(Part::Migration) {
        let options = control::Options {
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.quick { 1 } else { 3 }),
            ..control::Options::default()
        };
        let lines = migration::measure(&options, &mut |text| eprintln!("{text}"))?;
        println!("\nmigration, median (quartiles)\n");
        print!("{}", control::table(&lines));
        found.push(("migration", control::json(&lines)));
    }
    if let Some(path) = &arguments.json {
        found.push(("complaints", complaints.clone().into()));
        report::write_json(path, arguments.quick, &found)?;
    }
    if !complaints.is_empty() {
        bail!("not to be quoted: {}", complaints.join("; "));
    }
    Ok(())
}

fn packet_options(arguments: &Arguments) -> Result<packets::Options> {
    let mut flows = arguments.flows.clone();
    flows.sort_unstable();
    if let Some(odd) = flows
        .iter()
        .find(|flows| !flows.is_power_of_two() || **flows > 1 << 20)
    {
        bail!("--flows {odd}: a power of two up to 1048576 is needed");
    }
    Ok(packets::Options {
        object: object::path()?,
        places: match arguments.hook {
            Some(Hook::Xdp) => vec![Place::Xdp],
            Some(Hook::Tc) => vec![Place::TcIngress],
            None => vec![Place::Xdp, Place::TcIngress],
        },
        cases: arguments.case.clone(),
        flows,
        loads: arguments
            .loads
            .unwrap_or(if arguments.quick { 3 } else { 7 }),
        packets: if arguments.quick { 262_144 } else { 1_048_576 },
        flow_capacity: shifter_common::abi::DEFAULT_FLOW_CAPACITY,
    })
}
