//! `shifter get`: services, backends, flows, cohorts, signals, rollouts, events, audit, once or again and again.

mod audit;
mod backends;
mod cohorts;
mod events;
mod flows;
mod rollouts;
mod services;
mod signals;

use std::time::Duration;

use super::{EXIT_DONE, client::Client, failure::Failure, screen::Screen};

/// How often a watch reads again.
const PAUSE: Duration = Duration::from_secs(1);

/// Show services, backends, flows, cohorts, how pools do, rollouts, what happened or who changed what.
#[derive(clap::Args, Debug)]
pub(super) struct Get {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    #[command(visible_alias = "service")]
    Services(services::Services),
    #[command(visible_alias = "backend")]
    Backends(backends::Backends),
    #[command(visible_alias = "flow")]
    Flows(flows::Flows),
    #[command(visible_alias = "signal")]
    Signals(signals::Signals),
    #[command(visible_alias = "cohort")]
    Cohorts(cohorts::Cohorts),
    #[command(visible_alias = "rollout")]
    Rollouts(rollouts::Rollouts),
    #[command(visible_alias = "event")]
    Events(events::EventsOf),
    Audit(audit::Audit),
}

impl Get {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        match self.what {
            What::Services(what) => what.run(client, screen).await?,
            What::Backends(what) => what.run(client, screen).await?,
            What::Cohorts(what) => what.run(client, screen).await?,
            What::Flows(what) => what.run(client, screen).await?,
            What::Signals(what) => what.run(client, screen).await?,
            What::Rollouts(what) => what.run(client, screen).await?,
            What::Events(what) => what.run(client, screen).await?,
            What::Audit(what) => what.run(client, screen).await?,
        }
        Ok(EXIT_DONE)
    }
}

/// A page that a watch shows in the place of the one before: on a terminal
/// over it, elsewhere below it and only where it differs.
#[derive(Default)]
struct Page {
    last: Vec<String>,
}

impl Page {
    fn show(&mut self, lines: Vec<String>, screen: &mut Screen<'_>) -> Result<(), Failure> {
        if screen.out_is_terminal() {
            // Home and clear, so that a shorter page leaves nothing behind.
            screen.raw(b"\x1b[H\x1b[2J")?;
        } else if lines == self.last {
            return Ok(());
        } else if !self.last.is_empty() {
            screen.line("")?;
        }
        print(&lines, screen)?;
        self.last = lines;
        Ok(())
    }
}

fn print(lines: &[String], screen: &mut Screen<'_>) -> Result<(), Failure> {
    for line in lines {
        screen.line(line)?;
    }
    Ok(())
}
