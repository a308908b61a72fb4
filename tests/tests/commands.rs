//! Verbs end to end: what they say, and where traffic then goes.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings},
    command::{Process, eventually},
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::ask, server},
};

const NAME: &str = "tcp4";
/// Requests that must all go the same way.
const ASKED: usize = 30;

fn lab() -> (Lab, [Process; 2]) {
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let servers = server::start_both(&lab).unwrap();
    (lab, servers)
}

fn start(lab: &Lab) -> Agent<'_> {
    let agent = Agent::start(lab, Settings::hook("tc")).unwrap();
    agent.apply(&[Service::of(lab, "tcp", Family::V4)]).unwrap();
    agent
}

/// Every new connection goes to one side.
#[track_caller]
fn assert_all_to(lab: &Lab, side: Side) {
    let vip = lab.vip(Family::V4);
    for i in 0..ASKED {
        let answered = lab.client.run(|| ask(vip, None)).unwrap();
        assert_eq!(answered, side.identity(), "request {i}");
    }
}

#[test]
fn a_dead_man_fires_while_the_agent_is_dead() {
    need!();
    let (lab, _servers) = lab();
    let mut agent = start(&lab);
    let after = Duration::from_secs(6);
    let shifted = Instant::now();
    agent
        .done(&["shift", NAME, "--green", "100%", "--revert-after", "6s"])
        .unwrap();
    assert_all_to(&lab, Side::Green);
    agent.kill();
    assert_all_to(&lab, Side::Green);
    assert!(shifted.elapsed() < after, "the machine is too busy to tell");
    thread::sleep(after.saturating_sub(shifted.elapsed()) + Duration::from_millis(200));
    assert_all_to(&lab, Side::Blue);
    agent.restart().unwrap();
    let recorded = eventually(Duration::from_secs(5), || {
        let service = agent.service(NAME).unwrap();
        service["weights"]["configured"] == "0%" && service["dead_man"].is_null()
    });
    assert!(recorded, "{}", agent.service(NAME).unwrap());
    assert_all_to(&lab, Side::Blue);
}

#[test]
fn confirm_keeps_the_weight_that_a_dead_man_guards() {
    need!();
    let (lab, _servers) = lab();
    let agent = start(&lab);
    agent
        .done(&["shift", NAME, "--green", "100%", "--revert-after", "4s"])
        .unwrap();
    assert!(!agent.service(NAME).unwrap()["dead_man"].is_null());
    agent.done(&["confirm", NAME]).unwrap();
    assert!(agent.service(NAME).unwrap()["dead_man"].is_null());
    thread::sleep(Duration::from_secs(5));
    assert_all_to(&lab, Side::Green);
    assert_eq!(
        agent.service(NAME).unwrap()["weights"]["configured"],
        "100%"
    );
}

#[test]
fn promote_makes_the_candidate_live_and_a_rollback_takes_it_back() {
    need!();
    let (lab, _servers) = lab();
    let agent = start(&lab);
    assert_all_to(&lab, Side::Blue);
    agent.done(&["promote", NAME]).unwrap();
    assert_eq!(agent.service(NAME).unwrap()["spec"]["live"], "green");
    assert_all_to(&lab, Side::Green);
    agent.done(&["rollback", NAME]).unwrap();
    let service = agent.service(NAME).unwrap();
    assert_eq!(service["spec"]["live"], "blue");
    assert_eq!(service["weights"]["configured"], "0%");
    assert_all_to(&lab, Side::Blue);
}

#[test]
fn watching_in_json_gives_a_line_for_every_change() {
    need!();
    let (lab, _servers) = lab();
    let agent = start(&lab);
    let mut watcher = agent
        .cli_command(&["-o", "json", "get", "services", NAME, "-w"])
        .unwrap()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(watcher.stdout.take().unwrap());
    let (send, lines) = mpsc::channel::<Value>();
    let reader = thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            // The test has ended where nobody listens.
            let _ = send.send(serde_json::from_str(&line).unwrap());
        }
    });
    let mut versions = Vec::new();
    let mut await_weight = |weight: &str| loop {
        let change = lines.recv_timeout(Duration::from_secs(10)).unwrap();
        versions.push(change["version"].as_u64().unwrap());
        if change["kind"] == "synced" {
            continue;
        }
        let service = &change["service"];
        assert_eq!(service["spec"]["name"], NAME, "{change}");
        if service["weights"]["configured"] == weight {
            break;
        }
    };
    await_weight("0%");
    for weight in ["10%", "20%", "1/3"] {
        agent.shift(NAME, weight).unwrap();
        await_weight(weight);
    }
    assert!(versions.is_sorted(), "{versions:?}");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    reader.join().unwrap();
}
