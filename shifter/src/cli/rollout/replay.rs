//! `shifter rollout replay`: judges a recording here, without the agent.

use std::path::PathBuf;

use serde::Serialize;

use super::{EXIT_NOT_VERIFIED, EXIT_ROLLED_BACK, source};
use crate::{
    cli::{EXIT_DONE, client::Client, failure::Failure, screen::Screen, text},
    judge::{self, Change, GateSpec},
    model::duration,
};

/// Judge what a rollout has measured again, by other gates. Nothing is changed.
///
/// Exits with 5 where they would have rolled back, with 4 where they would have held.
#[derive(clap::Args, Debug)]
pub struct Replay {
    /// Name of the service.
    #[arg(required_unless_present = "file")]
    service: Option<String>,
    /// Number of the rollout; the newest where none is given.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    id: u64,
    /// Judge a recording in this file. Needs no agent, but gates.
    #[arg(long, value_name = "FILE", requires = "gates", conflicts_with_all = ["id", "service", "to"])]
    file: Option<PathBuf>,
    /// Gates as JSON; those that the rollout had where none are given.
    #[arg(long, value_name = "JSON")]
    gates: Option<String>,
    /// Write what was measured into this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// What came of it, for programs.
#[derive(Serialize)]
struct Answer<'a> {
    /// Its number; of a file `null`.
    rollout: Option<u64>,
    windows: usize,
    /// "rollback", "hold" or "end": what would have come first.
    outcome: &'static str,
    changes: Vec<Said<'a>>,
    rollback: Option<Said<'a>>,
    hold: Option<Said<'a>>,
    /// Gates that reach out of the agent: they were not judged.
    skipped: Vec<&'a str>,
}

/// What a gate began to say.
#[derive(Serialize)]
struct Said<'a> {
    /// Since the rollout began.
    at_seconds: f64,
    /// From 1.
    step: u32,
    gate: &'a str,
    /// "pass", "fail", "no-data", "inconclusive" or "error".
    outcome: &'static str,
    /// "hold", "advance" or "rollback".
    policy: &'static str,
    reason: &'a str,
}

impl Replay {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let given = self.gates.as_deref().map(source::given).transpose()?;
        let service = self.service.as_deref().unwrap_or_default();
        let (id, text) = match &self.file {
            Some(path) => (None, source::of_file(path)?),
            None => {
                let (id, text) = source::of_rollout(client, service, self.id).await?;
                (Some(id), text)
            }
        };
        source::keep(self.to.as_ref(), &text)?;
        let recording = source::read(&text)?;
        let gates = match (given, id) {
            (Some(gates), _) => gates,
            (None, Some(id)) => source::of_description(client, service, id).await?,
            (None, None) => return Err(Failure::Usage("--file needs --gates".to_owned())),
        };
        let replay = judge::replay(&recording, &gates);
        if screen.json() {
            screen.json_value(&answer(&replay, &gates, id))?;
        } else {
            for line in lines(&replay, &gates, id) {
                screen.line(&line)?;
            }
        }
        Ok(match (&replay.rollback, &replay.hold) {
            (Some(_), _) => EXIT_ROLLED_BACK,
            (None, Some(_)) => EXIT_NOT_VERIFIED,
            (None, None) => EXIT_DONE,
        })
    }
}

fn name(gates: &[GateSpec], gate: usize) -> &str {
    gates.get(gate).map_or("", |spec| spec.name.as_str())
}

fn answer<'a>(replay: &'a judge::Replay, gates: &'a [GateSpec], id: Option<u64>) -> Answer<'a> {
    let said = |change: &'a Change| Said {
        at_seconds: change.at_ms as f64 / 1e3,
        step: change.step + 1,
        gate: name(gates, change.gate),
        outcome: change.outcome.word(),
        policy: change.policy.word(),
        reason: &change.reason,
    };
    Answer {
        rollout: id,
        windows: replay.windows,
        outcome: match (&replay.rollback, &replay.hold) {
            (Some(_), _) => "rollback",
            (None, Some(_)) => "hold",
            (None, None) => "end",
        },
        changes: replay.changes.iter().map(said).collect(),
        rollback: replay.rollback.as_ref().map(said),
        hold: replay.hold.as_ref().map(said),
        skipped: replay
            .skipped
            .iter()
            .map(|gate| name(gates, *gate))
            .collect(),
    }
}

fn lines(replay: &judge::Replay, gates: &[GateSpec], id: Option<u64>) -> Vec<String> {
    let at = |ms: u64| duration::about(ms as f64 / 1e3);
    let windows = text::plural(replay.windows as u64, "window");
    let what = id.map_or("recording".to_owned(), |id| format!("rollout {id}"));
    let mut lines = vec![format!("{what} judged again: {windows}")];
    for change in &replay.changes {
        lines.push(format!(
            "{:>7}  step {:>2}  {}: {}: {}",
            at(change.at_ms),
            change.step + 1,
            name(gates, change.gate),
            change.outcome.word(),
            change.reason
        ));
    }
    for gate in &replay.skipped {
        lines.push(format!(
            "{}: not judged, it reaches out of the agent",
            name(gates, *gate)
        ));
    }
    lines.push(match (&replay.rollback, &replay.hold) {
        (Some(change), _) => format!("it would have been rolled back after {}", at(change.at_ms)),
        (None, Some(change)) => format!("it would have held after {}", at(change.at_ms)),
        (None, None) => "it would have gone on to its end".to_owned(),
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{Outcome, Policy};

    #[test]
    fn programs_read_what_people_do() {
        let gates =
            source::given(r#"[{"judge":"sequential"},{"judge":"exec","file":"a"}]"#).unwrap();
        let change = Change {
            at_ms: 12_500,
            step: 1,
            gate: 0,
            outcome: Outcome::Fail,
            policy: Policy::Rollback,
            reason: "failures: 2%".into(),
        };
        let replay = judge::Replay {
            changes: vec![change.clone()],
            rollback: Some(change),
            hold: None,
            skipped: vec![1],
            windows: 13,
        };
        let said = serde_json::json!({
            "at_seconds": 12.5, "step": 2, "gate": "sequential", "outcome": "fail",
            "policy": "rollback", "reason": "failures: 2%",
        });
        assert_eq!(
            serde_json::to_value(answer(&replay, &gates, Some(7))).unwrap(),
            serde_json::json!({
                "rollout": 7, "windows": 13, "outcome": "rollback", "changes": [said.clone()],
                "rollback": said, "hold": null, "skipped": ["exec"],
            })
        );
        assert_eq!(
            lines(&replay, &gates, Some(7)),
            [
                "rollout 7 judged again: 13 windows",
                "    12s  step  2  sequential: fail: failures: 2%",
                "exec: not judged, it reaches out of the agent",
                "it would have been rolled back after 12s",
            ]
        );
        let of_file = serde_json::to_value(answer(&replay, &gates, None)).unwrap();
        assert_eq!(of_file["rollout"], serde_json::Value::Null);
        assert_eq!(
            lines(&replay, &gates, None)[0],
            "recording judged again: 13 windows"
        );
    }

    #[test]
    fn a_file_needs_gates_and_no_service() {
        #[derive(clap::Parser, Debug)]
        struct Line {
            #[command(flatten)]
            replay: Replay,
        }
        let parse = |words: &str| {
            use clap::Parser as _;
            Line::try_parse_from(words.split(' '))
        };
        for words in ["x web", "x web --id 3 --to f", "x --file f --gates []"] {
            parse(words).unwrap();
        }
        for words in [
            "x",
            "x --file f",
            "x web --file f --gates []",
            "x --file f --gates [] --id 3",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
