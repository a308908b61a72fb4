//! `shifter detach`: the off switch. Works on the pins, agent or not.

use super::{EXIT_DONE, failure::Failure, screen::Screen};

/// Take shifter's programs off an interface, or off all.
///
/// Refuses while green carries flows, because they would be cut.
#[derive(clap::Args, Debug)]
pub(super) struct Detach {
    /// Interface; all where none is given.
    interface: Option<String>,
    /// Go ahead and cut the flows that green carries.
    #[arg(long)]
    force: bool,
}

impl Detach {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let report =
            detach_interface(self.interface.as_deref(), self.force).map_err(Failure::Local)?;
        screen.raw(report.as_bytes())?;
        Ok(EXIT_DONE)
    }
}

/// Where the datapath is wired in: detaches and says, line by line, what was done.
fn detach_interface(interface: Option<&str>, _force: bool) -> anyhow::Result<String> {
    anyhow::bail!(
        "this build cannot detach {}",
        interface.unwrap_or("interfaces")
    )
}
