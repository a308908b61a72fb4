//! The agent: opens the datapath, attaches it, and keeps both it and the API alive.
//!
//! Order of a start: locks, network, maps and programs, stored state, sockets,
//! egress on all interfaces, ingress, API. A stop leaves everything in the
//! kernel; a handover (`handover`) keeps the API answering.

mod alone;
mod doors;
mod engine;
mod handover;
mod hooks;
mod host;
mod keepers;
mod left_over;
mod life;
mod limits;
mod loud;
mod notify;
mod panics;
pub mod peer;
pub mod prepare;
pub mod privilege;
mod rollouts;
mod serving;
mod successor;
mod supervise;

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    gate::{self, Asker},
    model::config::{AgentConfig, parse_config_with},
};

/// How long a call that hangs may keep the process at its end.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// Runs the agent of this host until SIGTERM, SIGINT, or until another takes
/// over. With `replace` it takes over from the one that runs, if one does.
pub fn run(config_path: &Path, replace: bool) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SHIFTER_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let config = read_config(config_path)?;
    limits::raise_files()?;
    // While this process may become another user; it lives as long as the agent.
    let runner = gate::runner::start(&config, config_path);
    // Before the first thread: each has capabilities of its own.
    privilege::drop_what_is_not_needed(&config);
    let asker = Asker::new(&config.gates, runner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the agent's runtime")?;
    let ended = runtime.block_on(life::live(config, Arc::new(asker), replace));
    runtime.shutdown_timeout(LAST_CALLS);
    ended
}

/// Runs the programs of gates for an agent (`gate::runner`).
pub fn run_programs(config_path: &Path, has_lifeline: bool) -> Result<()> {
    let config = read_config(config_path)?;
    gate::runner::serve(&config, has_lifeline).context(
        "running programs for the agent: descriptor 3 has to be a socket that listens, as shifter-runner.socket hands it over",
    )
}

/// The agent's configuration.
fn read_config(path: &Path) -> Result<AgentConfig> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "reading {}: name the agent's configuration with --config",
            path.display()
        )
    })?;
    let mut read = |path: &str| {
        fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))
    };
    Ok(parse_config_with(
        &text,
        &path.display().to_string(),
        &mut read,
    )?)
}
