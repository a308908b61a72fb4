//! Gates that reach out of the agent: PromQL, webhooks and programs. One function
//! asks any of them and always comes back with a judgement, within its time-out.

mod exec;
mod http;
mod prometheus;
pub mod runner;
mod webhook;

use std::time::{Duration, Instant};

pub use exec::RunnerAt;

use crate::{
    judge::{GateSpec, Judge, Judgement, Outcome},
    model::{gates::GatesConfig, health::Tls},
    rollout::Happened,
    tls::Trust,
};

/// What the agent may ask.
#[derive(Debug)]
pub struct Asker {
    /// `host:port`, of `[gates]` of the agent's file.
    hosts: Vec<String>,
    /// Who may have signed the certificates of these hosts.
    tls: Tls,
    trust: Trust,
    runner: Option<RunnerAt>,
}

/// What is asked about, for payloads and for `SHIFTER_*`.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Subject {
    pub service: String,
    /// Number of the rollout.
    pub rollout: u64,
    pub step: usize,
    /// The candidate's share of new flows, as `5%`.
    pub weight: String,
    /// Where the rollout is, as it is shown.
    pub phase: String,
    /// The pool that is judged: `blue` or `green`.
    pub candidate: String,
}

/// Beyond its time-out a gate is given up: the time that a runner takes to kill.
const GRACE: Duration = Duration::from_secs(2);

impl Asker {
    /// One that goes where `[gates]` lets it, and has `runner` run programs.
    pub fn new(gates: &GatesConfig, runner: Option<RunnerAt>) -> Self {
        Self {
            hosts: gates.hosts.clone(),
            tls: Tls {
                ca: gates.ca.clone(),
                insecure: false,
            },
            trust: Trust::default(),
            runner,
        }
    }

    /// Who runs programs; `None` without an `exec_dir`.
    pub fn runner(&self) -> Option<&RunnerAt> {
        self.runner.as_ref()
    }

    /// Asks a gate. One that needs nothing but counts is no business of this.
    pub async fn ask(&self, spec: &GateSpec, subject: &Subject) -> Judgement {
        let begun = Instant::now();
        let answer = async {
            match &spec.judge {
                Judge::Prometheus(it) => prometheus::ask(self, it).await,
                Judge::Webhook(it) => webhook::ask(self, it, subject).await,
                Judge::Exec(it) => exec::ask(self, it, spec, subject).await,
                _ => error("this gate is judged by counts, nobody is asked"),
            }
        };
        let limit = spec.timeout().unwrap_or_default() + GRACE;
        let mut judgement = match tokio::time::timeout(limit, answer).await {
            Ok(judgement) => judgement,
            Err(_) => error(format!("no answer within {} ms", limit.as_millis())),
        };
        let took = begun.elapsed().as_nanos() as f64;
        judgement.statistics.push(("took_ns".into(), took));
        judgement
    }

    /// Tells a webhook what has happened. Its answer changes nothing; the text says why
    /// it was not told.
    pub async fn tell(
        &self,
        spec: &GateSpec,
        subject: &Subject,
        happened: &Happened,
    ) -> Result<(), String> {
        let Judge::Webhook(webhook) = &spec.judge else {
            return Err("it is no webhook".into());
        };
        let limit = webhook.timeout + GRACE;
        match tokio::time::timeout(limit, webhook::tell(self, webhook, subject, happened)).await {
            Ok(told) => told,
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    /// Asked at each call: what is stored may be older than the agent's file.
    fn is_allowed(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| allowed == host)
    }
}

fn said(outcome: Outcome, reason: impl Into<String>) -> Judgement {
    Judgement {
        outcome,
        reason: reason.into(),
        statistics: Vec::new(),
    }
}

fn error(reason: impl Into<String>) -> Judgement {
    said(Outcome::Error, reason)
}

/// The first line of what others wrote, short and without control characters.
fn first_line(text: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or_default();
    line.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests;
