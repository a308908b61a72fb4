//! `shifter rollout`: begins rollouts, follows and steers them, shows their reports.

mod aa;
mod follow;
mod replay;
mod show;
mod source;
mod start;

use std::{path::PathBuf, time::Duration};

use super::{EXIT_DONE, client::Client, failure::Failure, screen::Screen};
use crate::proto::{GetReportRequest, GetRolloutRequest, Rollout, RolloutCommandRequest};
use aa::Aa;
use follow::follow;
use replay::Replay;
use show::show;
use start::Start;

/// A rollout was rolled back, or failed.
const EXIT_ROLLED_BACK: u8 = 5;
/// Its outcome is not known to be good.
const EXIT_NOT_VERIFIED: u8 = 4;

/// Roll a new version out in steps that judge themselves, and take themselves back.
#[derive(clap::Args, Debug)]
pub(super) struct RolloutVerb {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    Start(Box<Start>),
    Status(Status),
    Watch(Watch),
    /// Stop its progress; gates go on judging, and the weight stays.
    Pause(Command),
    /// Let it go on.
    Resume(Command),
    /// Leave the step that it is in.
    Advance(Command),
    /// Run the hook of its step again, which failed.
    Retry(Command),
    /// Give the candidate everything at once, and make it live.
    Promote(Command),
    /// Give the live pool everything again, at once.
    Abort(Command),
    Report(Report),
    Replay(Replay),
    Aa(Box<Aa>),
}

/// Show a rollout as it is.
#[derive(clap::Args, Debug)]
pub(super) struct Status {
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
}

/// Follow a rollout to its end, a line for whatever happens.
///
/// Exits with 0 when it was promoted or completed, with 5 when it was rolled back.
#[derive(clap::Args, Debug)]
pub(super) struct Watch {
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
}

/// What is told to a rollout under way.
#[derive(clap::Args, Debug)]
pub(super) struct Command {
    /// Name of the service.
    service: String,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Show the report of a rollout that is over.
#[derive(clap::Args, Debug)]
pub(super) struct Report {
    /// Name of the service.
    service: String,
    /// Number of the rollout; the newest that is over where none is given.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    id: u64,
    /// In which form; `-o json` is --format json.
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,
    /// Write it into this file.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Markdown,
    Json,
    Html,
}

impl RolloutVerb {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        match self.what {
            What::Start(start) => start.run(client, screen).await,
            What::Status(status) => {
                let rollout = get(client, &status.service, status.id).await?;
                show(&rollout, screen)?;
                Ok(EXIT_DONE)
            }
            What::Watch(watch) => follow(client, &watch.service, watch.id, screen).await,
            What::Pause(it) => it.run(client, screen, Told::Pause).await,
            What::Resume(it) => it.run(client, screen, Told::Resume).await,
            What::Advance(it) => it.run(client, screen, Told::Advance).await,
            What::Retry(it) => it.run(client, screen, Told::Retry).await,
            What::Promote(it) => it.run(client, screen, Told::Promote).await,
            What::Abort(it) => it.run(client, screen, Told::Abort).await,
            What::Report(report) => report.run(client, screen).await,
            What::Replay(replay) => replay.run(client, screen).await,
            What::Aa(aa) => aa.run(client, screen).await,
        }
    }
}

/// Which command.
#[derive(Clone, Copy)]
enum Told {
    Pause,
    Resume,
    Advance,
    Retry,
    Promote,
    Abort,
}

impl Command {
    async fn run(
        self,
        client: &Client,
        screen: &mut Screen<'_>,
        told: Told,
    ) -> Result<u8, Failure> {
        let request = RolloutCommandRequest {
            service: self.service,
            reason: self.reason,
            request_id: String::new(),
        };
        let rollout = client
            .write(Duration::ZERO, || {
                let (mut rollouts, request) = (client.rollouts(), request.clone());
                async move {
                    match told {
                        Told::Pause => rollouts.pause(request).await,
                        Told::Resume => rollouts.resume(request).await,
                        Told::Advance => rollouts.advance(request).await,
                        Told::Retry => rollouts.retry(request).await,
                        Told::Promote => rollouts.promote(request).await,
                        Told::Abort => rollouts.abort(request).await,
                    }
                }
            })
            .await?;
        show(&rollout, screen)?;
        Ok(EXIT_DONE)
    }
}

impl Report {
    async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let format = match (screen.json(), self.format) {
            (true, _) | (_, Format::Json) => "json",
            (_, Format::Markdown) => "markdown",
            (_, Format::Html) => "html",
        };
        let request = GetReportRequest {
            service: self.service,
            id: self.id,
            format: format.to_owned(),
        };
        let report = client.call(client.rollouts().get_report(request)).await?;
        match self.to {
            None => screen.line(report.text.trim_end())?,
            Some(path) => {
                std::fs::write(&path, &report.text).map_err(|error| {
                    Failure::Local(anyhow::Error::new(error).context(format!(
                        "the report cannot be written to {}",
                        path.display()
                    )))
                })?;
                screen.message(&format!(
                    "report of rollout {} written to {}",
                    report.id,
                    path.display()
                ));
            }
        }
        Ok(EXIT_DONE)
    }
}

async fn get(client: &Client, service: &str, id: u64) -> Result<Rollout, Failure> {
    let request = GetRolloutRequest {
        service: service.to_owned(),
        id,
    };
    client.call(client.rollouts().get(request)).await
}
