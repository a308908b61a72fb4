//! `shifter rollout watch`: a line for whatever happens, until it is over.

use crate::model::duration;
use std::time::Duration;

use super::{EXIT_NOT_VERIFIED, EXIT_ROLLED_BACK};
use crate::{
    cli::{
        EXIT_DONE,
        client::{Client, is_leaving},
        failure::Failure,
        screen::{Screen, Style},
        text,
    },
    proto::{GetRolloutRequest, Rollout},
};

/// Before a watch is begun again after a handover.
const PAUSE: Duration = Duration::from_millis(200);

/// What a script has to know of an outcome.
fn exit_code(rollout: &Rollout) -> u8 {
    match rollout.state.as_str() {
        "promoted" | "completed" => EXIT_DONE,
        "rolled back" => EXIT_ROLLED_BACK,
        _ => EXIT_NOT_VERIFIED,
    }
}

/// Lines as things happen, until it is over. A handover in between is bridged.
pub async fn follow(
    client: &Client,
    service: &str,
    id: u64,
    screen: &mut Screen<'_>,
) -> Result<u8, Failure> {
    let mut told = 0;
    let mut id = id;
    let mut last: Option<Rollout> = None;
    let mut quiet_since: Option<std::time::Instant> = None;
    loop {
        let request = GetRolloutRequest {
            service: service.to_owned(),
            id,
        };
        let failure = match client.call(client.rollouts().watch(request)).await {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(rollout)) => {
                        quiet_since = None;
                        id = rollout.id;
                        tell(&rollout, last.as_ref(), &mut told, screen)?;
                        let is_over = rollout.over && rollout.has_report;
                        if is_over {
                            return Ok(exit_code(&rollout));
                        }
                        last = Some(rollout);
                    }
                    Ok(None) => break client.ended(),
                    Err(status) if is_leaving(&status) => break client.ended(),
                    Err(status) => break client.failure(status),
                }
            },
            Err(failure) => failure,
        };
        // The agent may be restarted or replaced: the rollout goes on.
        let since = *quiet_since.get_or_insert_with(std::time::Instant::now);
        let is_away = matches!(failure, Failure::Unreachable { .. });
        if !is_away || last.is_none() || since.elapsed() > client.patience() {
            return Err(failure);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is new in a rollout.
fn tell(
    rollout: &Rollout,
    last: Option<&Rollout>,
    told: &mut usize,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    if screen.json() {
        let is_new = last.is_none_or(|last| last != rollout);
        if is_new {
            screen.json_line(rollout)?;
        }
        return Ok(());
    }
    if last.is_none() {
        let what = format!(
            "rollout {} of {}: {} to {}, {}",
            rollout.id,
            rollout.service,
            rollout.strategy,
            rollout.candidate().word(),
            text::plural(rollout.steps.len() as u64, "step"),
        );
        screen.line(&screen.paint(Style::Bold, &what))?;
    }
    for note in rollout.notes.iter().skip(*told) {
        let style = match note.kind.as_str() {
            "rolling back" | "holding" => Style::Loud,
            _ => Style::Plain,
        };
        let after = duration::about(note.at_unix_seconds - rollout.began_unix_seconds);
        let line = format!("{after:>7}  {:<12}  {}", note.kind, note.text);
        screen.line(&screen.paint(style, &line))?;
    }
    *told = rollout.notes.len();
    Ok(())
}
