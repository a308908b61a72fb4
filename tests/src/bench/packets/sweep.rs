//! Passes of the agent over a table with many flows.

use std::{path::Path, sync::mpsc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use shifter::datapath::{Datapath as _, attach::Place};
use shifter_common::abi::config::DEFAULT_TIMEOUTS_S;

use super::{
    bed::{Bed, Subject},
    frames::{Kind, Role},
    run::thread_ns,
};
use crate::scene::in_scene;

/// Times of single passes in ms: by the clock, and of the CPU.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// Flows in the table.
    pub flows: u64,
    pub sweep_ms: Vec<f64>,
    pub sweep_cpu_ms: Vec<f64>,
    pub census_ms: Vec<f64>,
    pub census_cpu_ms: Vec<f64>,
}

/// Sweeps and counts a table of so many flows (a power of two) `rounds` times.
pub fn passes(object: &Path, flows: u32, capacity: u32, rounds: usize) -> Result<Passes> {
    let object = object.to_owned();
    let (send, receive) = mpsc::channel();
    in_scene(capacity, DEFAULT_TIMEOUTS_S, move |scene| {
        let measured = Bed::new(
            scene,
            &object,
            Kind::ALL[0],
            Place::TcIngress,
            capacity,
            flows,
        )
        .and_then(|mut bed| {
            bed.fill(Role::Open, flows)?;
            bed.run(Subject::Shifter, flows)?;
            go_over(&bed, flows, rounds)
        });
        let _ = send.send(measured);
    });
    receive.recv().context("the scene ended early")?
}

fn go_over(bed: &Bed, flows: u32, rounds: usize) -> Result<Passes> {
    let datapath = &bed.scene.datapath;
    let mut passes = Passes {
        flows: datapath.census().live,
        ..Passes::default()
    };
    ensure!(
        passes.flows + u64::from(flows / 50_000) >= u64::from(flows),
        "of {flows} flows only {} are there",
        passes.flows
    );
    for _ in 0..rounds {
        let (wall, cpu, swept) = timed(|| datapath.sweep());
        ensure!(swept == 0, "{swept} of the flows had expired");
        passes.sweep_ms.push(wall);
        passes.sweep_cpu_ms.push(cpu);
        let (wall, cpu, _) = timed(|| datapath.census());
        passes.census_ms.push(wall);
        passes.census_cpu_ms.push(cpu);
    }
    Ok(passes)
}

fn timed<T>(call: impl FnOnce() -> T) -> (f64, f64, T) {
    let (start, cpu) = (Instant::now(), thread_ns());
    let value = call();
    let cpu = (thread_ns() - cpu) as f64 / 1e6;
    (start.elapsed().as_secs_f64() * 1e3, cpu, value)
}
