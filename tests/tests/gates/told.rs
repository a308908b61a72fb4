//! Webhooks that are told, and one that does not listen.

use std::time::Duration;

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, number},
    command::eventually,
};

use crate::{SOON, bed, hook_server::HookServer, notes, report};

fn kinds(heard: &[Value]) -> Vec<&str> {
    heard
        .iter()
        .map(|body| body["shifter"]["event"]["kind"].as_str().unwrap_or(""))
        .collect()
}

/// After a rollback by the judge: `/all` has heard of everything in its order, `/end`
/// once of the end, and `/deaf`, which never answers, was in nobody's way.
pub fn of_a_rollback(agent: &Agent<'_>, hooks: &HookServer) {
    let came = eventually(SOON, || {
        !hooks.heard("/end").is_empty() && kinds(&hooks.heard("/all")).last() == Some(&"over")
    });
    let heard = hooks.heard("/all");
    assert!(came, "{heard:?}");
    let kinds = kinds(&heard);
    assert_eq!(kinds[0], "begun", "{kinds:?}");
    for kind in ["weight", "step", "rolling back"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    let back = heard
        .iter()
        .find(|body| body["shifter"]["event"]["kind"] == "rolling back");
    let back = back.unwrap();
    assert_eq!(back["name"], bed::NAME);
    assert_eq!(back["metadata"]["eventType"], "Warning");
    let message = back["metadata"]["eventMessage"].as_str().unwrap();
    assert!(message.contains("gate \"sequential\" failed"), "{message}");

    let report = report(agent, 2 * SOON);
    // A moment more for what should not come.
    std::thread::sleep(Duration::from_secs(3));
    let end = hooks.heard("/end");
    assert_eq!(end.len(), 1, "{end:?}");
    assert_eq!(end[0]["phase"], "rolled back");
    assert_eq!(end[0]["shifter"]["type"], "post-rollout");
    let not_told = notes(&report, "not told");
    assert!(!not_told.is_empty(), "{report}");
    for line in &not_told {
        assert!(line.contains("webhook \"deaf\""), "{line}");
    }
    println!("{not_told:?}");
    let times = &report["rollback"];
    let ns = number(&times["programmed_ns"]);
    assert!((1..50_000_000).contains(&ns), "{times}");
}
