//! `shifter get services`: the four numbers of each weight.

use tonic::Streaming;

use crate::proto::{ListServicesResponse, Service, WatchRequest, WatchResponse};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{
    screen::Style,
    table::{self, Table, styled},
    text,
};

/// Show services with the four numbers of their weight.
///
/// Configured: what was asked for. Programmed: what the kernel acts on now.
/// Observed: green's share of the new flows (or clients) of the window, with
/// its 95% interval. Carried: the live flows of each pool.
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
        let request = WatchRequest {
            name: self.name.clone().unwrap_or_default(),
            resume_version: 0,
        };
        let mut changes = client.call(client.services().watch(request)).await?;
        if screen.json() {
            loop {
                let change = next(&mut changes, client).await?;
                screen.json_line(&change)?;
            }
        }
        // A change is shown at once, what is counted every second.
        let mut page = Page::default();
        let mut present = false;
        loop {
            match tokio::time::timeout(PAUSE, next(&mut changes, client)).await {
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

async fn next(
    changes: &mut Streaming<WatchResponse>,
    client: &Client,
) -> Result<WatchResponse, Failure> {
    match changes.message().await {
        Ok(Some(change)) => Ok(change),
        Ok(None) => Err(client.ended()),
        Err(status) => Err(client.failure(status)),
    }
}

fn lines(services: &[Service], screen: &Screen<'_>) -> Vec<String> {
    if services.is_empty() {
        return vec!["no services: `shifter apply -f FILE` makes some".to_owned()];
    }
    let mut table = Table::new(&[
        "NAME",
        "VIP",
        "LIVE",
        ">CONFIGURED",
        ">PROGRAMMED",
        "OBSERVED",
        "CARRIED",
        ">GEN",
        "DEAD-MAN",
    ]);
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let weights = service.weights.clone().unwrap_or_default();
        let dead_man = service.dead_man.as_ref();
        table.row([
            spec.name.clone().into(),
            spec.vip.clone().into(),
            table::pool(spec.live()),
            weights.configured.clone().into(),
            text::percent(weights.programmed_share).into(),
            text::observed(&weights.observed.unwrap_or_default()).into(),
            text::carried(&weights).into(),
            service.generation.to_string().into(),
            dead_man.map_or("-".into(), |d| styled(Style::Loud, text::dead_man(d))),
        ]);
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
    lines
}
