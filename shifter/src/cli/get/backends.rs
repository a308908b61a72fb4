//! `shifter get backends`: where packets go, and what comes back.

use serde::Serialize;

use crate::proto::{BackendStatus, Service};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{
    screen::Style,
    table::{self, Cell, Table, styled},
    text,
};

/// Show backends with their flows and packets, and those that answer nothing.
#[derive(clap::Args, Debug)]
pub(super) struct Backends {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Serialize)]
struct Answer {
    backends: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    service: String,
    #[serde(flatten)]
    backend: BackendStatus,
}

impl Backends {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let mut page = Page::default();
        loop {
            let answer = rows(client.read(self.service.as_deref()).await?);
            match (screen.json(), self.watch) {
                (true, true) => screen.json_line(&answer)?,
                (true, false) => screen.json_value(&answer)?,
                (false, true) => page.show(lines(&answer.backends, screen), screen)?,
                (false, false) => print(&lines(&answer.backends, screen), screen)?,
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn rows(services: Vec<Service>) -> Answer {
    let mut backends = Vec::new();
    for service in services {
        let name = text::name(&service).to_owned();
        backends.extend(service.backends.into_iter().map(|backend| Row {
            service: name.clone(),
            backend,
        }));
    }
    Answer { backends }
}

fn lines(rows: &[Row], screen: &Screen<'_>) -> Vec<String> {
    if rows.is_empty() {
        return vec!["no backends: `shifter apply -f FILE` makes some".to_owned()];
    }
    let mut table = Table::new(&[
        "SERVICE",
        "POOL",
        "BACKEND",
        ">WEIGHT",
        "STATE",
        "HEALTH",
        "PLACED",
        ">FLOWS",
        ">NEW",
        ">SENT",
        ">ANSWERED",
    ]);
    for Row { service, backend } in rows {
        let packets = |packets, bytes| format!("{} ({})", text::count(packets), text::bytes(bytes));
        let answered = packets(backend.reply_packets, backend.reply_bytes);
        let answered = match backend.warnings.is_empty() {
            true => answered.into(),
            false => styled(Style::Loud, answered),
        };
        table.row([
            service.clone().into(),
            table::pool(backend.pool()),
            backend.address.clone().into(),
            backend.weight.to_string().into(),
            backend.state().word().into(),
            health(backend),
            backend.placement.clone().into(),
            text::count(backend.live_flows).into(),
            text::count(backend.new_flows).into(),
            packets(backend.forward_packets, backend.forward_bytes).into(),
            answered,
        ]);
    }
    let mut lines = table.lines(screen);
    lines.extend(rows.iter().filter_map(|row| failing(row, screen)));
    let word = screen.paint(Style::Loud, "warning:");
    for Row { service, backend } in rows {
        lines.extend(
            backend
                .warnings
                .iter()
                .map(|text| format!("{word} {service}: {text}")),
        );
    }
    lines
}

fn health(backend: &BackendStatus) -> Cell {
    match backend.health.as_str() {
        "down" => styled(Style::Loud, "down".to_owned()),
        word => word.to_owned().into(),
    }
}

/// Since when a backend is down, and why; or why the last check of another failed.
fn failing(Row { service, backend }: &Row, screen: &Screen<'_>) -> Option<String> {
    let checks = backend.checks.as_ref()?;
    let address = &backend.address;
    let reason = match checks.reason.as_str() {
        "" => "its last check passed",
        reason => reason,
    };
    if backend.health == "down" {
        let since = match checks.since_unix_seconds > 0.0 {
            true => text::utc(checks.since_unix_seconds),
            false => "before the agent started".to_owned(),
        };
        let word = screen.paint(Style::Loud, "down:");
        return Some(format!(
            "{word} {service}: {address} since {since}: {reason}"
        ));
    }
    (!checks.reason.is_empty())
        .then(|| format!("check: {service}: the last one of {address} failed: {reason}"))
}
