//! An agent whose own file has a service with a rollout or checks, and what is asked
//! of it.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::{Service, to_toml},
    programs::Programs,
    topology::{Family, Lab},
};

pub const NAME: &str = "tcp4";

/// `[gates]`, and the service with more of its own.
pub fn file(service: &Service, programs: Option<&Programs>, more: &str) -> String {
    let exec = programs.map_or(String::new(), |programs| {
        format!("exec_dir = \"{}\"\n", programs.dir().display())
    });
    format!(
        "[gates]\nhosts = [\"127.0.0.1:8181\", \"127.0.0.1:9090\", \"localhost:9090\"]\n{exec}\n{}{more}\n",
        to_toml(std::slice::from_ref(service))
    )
}

pub fn service(lab: &Lab) -> Service {
    Service::of(lab, "tcp", Family::V4)
}

/// An agent with that in its file.
pub fn agent<'lab>(lab: &'lab Lab, file: String) -> Agent<'lab> {
    let mut settings = Settings::hook("tc");
    settings.more = file;
    Agent::start(lab, settings).unwrap()
}

/// The same agent with another file.
pub fn restart_with(agent: &mut Agent<'_>, file: String) {
    agent.change(|settings| settings.more = file).unwrap();
    agent.stop();
    agent.restart().unwrap();
}

pub fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

pub fn status(agent: &Agent<'_>) -> Value {
    agent.json(&["rollout", "status", NAME]).unwrap()
}

pub fn state(agent: &Agent<'_>) -> String {
    status(agent)["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

pub fn why(agent: &Agent<'_>) -> String {
    status(agent)["why"].as_str().unwrap_or_default().to_owned()
}

pub fn green(agent: &Agent<'_>) -> String {
    let service = agent.service(NAME).unwrap();
    service["spec"]["green"].as_str().unwrap().to_owned()
}

pub fn begin(agent: &Agent<'_>) {
    // The end of the one before is measured for a moment.
    let mut last = String::new();
    let begun = eventually(Duration::from_secs(20), || {
        let output = agent.cli(&["rollout", "start", NAME]).unwrap();
        last = text(&output);
        output.status.success()
    });
    assert!(begun, "{last}");
}

/// It is so, and says this.
pub fn await_state(agent: &Agent<'_>, wanted: &str, part: &str, limit: Duration) {
    let came = eventually(limit, || {
        state(agent) == wanted && why(agent).contains(part)
    });
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(
        came,
        "it is not {wanted} with {part:?}:\n{shown}\n{}",
        agent.log()
    );
}

/// A command that waits for nobody.
pub fn at_once(agent: &Agent<'_>, words: &[&str]) {
    let begun = Instant::now();
    agent.done(words).unwrap();
    let took = begun.elapsed();
    println!("{words:?} took {took:?}");
    assert!(took < Duration::from_secs(2), "{words:?} took {took:?}");
}

pub fn report(agent: &Agent<'_>, limit: Duration) -> Value {
    let ready = eventually(limit, || status(agent)["has_report"] == true);
    assert!(ready, "no report");
    agent.json(&["rollout", "report", NAME]).unwrap()
}

/// Lines of a report of one kind.
pub fn notes(report: &Value, kind: &str) -> Vec<String> {
    let notes = report["notes"].as_array().unwrap();
    let of = notes.iter().filter(|note| note["kind"] == kind);
    of.map(|note| note["text"].as_str().unwrap_or_default().to_owned())
        .collect()
}
