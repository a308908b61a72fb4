//! `shifter detach`: the off switch. Works on the pins, agent or not.

use std::path::PathBuf;

use super::{EXIT_DONE, failure::Failure, screen::Screen};
use crate::{
    datapath::{idle_note, off::detach_interfaces},
    model::config::DEFAULT_BPFFS,
};

/// Take shifter's programs off an interface, or off all.
///
/// Refuses while flows are on backends other than the VIP, because they would
/// be cut. Without a running agent the maps of a whole detach go as well.
#[derive(clap::Args, Debug)]
pub(super) struct Detach {
    /// Interface; all where none is given.
    interface: Option<String>,
    /// Go ahead and cut the flows that are on backends other than the VIP.
    #[arg(long)]
    force: bool,
    /// The BPF file system that the agent pins in.
    #[arg(long, value_name = "DIR", env = "SHIFTER_BPFFS", default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
}

impl Detach {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let done = detach_interfaces(&self.bpffs, self.interface.as_deref(), self.force)
            .map_err(|error| Failure::Local(error.into()))?;
        let mut report = format!("{} programs taken off\n", done.programs);
        if done.cut.blue + done.cut.green > 0 {
            report += &format!(
                "flows cut: {} on green, {} on blue{}\n",
                done.cut.green,
                done.cut.blue,
                idle_note(done.cut.idle)
            );
        }
        if done.maps {
            report += "pinned maps removed\n";
        }
        screen.raw(report.as_bytes())?;
        Ok(EXIT_DONE)
    }
}
