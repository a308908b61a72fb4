//! `shifter get signals`: how pools do, as the kernel sees it.

use serde::Serialize;

use crate::proto::{Pool, PoolSignals, Service, TimeSummary};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{
    screen::Style,
    table::{self, Table, styled},
    text,
};

/// Show attempts, failures, times and what was sent again, by pool.
#[derive(clap::Args, Debug)]
pub(super) struct Signals {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Serialize)]
struct Answer {
    signals: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    service: String,
    pool: &'static str,
    failures: u64,
    #[serde(flatten)]
    signals: PoolSignals,
    #[serde(skip)]
    name: Pool,
}

impl Signals {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let mut page = Page::default();
        loop {
            let answer = rows(client.read(self.service.as_deref()).await?);
            match (screen.json(), self.watch) {
                (true, true) => screen.json_line(&answer)?,
                (true, false) => screen.json_value(&answer)?,
                (false, true) => page.show(lines(&answer.signals, screen), screen)?,
                (false, false) => print(&lines(&answer.signals, screen), screen)?,
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn rows(services: Vec<Service>) -> Answer {
    let mut signals = Vec::new();
    for service in services {
        let name = text::name(&service).to_owned();
        let pools = [
            (Pool::Blue, service.blue_signals),
            (Pool::Green, service.green_signals),
        ];
        signals.extend(pools.into_iter().filter_map(|(pool, signals)| {
            let signals = signals?;
            Some(Row {
                service: name.clone(),
                pool: pool.word(),
                failures: failures(&signals),
                signals,
                name: pool,
            })
        }));
    }
    Answer { signals }
}

fn failures(signals: &PoolSignals) -> u64 {
    signals.unanswered + signals.refused + signals.resets_before_data + signals.resets_after_data
}

fn lines(rows: &[Row], screen: &Screen<'_>) -> Vec<String> {
    if rows.is_empty() {
        return vec!["no services: `shifter apply -f FILE` makes some".to_owned()];
    }
    let mut table = Table::new(&[
        "SERVICE",
        "POOL",
        ">ATTEMPTS",
        ">FAILED",
        ">REFUSED",
        ">UNANSWERED",
        ">RESET",
        ">HANDSHAKE P50",
        ">P99",
        ">FIRST BYTE P50",
        ">P99",
        ">SENT AGAIN",
    ]);
    for row in rows {
        let signals = &row.signals;
        let failed = text::count(row.failures);
        table.row([
            row.service.clone().into(),
            table::pool(row.name),
            text::count(signals.attempts).into(),
            match row.failures {
                0 => failed.into(),
                _ => styled(Style::Loud, failed),
            },
            text::count(signals.refused).into(),
            text::count(signals.unanswered).into(),
            text::count(signals.resets_before_data + signals.resets_after_data).into(),
            time(signals.handshake.as_ref(), |t| t.p50_seconds).into(),
            time(signals.handshake.as_ref(), |t| t.p99_seconds).into(),
            time(signals.first_byte.as_ref(), |t| t.p50_seconds).into(),
            time(signals.first_byte.as_ref(), |t| t.p99_seconds).into(),
            text::count(signals.client_retransmits + signals.backend_retransmits).into(),
        ]);
    }
    table.lines(screen)
}

/// A quantile, or a dash without data.
fn time(summary: Option<&TimeSummary>, quantile: impl Fn(&TimeSummary) -> Option<f64>) -> String {
    match summary.and_then(quantile) {
        None => "–".to_owned(),
        Some(seconds) if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2} s"),
    }
}
