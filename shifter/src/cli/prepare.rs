//! `shifter prepare`: what the agent's three capabilities do not carry.

use std::path::PathBuf;

use super::{EXIT_DONE, failure::Failure, screen::Screen};

/// Prepare this host for an agent with few privileges; run by the unit as root.
///
/// An agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON. What they do not carry
/// is done here, before each start, with all that root may:
///
/// - the directory for pins under the mounted bpffs is made, and root's alone
///   (it mounts nothing: a missing bpffs is an error);
/// - the state directory is made, and root's alone with its files, because root
///   without CAP_DAC_OVERRIDE cannot open what another user owns;
/// - the directory of the API's socket is made;
/// - the names of all loaded eBPF programs are noted beside the socket
///   (programs.json): the kernel names programs to CAP_SYS_ADMIN only, and the
///   agent must know whose program is on its interfaces.
///
/// It is harmless beside a running agent, which reads the new note at once.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Prepare {
    /// Configuration of the agent.
    #[arg(long, value_name = "FILE", default_value = "/etc/shifter/shifter.toml")]
    config: PathBuf,
}

impl Prepare {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let done = crate::agent::prepare::prepare(&self.config).map_err(Failure::Local)?;
        if screen.json() {
            screen.json_value(&done)?;
        } else {
            for line in done {
                screen.line(&line)?;
            }
        }
        Ok(EXIT_DONE)
    }
}
