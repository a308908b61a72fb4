//! `shifter runner`: runs the programs of exec gates, hooks and checks as another user.

use std::path::PathBuf;

use super::{EXIT_DONE, failure::Failure};

/// Run the programs of exec gates, hooks and checks, as `exec_user`; started by the agent or systemd.
///
/// It listens on descriptor 3 and answers root alone. The agent has not the right to
/// become another user: it starts this before it gives that right up, or asks
/// shifter-runner.socket where it never had it.
#[derive(clap::Args, Debug)]
pub(super) struct Runner {
    /// Configuration of the agent.
    #[arg(long, value_name = "FILE", default_value = "/etc/shifter/shifter.toml")]
    config: PathBuf,
    /// End when standard input does.
    #[arg(long)]
    lifeline: bool,
}

impl Runner {
    pub fn run(self) -> Result<u8, Failure> {
        crate::agent::run_programs(&self.config, self.lifeline).map_err(Failure::Local)?;
        Ok(EXIT_DONE)
    }
}
