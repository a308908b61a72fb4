//! Echo servers of a lab, as processes of their own.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{
    agent::sibling,
    command::Process,
    topology::{Family, Lab, Netns, Side},
};

/// Starts the `traffic echo` server at `addrs` and waits until it listens.
pub fn start_at(lab: &Lab, ns: &Netns, addrs: &[SocketAddr], identity: u8) -> Result<Process> {
    let mut command = ns.command(sibling("traffic")?);
    command
        .arg("echo")
        .args(["--identity", &identity.to_string()]);
    for addr in addrs {
        command.args(["--listen", &addr.to_string()]);
    }
    let port = addrs.first().map_or(0, SocketAddr::port);
    let log = lab
        .dir()
        .join(format!("echo-{identity}-{port}-{}.log", unique()));
    let mut process = Process::start(command, log)?;
    process.wait_for("ready", Duration::from_secs(10))?;
    Ok(process)
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Starts a side's server where the lab's placement has it.
pub fn start(lab: &Lab, side: Side) -> Result<Process> {
    let addrs = Family::BOTH.map(|family| lab.listen(side, family));
    start_at(lab, lab.server_ns(side), &addrs, side.identity())
}

/// Both servers.
pub fn start_both(lab: &Lab) -> Result<[Process; 2]> {
    Ok([start(lab, Side::Blue)?, start(lab, Side::Green)?])
}
