//! `shifter plan`: what a file or a weight would change.

use std::path::PathBuf;

use crate::proto::{Change, PlanRequest, SetWeightRequest, set_weight_request::ShareOf};

use super::{
    EXIT_CHANGES, EXIT_DONE,
    client::Client,
    failure::Failure,
    file,
    screen::{Screen, Style},
    share, text,
};

/// Say what a file or a weight would change, and change nothing.
///
/// Exits with 2 where there are changes.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["file", "service"]))]
#[command(group = clap::ArgGroup::new("share").args(["candidate", "green", "blue"]))]
pub(super) struct Plan {
    /// File of services, TOML or JSON; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name of a service whose weight would change.
    #[arg(requires = "share")]
    service: Option<String>,
    /// Share of the pool that is not live: 5%, 0.05% or 1/3.
    #[arg(long, value_name = "SHARE", value_parser = share::parse, requires = "service")]
    candidate: Option<String>,
    /// Share of the green pool.
    #[arg(long, value_name = "SHARE", value_parser = share::parse, requires = "service")]
    green: Option<String>,
    /// Share of the blue pool.
    #[arg(long, value_name = "SHARE", value_parser = share::parse, requires = "service")]
    blue: Option<String>,
}

impl Plan {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let share_of = self
            .candidate
            .map(ShareOf::Candidate)
            .or(self.green.map(ShareOf::Green))
            .or(self.blue.map(ShareOf::Blue));
        let request = match self.file {
            Some(path) => PlanRequest {
                services: file::read_services(&path).map_err(Failure::Local)?,
                weight: None,
            },
            None => PlanRequest {
                services: Vec::new(),
                weight: Some(SetWeightRequest {
                    name: self.service.unwrap_or_default(),
                    share_of,
                    ..Default::default()
                }),
            },
        };
        let more = file::more_time(request.services.len());
        let answer = client
            .call_for(more, client.services().plan(request))
            .await?;
        if screen.json() {
            screen.json_value(&answer)?;
        } else {
            print(&answer.changes, screen)?;
        }
        Ok(exit_code(&answer.changes))
    }
}

/// 2 where there are changes.
pub(super) fn exit_code(changes: &[Change]) -> u8 {
    match changes.iter().any(|change| change.action != "unchanged") {
        true => EXIT_CHANGES,
        false => EXIT_DONE,
    }
}

/// Prints changes as lines that begin with `+`, `~` or `=`.
pub(super) fn print(changes: &[Change], screen: &mut Screen<'_>) -> Result<(), Failure> {
    for change in changes {
        for line in lines(change, screen) {
            screen.line(&line)?;
        }
    }
    let of = |action| {
        changes
            .iter()
            .filter(|change| change.action == action)
            .count()
    };
    screen.line(&format!(
        "{} to create, {} to update, {} unchanged",
        of("create"),
        of("update"),
        of("unchanged")
    ))?;
    Ok(())
}

/// The lines of one change.
pub(super) fn lines(change: &Change, screen: &Screen<'_>) -> Vec<String> {
    let (mark, style) = match change.action.as_str() {
        "create" => ("+", Style::Green),
        "unchanged" => ("=", Style::Dim),
        _ => ("~", Style::Loud),
    };
    let effect = match change.action.as_str() {
        "update" => format!(
            ": {} of the hash space moves, {} where they are",
            text::percent(change.moved_share),
            match change.flows_that_stay {
                1 => "1 flow stays".to_owned(),
                flows => format!("{} flows stay", text::count(flows)),
            },
        ),
        _ => String::new(),
    };
    let head = format!("{mark} {}", change.service);
    let mut lines = vec![format!(
        "{} {}{effect}",
        screen.paint(style, &head),
        change.action
    )];
    lines.extend(change.details.iter().map(|detail| format!("    {detail}")));
    let warning = screen.paint(Style::Loud, "warning:");
    lines.extend(
        change
            .warnings
            .iter()
            .map(|text| format!("    {warning} {text}")),
    );
    lines
}
