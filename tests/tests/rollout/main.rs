//! Rollouts with real servers: promoted, rolled back by a judge, by hand, by the
//! lease and by the breaker; an agent that is killed in the middle of whatever it does.

mod blue_green;
mod canary;
mod cohorts;
mod dead;
mod description;
mod kills;
mod late;
mod resets;
mod rolling;

use std::{process::Output, time::Duration};

use serde_json::Value;
use shifter_tests::{
    agent::Agent,
    command::eventually,
    mover::Service,
    topology::{Family, Lab},
};

const NAME: &str = "tcp4";

/// What a busy machine may take until something is seen.
const SOON: Duration = Duration::from_secs(20);

fn service(lab: &Lab) -> Service {
    Service::of(lab, "tcp", Family::V4)
}

/// Applies a services file.
fn apply_text(agent: &Agent<'_>, toml: &str) {
    let path = agent.services_file(toml).unwrap();
    agent
        .done(&["apply", "-f", path.to_str().unwrap()])
        .unwrap();
}

/// Starts a rollout: its strategy and more words, none of which holds a space.
fn begin(agent: &Agent<'_>, strategy: &str) {
    begin_for(agent, NAME, strategy);
}

fn begin_for(agent: &Agent<'_>, name: &str, strategy: &str) {
    let words = ["rollout", "start", name, "--strategy"].into_iter();
    let words: Vec<&str> = words.chain(strategy.split(' ')).collect();
    agent.done(&words).unwrap();
}

/// The only words of a rollout that a script reads.
fn state(agent: &Agent<'_>) -> String {
    state_of(agent, NAME)
}

fn state_of(agent: &Agent<'_>, name: &str) -> String {
    let rollout = agent.json(&["rollout", "status", name]).unwrap();
    rollout["state"].as_str().unwrap_or_default().to_owned()
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn await_state(agent: &Agent<'_>, wanted: &str, limit: Duration) {
    await_state_of(agent, NAME, wanted, limit);
}

fn await_state_of(agent: &Agent<'_>, name: &str, wanted: &str, limit: Duration) {
    let came = eventually(limit, || state_of(agent, name) == wanted);
    let shown = agent.done(&["rollout", "status", name]).unwrap();
    assert!(came, "it is not {wanted}:\n{shown}");
}

/// The report; with it the next rollout may begin.
fn report(agent: &Agent<'_>) -> Value {
    let ready = eventually(SOON, || {
        agent.json(&["rollout", "status", NAME]).unwrap()["has_report"] == true
    });
    assert!(ready, "no report");
    agent.json(&["rollout", "report", NAME]).unwrap()
}

/// Writes of the rollout on the service, by the ids of their effects, oldest first.
fn effects(agent: &Agent<'_>) -> Vec<(String, String)> {
    let audit = agent
        .json(&["get", "audit", NAME, "--limit", "1000"])
        .unwrap();
    let records = audit["records"].as_array().unwrap();
    let of_rollout = records
        .iter()
        .rev()
        .filter(|record| record["actor"] == "rollout");
    of_rollout
        .map(|record| {
            let part = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            (part("request_id"), part("after"))
        })
        .collect()
}

fn assert_made_once(agent: &Agent<'_>) {
    let effects = effects(agent);
    assert!(!effects.is_empty(), "nothing was written");
    let mut ids: Vec<&String> = effects.iter().map(|(id, _)| id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), effects.len(), "{effects:?}");
}
