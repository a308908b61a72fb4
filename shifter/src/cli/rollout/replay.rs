//! `shifter rollout replay`: judges a recording here, without the agent.

use crate::model::duration;
use std::path::PathBuf;

use super::{EXIT_NOT_VERIFIED, EXIT_ROLLED_BACK, get};
use crate::{
    cli::{EXIT_DONE, client::Client, failure::Failure, screen::Screen, text},
    judge::{self, GateSpec, Recording},
    proto::GetReportRequest,
    rollout::spec,
};

/// Judge what a rollout has measured again, by other gates. Nothing is changed.
///
/// Exits with 5 where they would have rolled back, with 4 where they would have held.
#[derive(clap::Args, Debug)]
pub struct Replay {
    /// Name of the service.
    service: String,
    /// Number of the rollout; the newest where none is given.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    id: u64,
    /// Gates as JSON; those that the rollout had where none are given.
    #[arg(long, value_name = "JSON")]
    gates: Option<String>,
    /// Write what was measured into this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

impl Replay {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = GetReportRequest {
            service: self.service.clone(),
            id: self.id,
            format: "recording".to_owned(),
        };
        let answer = client.call(client.rollouts().get_report(request)).await?;
        if let Some(path) = &self.to {
            std::fs::write(path, &answer.text).map_err(|error| {
                let what = format!("{} cannot be written", path.display());
                Failure::Local(anyhow::Error::new(error).context(what))
            })?;
        }
        let local = |error: &dyn std::fmt::Display| Failure::Local(anyhow::anyhow!("{error}"));
        let recording = Recording::parse(&answer.text).map_err(|error| local(&error))?;
        let described = match self.gates {
            Some(gates) => format!(r#"{{"strategy":"canary","gates":{gates}}}"#),
            None => get(client, &self.service, answer.id).await?.description,
        };
        let spec = spec::from_json(&described).map_err(|error| local(&error))?;
        if spec.gates.is_empty() {
            return Err(Failure::Usage(
                "rollout had no gates: say which, as --gates '[{\"judge\":\"sequential\"}]'"
                    .to_owned(),
            ));
        }
        let replay = judge::replay(&recording, &spec.gates);
        for line in replay_lines(&replay, &spec.gates, answer.id) {
            screen.line(&line)?;
        }
        Ok(match (&replay.rollback, &replay.hold) {
            (Some(_), _) => EXIT_ROLLED_BACK,
            (None, Some(_)) => EXIT_NOT_VERIFIED,
            (None, None) => EXIT_DONE,
        })
    }
}

fn replay_lines(replay: &judge::Replay, gates: &[GateSpec], id: u64) -> Vec<String> {
    let name = |gate: usize| gates.get(gate).map_or("", |spec| spec.name.as_str());
    let at = |ms: u64| duration::about(ms as f64 / 1e3);
    let windows = text::plural(replay.windows as u64, "window");
    let mut lines = vec![format!("rollout {id} judged again: {windows}")];
    for change in &replay.changes {
        lines.push(format!(
            "{:>7}  step {:>2}  {}: {}: {}",
            at(change.at_ms),
            change.step + 1,
            name(change.gate),
            change.outcome.word(),
            change.reason
        ));
    }
    for gate in &replay.skipped {
        lines.push(format!(
            "{}: not judged, it reaches out of the agent",
            name(*gate)
        ));
    }
    lines.push(match (&replay.rollback, &replay.hold) {
        (Some(change), _) => format!("it would have been rolled back after {}", at(change.at_ms)),
        (None, Some(change)) => format!("it would have held after {}", at(change.at_ms)),
        (None, None) => "it would have gone on to its end".to_owned(),
    });
    lines
}
