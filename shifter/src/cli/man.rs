//! `shifter man`: manual pages.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{EXIT_DONE, failure::Failure, screen::Screen};

/// Print the manual page, or write one file per verb.
#[derive(clap::Args, Debug)]
pub(super) struct Man {
    /// Write shifter.1 and a page per verb into this directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        match self.dir {
            Some(dir) => std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(super::command(), &dir))
                .with_context(|| format!("writing manual pages into {} failed", dir.display()))
                .map_err(Failure::Local)?,
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(super::command()).render(&mut page)?;
                screen.raw(&page)?;
            }
        }
        Ok(EXIT_DONE)
    }
}
