//! `shifter detach`: the off switch. Works on the pins, agent or not.

use std::path::PathBuf;

use serde::Serialize;

use super::{EXIT_DONE, failure::Failure, screen::Screen};
use crate::{
    datapath::{idle_note, off::detach_interfaces, plural},
    model::config::DEFAULT_BPFFS,
};

/// Take shifter's programs off an interface, or off all.
///
/// Refuses while flows are on backends other than the VIP, because they would
/// be cut. Which of them come in at one interface is not known, so all of them
/// count for each. Without a running agent the maps of a whole detach go as well.
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

/// What was done, for programs.
#[derive(Serialize)]
struct Answer {
    /// Null: all of them.
    interface: Option<String>,
    /// Programs taken off.
    programs: usize,
    flows: Flows,
    maps_removed: bool,
}

/// Flows on backends other than the VIP: cut, or with an interface named, cut
/// if they came in there.
#[derive(Serialize)]
struct Flows {
    green: u64,
    blue: u64,
    /// Those of both without a packet for two hours.
    idle: u64,
}

impl Detach {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let done = detach_interfaces(&self.bpffs, self.interface.as_deref(), self.force)
            .map_err(|error| Failure::Local(error.into()))?;
        if screen.json() {
            screen.json_value(&Answer {
                interface: self.interface,
                programs: done.programs,
                flows: Flows {
                    green: done.cut.green,
                    blue: done.cut.blue,
                    idle: done.cut.idle,
                },
                maps_removed: done.maps,
            })?;
            return Ok(EXIT_DONE);
        }
        let mut report = format!("{} taken off\n", plural(done.programs as u64, "program"));
        if done.cut.blue + done.cut.green > 0 {
            let what = match &self.interface {
                Some(name) => format!("flows cut if they came in at {name}"),
                None => "flows cut".to_owned(),
            };
            report += &format!(
                "{what}: {} on green, {} on blue{}\n",
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
