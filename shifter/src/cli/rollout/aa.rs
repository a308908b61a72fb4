//! `shifter rollout aa`: how often gates alarm where nothing is wrong.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{EXIT_NOT_VERIFIED, source};
use crate::{
    cli::{
        EXIT_DONE,
        client::Client,
        failure::Failure,
        screen::{Screen, Style},
        table::{Table, styled},
        text,
    },
    judge::{self, GateSpec, Recording, Split},
    model::{Weight, duration, wilson},
};

/// Judge the live pool against itself, to learn a judge's false alarms on this traffic.
///
/// Its flows are dealt at random to the live pool and to a stand-in for the candidate,
/// many times; each run that a gate fails is a false alarm. Failures are dealt one by
/// one and in clumps that go to one side together: where alarms rise with the clump,
/// failures that come in bursts would alarm. Nothing is changed. Exits with 4 where a
/// sequential gate surely alarms more often than its alpha.
#[derive(clap::Args, Debug)]
pub struct Aa {
    /// Name of the service.
    #[arg(required_unless_present = "file")]
    service: Option<String>,
    /// Look at what the service does from now on, for so long; what its newest rollout
    /// has measured where this is not given.
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    time: Option<Duration>,
    /// Number of the rollout; the newest where none is given.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    #[arg(conflicts_with = "time")]
    id: u64,
    /// Look at a recording in this file. Needs no agent.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["time", "id", "service"])]
    file: Option<PathBuf>,
    /// Gates as JSON; those of the rollout, or a sequential one, where none are given.
    #[arg(long, value_name = "JSON")]
    gates: Option<String>,
    /// The stand-in's share of flows.
    #[arg(long, value_name = "SHARE", default_value = "10%")]
    weight: Weight,
    /// So many failures go to one side together.
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ',',
        default_value = "1,2,5"
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000))]
    clumps: Vec<u64>,
    /// How often the flows are dealt.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    runs: u64,
    /// Of the random numbers: the same gives the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what was measured into this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    service: String,
    windows: usize,
    /// Flows of the live pool that were dealt, and those of them that had failed.
    flows: u64,
    failures: u64,
    weight: String,
    rows: Vec<Row>,
    /// Gates that reach out of the agent: nothing was recorded of them.
    skipped: Vec<String>,
}

/// Of one gate, by one size of clumps.
#[derive(Serialize)]
struct Row {
    gate: String,
    clump: u64,
    alarms: u64,
    runs: u64,
    /// With its 95% Wilson interval.
    share: f64,
    low: f64,
    high: f64,
    /// What it may be: of a sequential gate, alpha for each step.
    allowed: Option<f64>,
    /// Surely above that.
    above: bool,
}

impl Aa {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        if self.weight.threshold() == 0 || self.weight.threshold() == Weight::ONE.threshold() {
            return Err(Failure::Usage(format!(
                "--weight {} leaves one side without flows: write a share between 0 and 100%",
                self.weight
            )));
        }
        let (text, gates) = self.recorded(client, screen).await?;
        source::keep(self.to.as_ref(), &text)?;
        let recording = source::read(&text)?;
        let answer = self.judge(&recording, &gates)?;
        let is_above = answer.rows.iter().any(|row| row.above && row.clump == 1);
        if screen.json() {
            screen.json_value(&answer)?;
        } else {
            for line in lines(&answer, screen) {
                screen.line(&line)?;
            }
        }
        Ok(match is_above {
            true => EXIT_NOT_VERIFIED,
            false => EXIT_DONE,
        })
    }

    /// What is judged, and by what.
    async fn recorded(
        &self,
        client: &Client,
        screen: &mut Screen<'_>,
    ) -> Result<(String, Vec<GateSpec>), Failure> {
        let given = self.gates.as_deref().map(source::given).transpose()?;
        let sequential = || source::given(r#"[{"judge":"sequential"}]"#);
        let service = self.service.as_deref().unwrap_or_default();
        if let Some(path) = &self.file {
            let gates = given.map_or_else(sequential, Ok)?;
            return Ok((source::of_file(path)?, gates));
        }
        if let Some(time) = self.time {
            let gates = match given {
                Some(gates) => gates,
                None => of_service(client, service)
                    .await?
                    .map_or_else(sequential, Ok)?,
            };
            return Ok((
                source::of_service(client, service, time, screen).await?,
                gates,
            ));
        }
        let (id, text) = source::of_rollout(client, service, self.id).await?;
        let gates = match given {
            Some(gates) => gates,
            None => source::of_description(client, service, id).await?,
        };
        Ok((text, gates))
    }

    fn judge(&self, recording: &Recording, gates: &[GateSpec]) -> Result<Answer, Failure> {
        let pools = recording
            .windows
            .iter()
            .map(|it| it.window(recording.live).live);
        let (flows, failures) = pools.fold((0, 0), |(flows, failures), pool| {
            (flows + pool.attempts, failures + pool.failures())
        });
        if flows == 0 {
            return Err(Failure::Local(anyhow::anyhow!(
                "{} had no new TCP flow in {}: there is nothing to deal",
                recording.live,
                text::plural(recording.windows.len() as u64, "window")
            )));
        }
        let steps = steps(recording);
        let (asked, skipped): (Vec<_>, Vec<_>) =
            gates.iter().cloned().partition(judge::is_recorded);
        let mut rows = Vec::new();
        for clump in &self.clumps {
            let split = Split {
                weight: self.weight.share(),
                clump: *clump,
            };
            let found = judge::false_alarms(recording, &asked, split, self.runs, self.seed);
            let of_gates = asked.iter().zip(&found.by_gate);
            rows.extend(
                of_gates.map(|(gate, alarms)| row(gate, *clump, *alarms, self.runs, steps)),
            );
        }
        Ok(Answer {
            service: recording.service.clone(),
            windows: recording.windows.len(),
            flows,
            failures,
            weight: self.weight.to_string(),
            rows,
            skipped: skipped.into_iter().map(|gate| gate.name).collect(),
        })
    }
}

