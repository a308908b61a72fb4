//! `shifter rollout`: begins rollouts, follows and steers them, shows their reports.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};

use crate::proto::{
    GetReportRequest, GetRolloutRequest, Rollout, RolloutCommandRequest, StartRolloutRequest,
};
use crate::{
    judge::{self, GateSpec, Recording},
    rollout::spec,
};

use super::{
    EXIT_DONE,
    client::{Client, is_leaving},
    failure::Failure,
    screen::{Screen, Style},
    span, text,
};

/// A rollout was rolled back, or failed.
const EXIT_ROLLED_BACK: u8 = 5;
/// Its outcome is not known to be good.
const EXIT_NOT_VERIFIED: u8 = 4;
/// Before a watch is begun again after a handover.
const PAUSE: Duration = Duration::from_millis(200);

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
    /// Give the candidate everything at once, and make it live.
    Promote(Command),
    /// Give the live pool everything again, at once.
    Abort(Command),
    Report(Report),
    Replay(Replay),
}

/// Begin a rollout, as the service's [service.rollout] says or as said here.
#[derive(clap::Args, Debug)]
pub(super) struct Start {
    /// Name of the service.
    service: String,
    /// How: blue-green, canary, rolling, ab or cohort-first.
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Steps of a canary, as 5%,25%,50%; also "pause", "pause 10m", "analyse 5m".
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    steps: Vec<String>,
    /// Or: rise by so much each time.
    #[arg(long, value_name = "SHARE")]
    linear: Option<String>,
    /// Or: begin with so much and rise by a factor each time.
    #[arg(long, value_name = "SHARE")]
    exponential: Option<String>,
    /// The factor; 2 unless told otherwise.
    #[arg(long, value_name = "NUMBER")]
    factor: Option<u32>,
    /// How long each share is looked at.
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
    /// How long everything stays on the candidate before it is promoted.
    #[arg(long, value_name = "TIME")]
    bake: Option<String>,
    /// Keep the last share at the end, and leave promoting to a person.
    #[arg(long)]
    no_promote: bool,
    /// The kernel takes the weight back when the agent was away for so long.
    #[arg(long, value_name = "TIME")]
    lease: Option<String>,
    /// Roll back a step that takes so much longer than it should.
    #[arg(long, value_name = "TIME")]
    progress_deadline: Option<String>,
    /// Of ab: the candidate's share.
    #[arg(long, value_name = "SHARE")]
    split: Option<String>,
    /// Of ab: how long.
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Of rolling: the pool whose backends are updated.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Of rolling: backends that may be out at once.
    #[arg(long, value_name = "NUMBER")]
    max_unavailable: Option<u32>,
    /// Of rolling: spare backends that help out.
    #[arg(long, value_name = "NUMBER")]
    surge: Option<u32>,
    /// Of rolling: how long flows of a drained backend are waited for.
    #[arg(long, value_name = "TIME")]
    drain_deadline: Option<String>,
    /// Gates as JSON, as '[{"judge":"sequential"}]'.
    #[arg(long, value_name = "JSON")]
    gates: Option<String>,
    /// Say what it would do; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Follow it to its end.
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
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
            What::Promote(it) => it.run(client, screen, Told::Promote).await,
            What::Abort(it) => it.run(client, screen, Told::Abort).await,
            What::Report(report) => report.run(client, screen).await,
            What::Replay(replay) => replay.run(client, screen).await,
        }
    }
}

impl Start {
    /// What was said here, as JSON; `None`: nothing, the service's own holds.
    fn described(&self) -> Result<Option<String>, Failure> {
        let mut said = Map::new();
        let texts = [
            ("strategy", &self.strategy),
            ("linear", &self.linear),
            ("exponential", &self.exponential),
            ("interval", &self.interval),
            ("bake", &self.bake),
            ("lease", &self.lease),
            ("progress_deadline", &self.progress_deadline),
            ("split", &self.split),
            ("duration", &self.duration),
            ("pool", &self.pool),
            ("drain_deadline", &self.drain_deadline),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                said.insert(key.to_owned(), json!(text));
            }
        }
        for (key, number) in [
            ("factor", self.factor),
            ("max_unavailable", self.max_unavailable),
            ("surge", self.surge),
        ] {
            if let Some(number) = number {
                said.insert(key.to_owned(), json!(number));
            }
        }
        if !self.steps.is_empty() {
            let steps: Vec<&str> = self.steps.iter().map(|step| step.trim()).collect();
            said.insert("steps".to_owned(), json!(steps));
        }
        if self.no_promote {
            said.insert("promote".to_owned(), Value::Bool(false));
        }
        if let Some(gates) = &self.gates {
            let gates: Value = serde_json::from_str(gates)
                .map_err(|error| Failure::Usage(format!("--gates is no JSON: {error}")))?;
            said.insert("gates".to_owned(), gates);
        }
        if said.is_empty() {
            return Ok(None);
        }
        if !said.contains_key("strategy") {
            return Err(Failure::Usage(
                "what is said here replaces the service's [service.rollout] whole, so it needs --strategy: blue-green, canary, rolling, ab or cohort-first".to_owned(),
            ));
        }
        Ok(Some(Value::Object(said).to_string()))
    }

    async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = StartRolloutRequest {
            rollout: self.described()?.unwrap_or_default(),
            service: self.service.clone(),
            reason: self.reason,
            etag: self.if_match,
            validate_only: self.dry_run,
            request_id: String::new(),
        };
        let rollout = client
            .write(Duration::ZERO, || {
                let (mut rollouts, request) = (client.rollouts(), request.clone());
                async move { rollouts.start(request).await }
            })
            .await?;
        if self.watch {
            return follow(client, &self.service, rollout.id, screen).await;
        }
        show(&rollout, screen)?;
        Ok(EXIT_DONE)
    }
}

