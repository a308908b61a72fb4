//! `shifter agent`: runs the agent.

use std::path::{Path, PathBuf};

use super::{EXIT_DONE, failure::Failure};

/// Run the agent of this host until SIGTERM; the datapath outlives it.
#[derive(clap::Args, Debug)]
pub(super) struct Agent {
    /// Configuration of the agent.
    #[arg(long, value_name = "FILE", default_value = "/etc/shifter/shifter.toml")]
    config: PathBuf,
}

impl Agent {
    pub fn run(self) -> Result<u8, Failure> {
        run_agent(&self.config).map_err(Failure::Local)?;
        Ok(EXIT_DONE)
    }
}

/// Where the agent is wired in: `crate::agent::run(config)`.
fn run_agent(config: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no agent for {}", config.display())
}