/// Gates of the rollout that the service describes, if it does.
async fn of_service(client: &Client, service: &str) -> Result<Option<Vec<GateSpec>>, Failure> {
    let services = client.read(Some(service)).await?;
    let spec = services.into_iter().next().and_then(|it| it.spec);
    let json = spec.map(|spec| spec.rollout).unwrap_or_default();
    if json.is_empty() {
        return Ok(None);
    }
    // One without gates is judged as one without a description.
    Ok(source::described(&json).ok())
}

/// States begin anew with each step, and alpha with them.
fn steps(recording: &Recording) -> u64 {
    let mut steps: Vec<u32> = recording.windows.iter().map(|window| window.step).collect();
    steps.dedup();
    steps.len() as u64
}

fn row(gate: &GateSpec, clump: u64, alarms: u64, runs: u64, steps: u64) -> Row {
    let (share, low, high) = wilson::interval(alarms, runs).unwrap_or((0.0, 0.0, 1.0));
    let allowed = judge::alpha(gate).map(|alpha| 1.0 - (1.0 - alpha).powf(steps as f64));
    Row {
        gate: gate.name.clone(),
        clump,
        alarms,
        runs,
        share,
        low,
        high,
        allowed,
        above: allowed.is_some_and(|allowed| low > allowed),
    }
}

fn lines(answer: &Answer, screen: &Screen<'_>) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {} of {}, {} failed; {} of them dealt to a stand-in for the candidate",
        answer.service,
        text::plural(answer.flows, "flow"),
        text::plural(answer.windows as u64, "window"),
        text::count(answer.failures),
        answer.weight
    )];
    let mut table = Table::new(&["GATE", ">CLUMP", ">ALARMS", ">RUNS", "SHARE", ">ALLOWED"]);
    for row in &answer.rows {
        let share = format!(
            "{} ({} to {})",
            text::percent_about(row.share),
            text::percent_about(row.low),
            text::percent_about(row.high)
        );
        let style = match row.above {
            true => Style::Loud,
            false => Style::Plain,
        };
        let allowed = row.allowed.map(text::percent_about);
        table.row([
            row.gate.clone().into(),
            row.clump.to_string().into(),
            text::count(row.alarms).into(),
            text::count(row.runs).into(),
            styled(style, share),
            allowed.unwrap_or_else(|| "-".to_owned()).into(),
        ]);
    }
    lines.extend(table.lines(screen));
    for gate in &answer.skipped {
        lines.push(format!("{gate}: not judged, it reaches out of the agent"));
    }
    if answer.rows.iter().any(|row| row.above) {
        lines.push("more alarms than alpha allows: raise min_effect, or judge by a threshold (docs/judges.md, \"A/A\")".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_grows_with_the_steps_and_only_what_is_surely_more_stands_out() {
        let gates = source::given(
            r#"[{"judge":"sequential","alpha":"5%"},{"judge":"threshold","failure_ratio_max":"1%"}]"#,
        )
        .unwrap();
        let one = row(&gates[0], 1, 60, 1_000, 1);
        assert!((one.allowed.unwrap() - 0.05).abs() < 1e-9);
        assert!(!one.above && one.low < 0.05 && one.share > 0.05);
        assert!(row(&gates[0], 1, 90, 1_000, 1).above);
        let three = row(&gates[0], 1, 90, 1_000, 3);
        assert!((three.allowed.unwrap() - 0.142_625).abs() < 1e-9);
        assert!(!three.above);
        assert_eq!(row(&gates[1], 1, 900, 1_000, 1).allowed, None);
    }
}
