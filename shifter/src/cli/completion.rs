//! `shifter completion`: completions for a shell.

use super::{EXIT_DONE, failure::Failure, screen::Screen};

/// Print completions for a shell.
#[derive(clap::Args, Debug)]
pub(super) struct Completion {
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "shifter", &mut script);
        screen.raw(&script)?;
        Ok(EXIT_DONE)
    }
}
