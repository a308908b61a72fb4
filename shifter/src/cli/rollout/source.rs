//! Where recordings and gates come from, for what judges them here.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::get;
use crate::{
    cli::{client::Client, failure::Failure, screen::Screen},
    judge::{GateSpec, Recording},
    model::duration,
    proto::{GetReportRequest, StreamRecordingRequest},
    rollout::spec,
};

pub fn local(error: &dyn std::fmt::Display) -> Failure {
    Failure::Local(anyhow::anyhow!("{error}"))
}

/// What a rollout has measured: its number and the text.
pub async fn of_rollout(client: &Client, service: &str, id: u64) -> Result<(u64, String), Failure> {
    let request = GetReportRequest {
        service: service.to_owned(),
        id,
        format: "recording".to_owned(),
    };
    let answer = client.call(client.rollouts().get_report(request)).await?;
    Ok((answer.id, answer.text))
}

/// What a running service does from now on, for a time.
pub async fn of_service(
    client: &Client,
    service: &str,
    time: Duration,
    screen: &mut Screen<'_>,
) -> Result<String, Failure> {
    let request = StreamRecordingRequest {
        service: service.to_owned(),
        interval_seconds: 0.0,
    };
    let mut stream = client
        .call(client.observe().stream_recording(request))
        .await?;
    screen.message(&format!(
        "recording what {service} does for {}",
        duration::show(time)
    ));
    let until = tokio::time::Instant::from_std(Instant::now() + time);
    let mut text = String::new();
    loop {
        match tokio::time::timeout_at(until, stream.message()).await {
            Err(_) => return Ok(text),
            Ok(Ok(Some(line))) => {
                text.push_str(&line.line);
                text.push('\n');
            }
            Ok(Ok(None)) => return Err(client.ended()),
            Ok(Err(status)) => return Err(client.failure(status)),
        }
    }
}

/// What lies in a file.
pub fn of_file(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("{} cannot be read", path.display());
        Failure::Local(anyhow::Error::new(error).context(what))
    })
}

/// Keeps a recording where a path is given.
pub fn keep(path: Option<&PathBuf>, text: &str) -> Result<(), Failure> {
    let Some(path) = path else {
        return Ok(());
    };
    std::fs::write(path, text).map_err(|error| {
        let what = format!("{} cannot be written", path.display());
        Failure::Local(anyhow::Error::new(error).context(what))
    })
}

pub fn read(text: &str) -> Result<Recording, Failure> {
    Recording::parse(text).map_err(|error| local(&error))
}

/// Gates as they are given, as JSON.
pub fn given(gates: &str) -> Result<Vec<GateSpec>, Failure> {
    let json = format!(r#"{{"strategy":"canary","gates":{gates}}}"#);
    gates_of(&json, "--gates names none")
}

/// Gates of a described rollout.
pub fn described(json: &str) -> Result<Vec<GateSpec>, Failure> {
    gates_of(json, "the rollout had no gates")
}

fn gates_of(json: &str, none: &str) -> Result<Vec<GateSpec>, Failure> {
    let spec = spec::from_json(json).map_err(|error| local(&error))?;
    if spec.gates.is_empty() {
        let text = format!(r#"{none}: say which, as --gates '[{{"judge":"sequential"}}]'"#);
        return Err(Failure::Usage(text));
    }
    Ok(spec.gates)
}

/// Gates that a rollout had.
pub async fn of_description(
    client: &Client,
    service: &str,
    id: u64,
) -> Result<Vec<GateSpec>, Failure> {
    described(&get(client, service, id).await?.description)
}
