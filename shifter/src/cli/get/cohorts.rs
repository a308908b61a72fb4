//! `shifter get cohorts`: who gets a pool whatever the weight.

use serde::Serialize;

use crate::proto::{Cohort, Pool, Service};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{
    screen::Style,
    table::{self, Cell, Table, styled},
    text,
};

/// Show cohorts: clients, by prefix, whose new connections get a pool whatever the weight.
///
/// With the name of a service each prefix is listed. A client belongs to the
/// longest prefix that holds it. Suspended: a rollback, a promote or a passed
/// dead-man gave the live pool everything; `shifter apply` or `shifter shift
/// --cohorts on` puts cohorts in force again.
#[derive(clap::Args, Debug)]
pub(super) struct Cohorts {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Serialize)]
struct Answer {
    cohorts: Vec<Row>,
}

#[derive(Serialize, PartialEq)]
struct Row {
    service: String,
    /// "on" or "suspended"; in a watch "gone", once.
    state: String,
    /// The pool that it forces now.
    forces: String,
    #[serde(flatten)]
    cohort: Cohort,
}

impl Cohorts {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let mut page = Page::default();
        let mut last: Vec<Row> = Vec::new();
        loop {
            let services = client.read(self.service.as_deref()).await?;
            let cohorts: Vec<Row> = services.iter().flat_map(rows).collect();
            if screen.json() && !self.watch {
                return Ok(screen.json_value(&Answer { cohorts })?);
            }
            if screen.json() {
                for row in cohorts.iter().filter(|row| !last.contains(row)) {
                    screen.json_line(row)?;
                }
                for mut row in last.into_iter().filter(|row| !row.is_among(&cohorts)) {
                    row.state = "gone".to_owned();
                    screen.json_line(&row)?;
                }
                last = cohorts;
            } else {
                let lines = lines(&cohorts, screen);
                if !self.watch {
                    return print(&lines, screen);
                }
                page.show(lines, screen)?;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Row {
    fn is_among(&self, rows: &[Self]) -> bool {
        let same = |row: &Self| row.service == self.service && row.cohort.name == self.cohort.name;
        rows.iter().any(same)
    }
}

fn rows(service: &Service) -> Vec<Row> {
    let spec = service.spec.clone().unwrap_or_default();
    let candidate = match spec.live() {
        Pool::Green => Pool::Blue,
        _ => Pool::Green,
    };
    let row = |cohort: &Cohort| Row {
        service: spec.name.clone(),
        state: service.cohorts.clone(),
        forces: match cohort.pool() {
            Pool::Unspecified => candidate,
            pool => pool,
        }
        .word()
        .to_owned(),
        cohort: cohort.clone(),
    };
    spec.cohorts.iter().map(row).collect()
}

fn lines(rows: &[Row], screen: &Screen<'_>) -> Vec<String> {
    if rows.is_empty() {
        return vec![
            "no cohorts: [[service.cohort]] tables in a file for `shifter apply` make some"
                .to_owned(),
        ];
    }
    let mut table = Table::new(&["SERVICE", "COHORT", "STATE", "POOL", ">PREFIXES", ">USABLE"]);
    for row in rows {
        let cohort = &row.cohort;
        let is_candidate = cohort.pool() == Pool::Unspecified;
        let pool: Cell = match is_candidate {
            true => format!("{} (candidate)", row.forces).into(),
            false => table::pool(cohort.pool()),
        };
        table.row([
            row.service.clone().into(),
            cohort.name.clone().into(),
            state(&row.state),
            pool,
            text::count(u64::from(cohort.prefix_count)).into(),
            text::count(u64::from(cohort.usable_count)).into(),
        ]);
    }
    let mut lines = table.lines(screen);
    for Row { cohort, .. } in rows {
        let prefixes = cohort.prefixes.iter();
        lines.extend(prefixes.map(|prefix| format!("{}: {prefix}", cohort.name)));
    }
    lines
}

/// Whether cohorts are looked at.
pub(super) fn state(word: &str) -> Cell {
    match word {
        "" => "-".into(),
        "suspended" => styled(Style::Loud, word),
        word => word.to_owned().into(),
    }
}
