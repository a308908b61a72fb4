//! The list of events with a real agent: a canary's whole story, streamed as it happens,
//! whole after a kill; and what gates say of traffic that was recorded.

use std::{fs::File, process::Stdio, time::Duration};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings, number},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, server},
};

const NAME: &str = "tcp4";
/// Green has no server: its connections are refused.
const GATES: &str =
    r#"[{"judge":"threshold","failure_ratio_max":"5%","min_samples":50},{"judge":"sequential"}]"#;

fn events(agent: &Agent<'_>, words: &[&str]) -> Vec<Value> {
    let all = [&["get", "events", "--limit", "10000"], words].concat();
    let answer = agent.json(&all).unwrap();
    answer["events"].as_array().unwrap().clone()
}

fn word<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().unwrap_or_default()
}

fn place(events: &[Value], what: &str, part: &str) -> usize {
    let is_it = |event: &Value| word(event, "what") == what && event.to_string().contains(part);
    let found = events.iter().position(is_it);
    found.unwrap_or_else(|| panic!("no {what:?} with {part:?} in {events:#?}"))
}

fn roll_back(agent: &Agent<'_>) {
    let words = [
        "rollout",
        "start",
        NAME,
        "--strategy",
        "canary",
        "--steps",
        "20%",
        "--interval",
        "10m",
        "--gates",
        GATES,
        "--reason",
        "release 7",
    ];
    agent.done(&words).unwrap();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    let said = String::from_utf8_lossy(&watched.stdout).into_owned();
    assert_eq!(watched.status.code(), Some(5), "{said}");
}

/// What happened, in the order in which it must be.
fn assert_story(events: &[Value]) {
    let story = [
        place(events, "apply", "create"),
        place(events, "rollout start", "release 7"),
        place(events, "gate", "threshold: fail"),
        place(events, "over", "rolled back"),
    ];
    assert!(story.is_sorted(), "{story:?} in {events:#?}");
    let back = &events[place(events, "rollback", "threshold")];
    assert_eq!(word(back, "actor"), "rollout", "{back}");
    let shift = place(events, "shift", "green 20%");
    assert!(story[1] < shift && shift < story[2], "{events:#?}");
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| number(&event["number"]))
        .collect();
    assert!(numbers.is_sorted() && numbers[0] > 0, "{numbers:?}");
}

#[test]
fn events_tell_a_canary_that_its_judge_rolled_back_and_survive_a_kill() {
    let name = "events_tell_a_canary_that_its_judge_rolled_back_and_survive_a_kill";
    if !need::ready(name, &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let streamed = lab.dir().join("streamed");
    let mut watch = agent
        .cli_command(&["-o", "json", "get", "events", "-w"])
        .unwrap();
    watch
        .stdout(File::create(&streamed).unwrap())
        .stdin(Stdio::null());
    let mut watch = watch.spawn().unwrap();
    agent
        .apply(&[Service::of(&lab, "tcp", Family::V4)])
        .unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 500).unwrap();
    roll_back(&agent);
    agent.done(&["freeze", NAME, "--reason", "lunch"]).unwrap();
    agent.done(&["unfreeze", NAME]).unwrap();
    agent.done(&["drain", "tcp4/green"]).unwrap();
    drop(requests);

    println!("{}", agent.done(&["get", "events"]).unwrap());
    let whole = events(&agent, &[]);
    assert_story(&whole);
    assert_eq!(
        word(&whole[0], "what"),
        "attached",
        "the interfaces come first"
    );
    let started = &whole[place(&whole, "started", "no service was in force")];
    assert_eq!(word(started, "kind"), "agent");
    for what in ["freeze", "unfreeze", "drain"] {
        place(&whole, what, NAME);
    }
    let of_kind = events(&agent, &[NAME, "--kind", "rollback", "--since", "1h"]);
    assert!(
        !of_kind.is_empty()
            && of_kind
                .iter()
                .all(|event| word(event, "what") == "rollback")
    );

    // Everything was streamed, once, in the same order.
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&streamed).unwrap();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let came = eventually(Duration::from_secs(10), || lines().len() >= whole.len());
    assert!(came, "{:#?}", lines());
    assert_eq!(lines()[..whole.len()], whole[..]);

    agent.kill();
    let ended = watch.wait().unwrap();
    assert_eq!(ended.code(), Some(8), "the agent is gone");
    agent.restart().unwrap();
    let after = events(&agent, &[]);
    assert_eq!(after[..whole.len()], whole[..], "nothing is lost or moved");
    place(
        &after[whole.len()..],
        "started",
        "adopted 1 service in force",
    );
}

#[test]
fn what_was_recorded_is_judged_against_itself_and_again() {
    let name = "what_was_recorded_is_judged_against_itself_and_again";
    if !need::ready(name, &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent
        .apply(&[Service::of(&lab, "tcp", Family::V4)])
        .unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 500).unwrap();
    // Of a service that runs, before any rollout.
    let kept = lab.dir().join("recording").display().to_string();
    let live = [
        "rollout", "aa", NAME, "--for", "5s", "--runs", "100", "--to", &kept,
    ];
    let answer = agent.json(&live).unwrap();
    assert!(number(&answer["flows"]) > 1_000, "{answer}");
    let rows = answer["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "a row a size of clumps: {answer}");
    // Every connection of blue is answered: a test has nothing to alarm for.
    assert!(
        rows.iter()
            .all(|row| row["gate"] == "sequential" && row["above"] == false)
    );
    let words = ["rollout", "aa", "--file", &kept, "--runs", "100"];
    println!("{}", agent.done(&words).unwrap());
    let again = agent
        .json(&["rollout", "aa", "--file", &kept, "--runs", "100"])
        .unwrap();
    assert_eq!(again["flows"], answer["flows"]);

    roll_back(&agent);
    drop(requests);
    let replayed = agent
        .cli(&["-o", "json", "rollout", "replay", NAME])
        .unwrap();
    assert_eq!(replayed.status.code(), Some(5));
    let replayed: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert_eq!(replayed["outcome"], "rollback", "{replayed}");
    assert_eq!(replayed["rollback"]["outcome"], "fail", "{replayed}");
    // Blue alone is well, whatever green did.
    let of_rollout = agent.json(&["rollout", "aa", NAME, "--runs", "100", "--weight", "30%"]);
    let of_rollout = of_rollout.unwrap();
    let alarms: u64 = of_rollout["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| number(&row["alarms"]))
        .sum();
    assert_eq!(
        of_rollout["rows"].as_array().unwrap().len(),
        6,
        "{of_rollout}"
    );
    assert!(alarms <= 30, "{of_rollout}");
}
