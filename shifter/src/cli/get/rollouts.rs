//! `shifter get rollouts`: what runs and what has run.

use crate::model::duration;
use crate::proto::{ListRolloutsRequest, Rollout};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{table::Table, text};

/// Show rollouts, newest first.
#[derive(clap::Args, Debug)]
pub(super) struct Rollouts {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// List at most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

impl Rollouts {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let request = ListRolloutsRequest {
            service: self.service.unwrap_or_default(),
            limit: self.limit,
        };
        let mut page = Page::default();
        let mut last: Vec<Rollout> = Vec::new();
        loop {
            let answer = client.call(client.rollouts().list(request.clone())).await?;
            if screen.json() && !self.watch {
                return Ok(screen.json_value(&answer)?);
            }
            if screen.json() {
                for rollout in answer.rollouts.iter().rev().filter(|r| !last.contains(r)) {
                    screen.json_line(rollout)?;
                }
                last = answer.rollouts;
            } else {
                let lines = lines(&answer.rollouts, screen);
                if !self.watch {
                    return print(&lines, screen);
                }
                page.show(lines, screen)?;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn lines(rollouts: &[Rollout], screen: &Screen<'_>) -> Vec<String> {
    if rollouts.is_empty() {
        return vec!["no rollout yet".to_owned()];
    }
    let mut table = Table::new(&[
        ">NO", "SERVICE", "STRATEGY", "STATE", ">STEP", ">WEIGHT", "BEGAN", ">TOOK", "WHY",
    ]);
    for rollout in rollouts {
        let took = match rollout.ended_unix_seconds {
            0.0 => "-".to_owned(),
            ended => duration::about(ended - rollout.began_unix_seconds),
        };
        let all = rollout.steps.len() as u32;
        let why = match rollout.why.as_str() {
            "" => "-".to_owned(),
            why => why.to_owned(),
        };
        table.row([
            rollout.id.to_string().into(),
            rollout.service.clone().into(),
            rollout.strategy.clone().into(),
            rollout.state.clone().into(),
            format!("{}/{all}", rollout.step.min(all)).into(),
            rollout.weight.clone().into(),
            text::utc(rollout.began_unix_seconds).into(),
            took.into(),
            why.into(),
        ]);
    }
    table.lines(screen)
}
