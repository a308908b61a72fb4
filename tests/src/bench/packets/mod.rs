//! What a packet costs: BPF_PROG_TEST_RUN through the driver, programs side by side.

mod bed;
mod case;
mod frames;
pub mod reference;
mod round;
mod run;
mod sweep;
mod table;

use std::{path::PathBuf, sync::mpsc};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use shifter::datapath::attach::Place;
use shifter_common::abi::config::DEFAULT_TIMEOUTS_S;

pub use self::sweep::{Passes, passes};
use self::{
    bed::Bed,
    case::Case,
    frames::Kind,
    round::{Round, Sample},
};
use super::{report, stat::Spread};
use crate::scene::{hook_name, in_scene};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub object: PathBuf,
    pub places: Vec<Place>,
    /// Cases with any of these in their names; none: all.
    pub cases: Vec<String>,
    /// Powers of two up to 2^20, rising.
    pub flows: Vec<u32>,
    /// Fresh loads.
    pub loads: usize,
    /// Packets of a measurement, at least.
    pub packets: u32,
    pub flow_capacity: u32,
}

/// What one program under test costs over the driver, and the driver itself.
#[derive(Clone, Debug)]
pub struct Line {
    pub hook: &'static str,
    pub case: String,
    pub flows: u32,
    /// Driver and empty program.
    pub driver: Spread,
    /// What a program costs that only waits for the frame.
    pub wait: Spread,
    pub shifter: Spread,
    pub reference: Spread,
}

/// Measures; `progress` is told of each load.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Line>> {
    let beds = beds(options);
    if beds.is_empty() {
        bail!("no case has a name with any of {:?}", options.cases);
    }
    let mut lines: Vec<Line> = Vec::new();
    for load in 0..options.loads {
        for (place, kind, cases) in &beds {
            let hook = hook_name(*place);
            progress(&format!(
                "load {} of {}: {hook} {}",
                load + 1,
                options.loads,
                kind.name()
            ));
            for sample in on_fresh_load(options, *place, *kind, cases, load)? {
                add(&mut lines, hook, *kind, &sample);
            }
        }
    }
    Ok(lines)
}

/// Hook, kind of flow and its cases, as far as they are asked for.
fn beds(options: &Options) -> Vec<(Place, Kind, Vec<Case>)> {
    let wanted = |name: String| {
        options.cases.is_empty() || options.cases.iter().any(|part| name.contains(part))
    };
    let mut beds = Vec::new();
    for &place in &options.places {
        for kind in Kind::ALL {
            let cases: Vec<Case> = Case::ALL
                .into_iter()
                .filter(|case| case.is_of(kind) && wanted(case.name(kind)))
                .collect();
            if !cases.is_empty() {
                beds.push((place, kind, cases));
            }
        }
    }
    beds
}

fn on_fresh_load(
    options: &Options,
    place: Place,
    kind: Kind,
    cases: &[Case],
    turn: usize,
) -> Result<Vec<Sample>> {
    let (send, receive) = mpsc::channel();
    let (options, cases) = (options.clone(), cases.to_vec());
    in_scene(options.flow_capacity, DEFAULT_TIMEOUTS_S, move |scene| {
        let most = options.flows.iter().copied().max().unwrap_or(1);
        let round = Round {
            cases: &cases,
            flows: &options.flows,
            packets: options.packets,
            turn,
        };
        let capacity = options.flow_capacity;
        let measured = run::stay_on_one_cpu()
            .context("choosing a CPU")
            .and_then(|()| Bed::new(scene, &options.object, kind, place, capacity, most))
            .and_then(|mut bed| round.run(&mut bed))
            .with_context(|| format!("{} at {}", kind.name(), hook_name(place)));
        let _ = send.send(measured);
    });
    receive.recv().context("the scene ended early")?
}

fn add(lines: &mut Vec<Line>, hook: &'static str, kind: Kind, sample: &Sample) {
    let case = sample.case.name(kind);
    let at = lines
        .iter()
        .position(|line| line.hook == hook && line.case == case && line.flows == sample.flows);
    let at = at.unwrap_or_else(|| {
        lines.push(Line {
            hook,
            case,
            flows: sample.flows,
            driver: Spread::default(),
            wait: Spread::default(),
            shifter: Spread::default(),
            reference: Spread::default(),
        });
        lines.len() - 1
    });
    let [empty, wait, shifter, reference] = sample.packet_ns;
    lines[at].wait.values.push(wait - empty);
    lines[at].driver.values.push(empty);
    lines[at].shifter.values.push(shifter - empty);
    lines[at].reference.values.push(reference - empty);
}

/// A number of flows as people write it.
fn flows_text(flows: u32) -> String {
    match flows {
        1_048_576 => "1 Mi".to_owned(),
        1_024.. if flows.is_multiple_of(1_024) => format!("{} Ki", flows / 1_024),
        _ => flows.to_string(),
    }
}

/// For people.
pub fn table(lines: &[Line]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let ratio = line.shifter.median() / line.reference.median();
            vec![
                line.hook.to_owned(),
                line.case.clone(),
                flows_text(line.flows),
                line.driver.text(0),
                line.wait.text(0),
                line.shifter.text(0),
                line.reference.text(0),
                format!("{ratio:.2}"),
            ]
        })
        .collect();
    let head = [
        "hook",
        "case",
        "flows",
        "driver, ns",
        "wait, ns",
        "shifter, ns",
        "reference, ns",
        "ratio",
    ];
    report::table(&head, &rows)
}

/// For programs.
pub fn json(lines: &[Line]) -> Value {
    let lines = lines.iter().map(|line| {
        json!({
            "hook": line.hook,
            "case": line.case,
            "flows": line.flows,
            "driver_ns": line.driver.json(),
            "wait_ns": line.wait.json(),
            "shifter_ns": line.shifter.json(),
            "reference_ns": line.reference.json(),
        })
    });
    Value::Array(lines.collect())
}
