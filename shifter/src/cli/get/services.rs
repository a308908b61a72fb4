//! `shifter get services`: the four numbers of each weight.

use tonic::Streaming;

use crate::model::duration;
use crate::proto::{CutStatus, ListServicesResponse, Pool, Service, WatchRequest, WatchResponse};

use super::{Client, Failure, PAUSE, Page, Screen, cohorts, print};
use crate::cli::{
    client::is_leaving,
    screen::Style,
    table::{self, Table, styled},
    text,
};

/// Show services with the four numbers of their weight.
///
/// Configured: what was asked for. Programmed: what the kernel acts on now.
/// Observed: green's share of the new flows (or clients) of the window, with
/// its 95% interval; flows whose pool a cohort forced are counted apart.
/// Carried: the live flows of each pool.
#[derive(clap::Args, Debug)]
pub(super) struct Services {
    /// Name of a service; all where none is given.
    name: Option<String>,
    /// Go on and show every change.
    #[arg(short, long)]
    watch: bool,
}

impl Services {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        if self.watch {
            return self.watch(client, screen).await;
        }
        let services = client.read(self.name.as_deref()).await?;
        if screen.json() {
            return Ok(screen.json_value(&ListServicesResponse { services })?);
        }
        print(&lines(&services, screen), screen)
    }

    async fn watch(&self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let mut changes = Changes {
            client,
            name: self.name.clone().unwrap_or_default(),
            known: 0,
            stream: None,
        };
        if screen.json() {
            loop {
                let change = changes.next().await?;
                screen.json_line(&change)?;
            }
        }
        // A change is shown at once, what is counted every second.
        let mut page = Page::default();
        let mut present = false;
        loop {
            match tokio::time::timeout(PAUSE, changes.next()).await {
                Ok(change) => present |= change?.kind != "present",
                Err(_) => present = true,
            }
            if present {
                let services = client.read(self.name.as_deref()).await?;
                page.show(lines(&services, screen), screen)?;
            }
        }
    }
}

/// A watch that goes on with the next agent where one takes over from another.
struct Changes<'a> {
    client: &'a Client,
    name: String,
    /// Version up to which everything was told.
    known: u64,
    stream: Option<Streaming<WatchResponse>>,
}

impl Changes<'_> {
    async fn next(&mut self) -> Result<WatchResponse, Failure> {
        loop {
            if self.stream.is_none() {
                let request = WatchRequest {
                    name: self.name.clone(),
                    resume_version: self.known,
                };
                let mut services = self.client.services();
                self.stream = Some(self.client.call(services.watch(request)).await?);
            }
            let Some(stream) = &mut self.stream else {
                continue;
            };
            match stream.message().await {
                Ok(Some(change)) => {
                    self.known = self.known.max(change.version);
                    return Ok(change);
                }
                Ok(None) => return Err(self.client.ended()),
                Err(status) if is_leaving(&status) => {
                    self.stream = None;
                    // It may answer on this connection for a moment yet.
                    tokio::time::sleep(PAUSE / 10).await;
                }
                Err(status) => return Err(self.client.failure(status)),
            }
        }
    }
}

fn lines(services: &[Service], screen: &Screen<'_>) -> Vec<String> {
    if services.is_empty() {
        return vec!["no services: `shifter apply -f FILE` makes some".to_owned()];
    }
    let mut columns = vec![
        "NAME",
        "VIP",
        "LIVE",
        ">CONFIGURED",
        ">PROGRAMMED",
        "OBSERVED",
        "CARRIED",
        ">GEN",
        "DEAD-MAN",
    ];
    // Most hosts have none.
    let has_cohorts = services.iter().any(|service| !service.cohorts.is_empty());
    if has_cohorts {
        columns.push("COHORTS");
    }
    let mut table = Table::new(&columns);
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let weights = service.weights.clone().unwrap_or_default();
        let dead_man = service.dead_man.as_ref();
        let mut cells = vec![
            spec.name.clone().into(),
            spec.vip.clone().into(),
            table::pool(spec.live()),
            weights.configured.clone().into(),
            text::percent(weights.programmed_share).into(),
            text::observed(&weights.observed.unwrap_or_default()).into(),
            text::carried(&weights).into(),
            service.generation.to_string().into(),
            dead_man.map_or("-".into(), |d| styled(Style::Loud, text::dead_man(d))),
        ];
        if has_cohorts {
            cells.push(cohorts::state(&service.cohorts));
        }
        table.row(cells);
    }
    let mut lines = table.lines(screen);
    let word = screen.paint(Style::Loud, "warning:");
    for service in services {
        let name = text::name(service);
        lines.extend(
            service
                .warnings
                .iter()
                .map(|text| format!("{word} {name}: {text}")),
        );
    }
    lines.extend(services.iter().flat_map(cuts));
    lines
}

/// A line for each cut of a service.
fn cuts(service: &Service) -> Vec<String> {
    let name = text::name(service);
    let line = |cut: &CutStatus| {
        let pool = match cut.pool() {
            Pool::Unspecified => "both pools",
            Pool::Blue => "blue",
            Pool::Green => "green",
        };
        let what = match cut.backend.as_str() {
            "" => pool.to_owned(),
            backend => format!("{pool}/{backend}"),
        };
        let cause = &cut.cause;
        if cut.begins_in_seconds > 0.0 {
            return format!(
                "cut: {name}: flows of {what} that are left in {} are ended at {}/s ({cause}, {})",
                duration::about(cut.begins_in_seconds),
                cut.per_second,
                cut.actor
            );
        }
        let left = cut
            .left
            .map_or(String::new(), |left| format!(", {left} left"));
        format!(
            "cut: {name}: {} of {what} ended{left}, at {}/s ({cause}, {})",
            text::plural(cut.ended, "flow"),
            cut.per_second,
            cut.actor
        )
    };
    service.cuts.iter().map(line).collect()
}
