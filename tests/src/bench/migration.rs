//! Flows that move to another table: how long that takes, and whether a
//! connection and new ones notice.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    control::{Figures, Line, Options},
    start::{fill, said},
    stat::Spread,
};
use crate::{
    agent::{Agent, Settings},
    mover::Service,
    topology::{Family, Lab, Placement},
    traffic::{
        frame::{self, FRAME},
        requests, server,
    },
};

/// Longer than any migration takes.
const LIMIT: Duration = Duration::from_secs(60);
/// How long is measured before.
const QUIET: Duration = Duration::from_secs(3);
/// Between two frames or two connections.
const PAUSE: Duration = Duration::from_millis(2);

/// Moves flows to a table of twice the size; `progress` is told of each step.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Line>> {
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        let lab = Lab::new(Placement::RemoteOther)?;
        let _servers = server::start_both(&lab)?;
        let capacity = u64::from(options.flow_capacity);
        let mut agent = Agent::start(&lab, Settings::hook("tc").with_capacity(capacity))?;
        agent.apply(&[Service::of(&lab, "tcp", Family::V4).with_green("50%")])?;
        agent.stop();
        fill(&lab, options.flows, options.flow_capacity)?;
        move_once(&lab, &mut agent, options, &mut figures)?;
    }
    Ok(figures.lines)
}

fn move_once(
    lab: &Lab,
    agent: &mut Agent<'_>,
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    let vip = lab.vip(Family::V4);
    let pulses = [
        ("a round trip on a connection", Pulse::held(lab, vip)?),
        ("a new connection and a request", Pulse::fresh(lab, vip)?),
    ];
    std::thread::sleep(QUIET);
    let quiet: Vec<_> = pulses.iter().map(|(_, pulse)| pulse.take()).collect();
    agent.change(|settings| settings.flow_capacity *= 2)?;
    let start = Instant::now();
    let mut process = agent.begin(&[], &[])?;
    process.wait_for("serving took_ms", LIMIT)?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    let moving: Vec<_> = pulses.iter().map(|(_, pulse)| pulse.take()).collect();
    let log = process.output();
    let figure =
        |field| said(&log, "flows have moved", field).context("no word of flows that moved");
    let (moved, took_ms) = (figure("flows")?, figure("took_ms")?);
    ensure!(
        moved >= f64::from(options.flows),
        "of {} flows only {moved} have moved: {log}",
        options.flows
    );
    figures.add(&format!("{} flows moved", options.flows), "ms", [took_ms]);
    figures.add("start to serving, with that", "ms", [wall_ms]);
    for (i, (what, pulse)) in pulses.into_iter().enumerate() {
        for (when, took) in [("before", &quiet[i]), ("while they move", &moving[i])] {
            ensure!(
                !took.values.is_empty(),
                "{what}: nothing was measured {when}"
            );
            for (name, share) in [("median", 0.5), ("p99", 0.99), ("longest", 1.0)] {
                let line = format!("{what}, {when}, {name}");
                figures.add(&line, "ms", [took.quantile(share)]);
            }
        }
        pulse.finish().with_context(|| format!("{what} failed"))?;
    }
    agent.follow(process);
    Ok(())
}

/// Something that is done again and again beside the caller, and how long it took.
struct Pulse {
    stop: Arc<AtomicBool>,
    took: Arc<Mutex<Spread>>,
    thread: JoinHandle<Result<()>>,
}

impl Pulse {
    /// A frame there and back on one connection.
    fn held(lab: &Lab, to: SocketAddr) -> Result<Self> {
        let mut stream = lab.client.run(|| TcpStream::connect(to))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut number = 0;
        Self::start(lab, move || {
            let mut answer = [0; FRAME];
            stream.write_all(&frame::echo(0, number))?;
            stream.read_exact(&mut answer)?;
            ensure!(
                frame::wrong_bytes(&answer, 0, number) == 0,
                "a wrong answer"
            );
            number += 1;
            Ok(())
        })
    }

    /// A connection with one frame.
    fn fresh(lab: &Lab, to: SocketAddr) -> Result<Self> {
        Self::start(lab, move || Ok(requests::ask(to, None).map(drop)?))
    }

    fn start(lab: &Lab, mut once: impl FnMut() -> Result<()> + Send + 'static) -> Result<Self> {
        let (stop, took) = <(Arc<AtomicBool>, Arc<Mutex<Spread>>)>::default();
        let (until, into) = (Arc::clone(&stop), Arc::clone(&took));
        let thread = lab.client.spawn(move || {
            while !until.load(Relaxed) {
                let begun = Instant::now();
                once()?;
                let ms = begun.elapsed().as_secs_f64() * 1e3;
                lock(&into).values.push(ms);
                std::thread::sleep(PAUSE);
            }
            Ok(())
        })?;
        Ok(Self { stop, took, thread })
    }

    /// What took how long in ms since this was last asked.
    fn take(&self) -> Spread {
        std::mem::take(&mut *lock(&self.took))
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
    }
}

fn lock(took: &Mutex<Spread>) -> std::sync::MutexGuard<'_, Spread> {
    took.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
