//! `shifter agent`: runs the agent.

use std::path::PathBuf;

use super::{EXIT_DONE, failure::Failure};

/// Run the agent of this host until SIGTERM; the datapath outlives it.
#[derive(clap::Args, Debug)]
pub(super) struct Agent {
    /// Configuration of the agent.
    #[arg(long, value_name = "FILE", default_value = "/etc/shifter/shifter.toml")]
    config: PathBuf,
    /// Take over from the agent that runs, without a moment in which none answers.
    ///
    /// If this one cannot be ready, that one goes on. Under systemd, `systemctl
    /// reload shifter` does this.
    #[arg(long)]
    replace: bool,
}

impl Agent {
    pub fn run(self) -> Result<u8, Failure> {
        crate::agent::run(&self.config, self.replace).map_err(Failure::Local)?;
        Ok(EXIT_DONE)
    }
}