/// Which command.
#[derive(Clone, Copy)]
enum Told {
    Pause,
    Resume,
    Advance,
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

/// Judge what a rollout has measured again, by other gates. Nothing is changed.
///
/// Exits with 5 where they would have rolled back, with 4 where they would have held.
#[derive(clap::Args, Debug)]
pub(super) struct Replay {
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
    async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
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
    let at = |ms: u64| span::show(ms as f64 / 1e3);
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

async fn get(client: &Client, service: &str, id: u64) -> Result<Rollout, Failure> {
    let request = GetRolloutRequest {
        service: service.to_owned(),
        id,
    };
    client.call(client.rollouts().get(request)).await
}

/// What a script has to know of an outcome.
fn exit_code(rollout: &Rollout) -> u8 {
    match rollout.state.as_str() {
        "promoted" | "completed" => EXIT_DONE,
        "rolled back" => EXIT_ROLLED_BACK,
        _ => EXIT_NOT_VERIFIED,
    }
}

/// Lines as things happen, until it is over. A handover in between is bridged.
async fn follow(
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
        let after = span::show(note.at_unix_seconds - rollout.began_unix_seconds);
        let line = format!("{after:>7}  {:<12}  {}", note.kind, note.text);
        screen.line(&screen.paint(style, &line))?;
    }
    *told = rollout.notes.len();
    Ok(())
}

/// A rollout as a page.
fn show(rollout: &Rollout, screen: &mut Screen<'_>) -> Result<(), Failure> {
    if screen.json() {
        return Ok(screen.json_value(rollout)?);
    }
    for line in lines(rollout, screen) {
        screen.line(&line)?;
    }
    Ok(())
}

fn lines(rollout: &Rollout, screen: &Screen<'_>) -> Vec<String> {
    let number = match rollout.id {
        0 => "a rollout".to_owned(),
        id => format!("rollout {id}"),
    };
    let style = match rollout.state.as_str() {
        "holding" | "rolling back" | "rolled back" => Style::Loud,
        _ => Style::Bold,
    };
    let mut lines = vec![format!(
        "{number} of {}: {}",
        rollout.service,
        screen.paint(style, &rollout.state)
    )];
    let mut say = |what: &str, text: String| lines.push(format!("  {what:<11} {text}"));
    let candidate = rollout.candidate();
    say(
        "strategy",
        format!("{}, candidate {}", rollout.strategy, candidate.word()),
    );
    if !rollout.why.is_empty() {
        say("why", rollout.why.clone());
    }
    say("weight", format!("{} of new flows", rollout.weight));
    if !rollout.over {
        let expected = match rollout.expected_seconds {
            0.0 => String::new(),
            expected => format!(" of {}", span::show(expected)),
        };
        say(
            "in step",
            format!("{}{expected}", span::show(rollout.spent_seconds)),
        );
        say("lease", span::show(rollout.lease_seconds));
    }
    for gate in &rollout.gates {
        let verdict = match gate.verdict.as_str() {
            "" => "has not judged in this step",
            verdict => verdict,
        };
        let reason = match gate.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        say("gate", format!("{} {verdict}{reason}", gate.name));
    }
    for (index, step) in rollout.steps.iter().enumerate() {
        let number = index as u32 + 1;
        let mark = match number.cmp(&rollout.step) {
            _ if rollout.id == 0 => " ",
            std::cmp::Ordering::Less => "✓",
            std::cmp::Ordering::Equal if !rollout.over => "▸",
            _ => " ",
        };
        lines.push(format!("  {mark} {number:>3}  {step}"));
    }
    lines
}
