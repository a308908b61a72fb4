//! Interfaces, next hops and XDP slots that change under traffic. Each change is
//! followed by the kernel's notice of it, and no connection is lost.
//!
//! How long that took is printed. The contract says 100 ms; asserted is a bound
//! that a busy machine keeps and that the agent's pass of each second, which
//! would find most changes too, would not keep every time.

mod coming;
mod lost;
mod next_hops;
mod slot;
mod watch;

use std::{
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::Service,
    topology::{Lab, Netns},
    traffic::storm::Storm,
};

/// How often each change is made.
const ROUNDS: u32 = 3;
/// And in the long form.
const ROUNDS_LONG: u32 = 11;

fn rounds() -> u32 {
    shifter_tests::need::scaled(ROUNDS, ROUNDS_LONG)
}

/// One scenario at a time: they measure time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start<'lab>(lab: &'lab Lab, settings: Settings, green: &str) -> Agent<'lab> {
    let agent = Agent::start(lab, settings.with_capacity(4_096)).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green(green))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

const TCP_FLOWS: u32 = 100;

/// Connections with stamped data on both families, `udp_flows` beside them.
fn storm(lab: &Lab, udp_flows: u32) -> Storm {
    Storm::answered(lab, TCP_FLOWS, udp_flows, 10).unwrap()
}

/// Waits until every flow can have been answered twice since the change.
fn goes_on(storm: &Storm) {
    let frames = &storm.progress().frames;
    let enough = frames.load(Relaxed) + 2 * u64::from(TCP_FLOWS);
    let goes_on = eventually(Duration::from_secs(10), || frames.load(Relaxed) > enough);
    assert!(goes_on, "answers stay away: {storm:?}");
}

/// Runs lines of `ip` in a namespace.
fn ip(ns: &Netns, lines: &[&str]) {
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    ns.ip(&lines).unwrap_or_else(|error| panic!("{error:?}"));
}
