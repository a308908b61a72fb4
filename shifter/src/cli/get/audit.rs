//! `shifter get audit`: who changed what, when and why.

use crate::proto::{AuditRecord, ListAuditRequest, ListAuditResponse};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{table::Table, text};

/// Show who changed what, newest first.
///
/// BY is the process at the agent's socket, or the part of the agent that wrote
/// by itself: rollout, breaker, dead-man, file, agent. Times are as the host's clock said them, in
/// UTC; the numbers keep the order when the clock is set.
#[derive(clap::Args, Debug)]
pub(super) struct Audit {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// List at most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only records before this number, to page on.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    before: u64,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

impl Audit {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let request = ListAuditRequest {
            service: self.service.unwrap_or_default(),
            limit: self.limit,
            before: self.before,
        };
        if self.watch && screen.json() {
            return follow(client, request, screen).await;
        }
        let mut page = Page::default();
        loop {
            let answer = read(client, &request).await?;
            if screen.json() {
                return Ok(screen.json_value(&answer)?);
            }
            let lines = lines(&answer.records, self.limit, screen);
            if !self.watch {
                return print(&lines, screen);
            }
            page.show(lines, screen)?;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn read(client: &Client, request: &ListAuditRequest) -> Result<ListAuditResponse, Failure> {
    client
        .call(client.admin().list_audit(request.clone()))
        .await
}

/// A line for each record, oldest first, and for each new one.
async fn follow(
    client: &Client,
    request: ListAuditRequest,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    let mut seen = 0;
    loop {
        let answer = read(client, &request).await?;
        for record in answer.records.iter().rev().filter(|r| r.number > seen) {
            screen.json_line(record)?;
        }
        seen = answer.records.first().map_or(seen, |record| record.number);
        tokio::time::sleep(PAUSE).await;
    }
}

fn lines(records: &[AuditRecord], limit: u32, screen: &Screen<'_>) -> Vec<String> {
    if records.is_empty() {
        return vec!["nothing was changed yet".to_owned()];
    }
    let mut table = Table::new(&[
        "NO", "TIME", "BY", "SERVICE", "ACTION", ">GEN", "BEFORE", "AFTER", "REASON", "REQUEST",
    ]);
    for record in records {
        table.row([
            record.number.to_string().into(),
            text::utc(record.at_unix_seconds).into(),
            record.actor.clone().into(),
            record.service.clone().into(),
            record.action.clone().into(),
            record.generation.to_string().into(),
            or_dash(&record.before).into(),
            or_dash(&record.after).into(),
            or_dash(&record.reason).into(),
            or_dash(&record.request_id).into(),
        ]);
    }
    let mut lines = table.lines(screen);
    if let Some(last) = records
        .last()
        .filter(|last| records.len() as u64 == u64::from(limit) && last.number > 1)
    {
        lines.push(format!("older ones: --before {}", last.number));
    }
    lines
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}
