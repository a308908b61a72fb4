//! `shifter doctor`: is this host fit, and what mends it.

use super::{EXIT_DONE, failure::Failure, screen::Screen};

/// Check whether this host is fit for shifter, and say what mends it.
#[derive(clap::Args, Debug)]
pub(super) struct Doctor {}

impl Doctor {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let report = examine_host().map_err(Failure::Local)?;
        screen.raw(report.as_bytes())?;
        Ok(EXIT_DONE)
    }
}

/// Where the examination is wired in: `crate::doctor::run()`.
fn examine_host() -> anyhow::Result<String> {
    anyhow::bail!("this build has no doctor")
}
