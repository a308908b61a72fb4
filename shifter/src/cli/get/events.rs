//! `shifter get events`: what happened, in its order, once or as it goes on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::Streaming;

use super::{Client, Failure, PAUSE, Screen, print};
use crate::{
    cli::{
        client::is_leaving,
        screen::Style,
        table::{Cell, Table, styled},
        text,
    },
    model::duration,
    proto::{Event, ListEventsRequest, StreamEventsRequest, error::Reason},
};

/// Show what happened, oldest first: changes, rollouts, health, interfaces, the agent.
///
/// Events are numbered, and the numbers keep their order when the clock is set. Times
/// are as the host's clock said them, in UTC. BY is who made a change: the process at
/// the agent's socket, or the part of the agent that did it by itself: rollout,
/// dead-man, breaker, file, agent.
#[derive(clap::Args, Debug)]
pub(super) struct EventsOf {
    /// Name of a service; all, the agent and its interfaces too, where none is given.
    service: Option<String>,
    /// Only a kind (change, rollout, health, interface, agent), or what happened, as
    /// rollback, gate or down.
    #[arg(
        long,
        value_name = "WORD",
        default_value = "",
        hide_default_value = true
    )]
    kind: String,
    /// Only the last so much time, as in 2h.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    since: Option<Duration>,
    /// The newest so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// The first ones after this number instead, to page on.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    after: u64,
    /// Go on, with a line for whatever happens.
    #[arg(short, long)]
    watch: bool,
}

impl EventsOf {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let request = ListEventsRequest {
            since_unix_seconds: self.since.map_or(0.0, ago),
            service: self.service.unwrap_or_default(),
            // Words of several are easier to write with hyphens.
            kind: self.kind.replace('-', " "),
            after: self.after,
            limit: self.limit,
        };
        if self.watch {
            return follow(client, request, screen).await;
        }
        let answer = client.call(client.observe().list_events(request)).await?;
        if screen.json() {
            return Ok(screen.json_value(&answer)?);
        }
        print(&lines(&answer.events, screen), screen)
    }
}

fn ago(time: Duration) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |now| (now.as_secs_f64() - time.as_secs_f64()).max(0.0))
}

/// A line for each event, as they happen. A handover is bridged: numbers go on.
async fn follow(
    client: &Client,
    mut request: ListEventsRequest,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    loop {
        let stream = StreamEventsRequest {
            service: request.service.clone(),
            kind: request.kind.clone(),
            since_unix_seconds: request.since_unix_seconds,
            after: request.after,
            limit: request.limit,
        };
        let mut events = client.call(client.observe().stream_events(stream)).await?;
        show(client, &mut events, &mut request.after, screen).await?;
        tokio::time::sleep(PAUSE / 10).await;
    }
}

/// Until the agent makes way for another.
async fn show(
    client: &Client,
    events: &mut Streaming<Event>,
    after: &mut u64,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                *after = event.number;
                if screen.json() {
                    screen.json_line(&event)?;
                } else {
                    let line = line(&event, screen);
                    screen.line(&line)?;
                }
            }
            Ok(None) => return Err(client.ended()),
            Err(status) if is_leaving(&status) => return Ok(()),
            // Cut off without a word: nobody was left to give a reason.
            Err(status) if Reason::of(&status).is_none() => return Err(client.ended()),
            Err(status) => return Err(client.failure(status)),
        }
    }
}

/// One event by itself, in columns that most fit into.
fn line(event: &Event, screen: &Screen<'_>) -> String {
    let what = format!("{:<9}  {:<12}", event.kind, event.what);
    format!(
        "{:>6}  {}  {}  {:<10}  {}",
        number(event),
        text::utc(event.at_unix_seconds),
        screen.paint(style(event), &what),
        or_dash(&event.service),
        said(event)
    )
}

fn lines(events: &[Event], screen: &Screen<'_>) -> Vec<String> {
    if events.is_empty() {
        return vec!["nothing of the kind has happened yet".to_owned()];
    }
    let mut table = Table::new(&[">NO", "TIME", "KIND", "WHAT", "SERVICE", "TEXT"]);
    for event in events {
        let what: Cell = styled(style(event), event.what.clone());
        table.row([
            number(event).into(),
            text::utc(event.at_unix_seconds).into(),
            event.kind.clone().into(),
            what,
            or_dash(&event.service).into(),
            said(event).into(),
        ]);
    }
    table.lines(screen)
}

fn number(event: &Event) -> String {
    match event.number {
        0 => "-".to_owned(),
        number => number.to_string(),
    }
}

/// What is seldom good news stands out.
fn style(event: &Event) -> Style {
    match event.what.as_str() {
        "rollback" | "rolling back" | "holding" | "freeze" | "down" | "pool down" | "gone"
        | "missing" | "taken" | "detached" | "task failed" | "store failed" | "lost" => Style::Loud,
        _ => Style::Plain,
    }
}

/// Who did what, and why.
fn said(event: &Event) -> String {
    let mut said = Vec::new();
    if event.rollout > 0 {
        said.push(format!("rollout {}", event.rollout));
    }
    if !event.actor.is_empty() {
        said.push(format!("by {}", event.actor));
    }
    if !event.after.is_empty() {
        said.push(
            match event.before.is_empty() || event.before == event.after {
                true => event.after.clone(),
                false => format!("{} -> {}", event.before, event.after),
            },
        );
    }
    if !event.text.is_empty() {
        said.push(event.text.clone());
    }
    said.join(": ")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}
