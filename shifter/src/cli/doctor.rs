//! `shifter doctor`: is this host fit, and what mends it.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{
    EXIT_DONE,
    failure::Failure,
    screen::{Screen, Style},
};
use crate::{
    doctor::{self, Hook, Level, Wanted},
    model::config::{HookChoice, parse_config_with},
};

/// A host that cannot carry shifter.
const EXIT_UNFIT: u8 = 1;

/// Check whether this host is fit for shifter, and say what mends it.
#[derive(clap::Args, Debug)]
pub(super) struct Doctor {
    /// Configuration of the agent, for its interfaces and services.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub fn run(self, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let wanted = self.wanted().map_err(Failure::Local)?;
        let findings = doctor::run(wanted.as_ref());
        if screen.json() {
            screen.json_value(&findings)?;
        } else {
            let color = screen.paint(Style::Bold, "x") != "x";
            screen.raw(doctor::render(&findings, color).as_bytes())?;
        }
        let unfit = doctor::worst(&findings) == Level::Error;
        Ok(if unfit { EXIT_UNFIT } else { EXIT_DONE })
    }

    fn wanted(&self) -> anyhow::Result<Option<Wanted>> {
        let Some(path) = &self.config else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let config = parse_config_with(&text, &path.display().to_string(), &mut |path| {
            std::fs::read_to_string(path).map_err(|e| format!("{path} cannot be read: {e}"))
        })?;
        let backends = config.services.iter().flat_map(|service| {
            let pools = service.blue_pool.iter().chain(&service.green_pool);
            pools.map(|backend| (backend.addr, service.vip.protocol))
        });
        Ok(Some(Wanted {
            hook: match config.hook {
                HookChoice::Auto => Hook::Auto,
                HookChoice::Xdp => Hook::Xdp,
                HookChoice::Tc => Hook::Tc,
            },
            vips: config.services.iter().map(|service| service.vip).collect(),
            backends: backends.collect(),
            own_programs: Vec::new(),
            interfaces: config.interfaces,
        }))
    }
}
