//! `shifter apply`: services from a file, all or nothing.

use crate::model::duration;
use std::path::PathBuf;

use crate::proto::{ApplyRequest, Receipt};

use super::{
    EXIT_DONE,
    client::Client,
    failure::Failure,
    file, plan,
    screen::{Screen, Style},
    text,
};

/// Put the services of a file in force, all of them or none.
#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    /// File of services, TOML or JSON; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Check and say what would change; exits with 2 where there are changes.
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless the one service of the file has this etag.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
    /// Go ahead where taking over would cut connections.
    #[arg(long)]
    force: bool,
}

impl Apply {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let services = file::read_services(&self.file).map_err(Failure::Local)?;
        let more = file::more_time(services.len());
        let request = ApplyRequest {
            services,
            etag: self.if_match,
            validate_only: self.dry_run,
            force: self.force,
            request_id: String::new(),
        };
        let answer = client
            .write(more, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.apply(request).await }
            })
            .await?;
        if screen.json() {
            screen.json_value(&answer)?;
        } else if self.dry_run {
            plan::print(&answer.changes, screen)?;
        } else {
            for change in &answer.changes {
                for line in plan::lines(change, screen) {
                    screen.line(&line)?;
                }
            }
            print_receipts(&answer.receipts, screen)?;
        }
        Ok(match self.dry_run {
            true => plan::exit_code(&answer.changes),
            false => EXIT_DONE,
        })
    }
}

fn print_receipts(receipts: &[Receipt], screen: &mut Screen<'_>) -> Result<(), Failure> {
    for receipt in receipts {
        for warning in &receipt.warnings {
            let word = screen.paint(Style::Loud, "warning:");
            screen.line(&format!("{word} {}: {warning}", receipt.service))?;
        }
    }
    let changed: Vec<_> = receipts
        .iter()
        .filter(|receipt| !receipt.unchanged)
        .collect();
    let longest = |time: fn(&Receipt) -> u64| receipts.iter().map(time).max().unwrap_or(0);
    let what = text::plural(receipts.len() as u64, "service");
    screen.line(&match changed.last() {
        None => format!("{what} in force, none changed"),
        Some(last) => format!(
            "{what} in force, {} changed, generation {}, programmed in {}, answered in {}",
            changed.len(),
            last.generation,
            duration::short(longest(|receipt| receipt.programmed_ns) as f64),
            duration::short(longest(|receipt| receipt.total_ns) as f64),
        ),
    })?;
    Ok(())
}
