//! The agent dies in the middle of each step and of the rollback, or gives the rollout
//! to another: it goes on where it was, nothing is done twice, and no flow notices.

use std::time::Duration;

use shifter_tests::{
    agent::{Agent, Settings, number},
    command::{Process, eventually},
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::Requests,
        server,
        storm::{Plan, Storm},
    },
};

use super::{
    NAME, SOON, apply_text, assert_made_once, await_state, begin, cohorts::STAFF, effects, report,
    service, state, text,
};

/// A strategy, as it is started, and how it ends if nothing is wrong.
struct Case {
    words: &'static str,
    ends: &'static str,
    promotes: bool,
}

const CASES: [Case; 5] = [
    Case {
        words: "rolling --drain-deadline 1s",
        ends: "completed",
        promotes: false,
    },
    Case {
        words: "ab --split 30% --duration 2s",
        ends: "completed",
        promotes: false,
    },
    Case {
        words: "canary --steps 10%,50% --interval 1s",
        ends: "promoted",
        promotes: true,
    },
    Case {
        words: "blue-green --bake 1s",
        ends: "promoted",
        promotes: true,
    },
    Case {
        words: "cohort-first --steps 50% --interval 1s",
        ends: "promoted",
        promotes: true,
    },
];

/// Before an effect, after it, and when its result is stored. In the long form each
/// effect meets each of them; in the short one they take turns over the effects.
fn points() -> &'static [&'static str] {
    let all = &["rollout_intent", "rollout_effect", "rollout_stored"];
    let turns = &["rollout_intent", "rollout_effect:2", "rollout_stored:2"];
    need::scaled(turns, all)
}

/// The servers, two a side, and the service over them.
fn two_a_side(lab: &Lab) -> (Vec<Process>, Service) {
    let at = |side| {
        let first = lab.listen(side, Family::V4);
        vec![first, Lab::at_port(first, first.port() + 10)]
    };
    let start = |side: Side| {
        server::start_at(lab, lab.server_ns(side), &at(side), side.identity()).unwrap()
    };
    let servers = Side::BOTH.map(start).into();
    let service = Service {
        blue: at(Side::Blue),
        green: at(Side::Green),
        ..service(lab)
    };
    (servers, service)
}

/// Flows that live all the time, and new ones.
fn traffic(lab: &Lab) -> (Storm, Requests) {
    let vip = vec![lab.vip(Family::V4)];
    let plan = Plan {
        tcp_to: vip.clone(),
        udp_to: Vec::new(),
        tcp_flows: 100,
        udp_flows: 0,
        rate: 5,
    };
    let storm = Storm::start(&lab.client, plan).unwrap();
    assert!(storm.wait_for(100, SOON), "{storm:?}");
    let requests = Requests::start(&lab.client, &vip, 2, 100).unwrap();
    (storm, requests)
}

fn assert_no_flow_noticed((storm, requests): (Storm, Requests), what: &str) {
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    storm.finish().unwrap().assert_untouched(what);
}

/// Waits until the agent has killed itself; `false`: the rollout was over before. Where
/// it waits for a person it is told to go on.
fn is_killed(agent: &mut Agent<'_>, ends: &str) -> bool {
    let mut killed = None;
    let came = eventually(SOON, || {
        killed = agent.wait_for_signal(Duration::from_millis(50));
        if killed.is_some() {
            return true;
        }
        // Any answer may be cut off.
        let Ok(shown) = agent.json(&["rollout", "status", NAME]) else {
            return false;
        };
        if shown["state"] == "holding" {
            let _ = agent.cli(&["rollout", "advance", NAME]);
        }
        shown["state"] == ends
    });
    assert!(came, "it neither died nor came to its end: {}", agent.log());
    if let Some(signal) = killed {
        assert_eq!(signal, libc::SIGKILL, "{}", agent.log());
    }
    killed.is_some()
}

/// One rollout from its begin to its end, over as many agents as it takes.
fn is_walked_over_kills(agent: &mut Agent<'_>, case: &Case) {
    let words = case.words;
    let live = agent.service(NAME).unwrap()["spec"]["live"].clone();
    agent.stop();
    agent
        .restart_with("SHIFTER_KILL_AT", "rollout_begun")
        .unwrap();
    let start: Vec<&str> = ["rollout", "start", NAME, "--strategy"]
        .into_iter()
        .chain(words.split(' '))
        .collect();
    assert!(!agent.cli(&start).unwrap().status.success(), "{words}");
    assert!(is_killed(agent, case.ends), "{words}");
    let mut kills = 1;
    for point in points().iter().cycle() {
        // It may die before it is ready.
        let _ = agent.restart_with("SHIFTER_KILL_AT", point);
        if !is_killed(agent, case.ends) {
            break;
        }
        kills += 1;
        assert!(kills < 40, "{words}: it comes to no end");
    }
    println!("{words}: {kills} kills");
    assert!(kills >= 3, "{words}: only {kills} kills");
    assert_eq!(state(agent), case.ends, "{words}");
    let service = agent.service(NAME).unwrap();
    assert_eq!(service["spec"]["live"] != live, case.promotes, "{words}");
    assert!(service["dead_man"].is_null(), "{words}: {service}");
    assert_all_ready(agent, words);
    assert_made_once(agent);
    assert_eq!(number(&report(agent)["reset_by_shifter"]), 0, "{words}");
}

fn assert_all_ready(agent: &Agent<'_>, what: &str) {
    let backends = agent.json(&["get", "backends", NAME]).unwrap();
    for backend in backends["backends"].as_array().unwrap() {
        assert_eq!(backend["state"], "ready", "{what}: {backend}");
    }
}

#[test]
fn an_agent_that_is_killed_in_each_step_goes_on_where_the_rollout_was() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let (_servers, service) = two_a_side(&lab);
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    apply_text(&agent, &(to_toml(&[service]) + STAFF));
    let traffic = traffic(&lab);
    for case in &CASES {
        is_walked_over_kills(&mut agent, case);
    }
    assert_no_flow_noticed(traffic, "kills in each step");
}

/// The agent dies in the middle of the way back; the next one brings it to its end.
fn is_rolled_back_over_a_kill(agent: &mut Agent<'_>, case: &Case, point: &str) {
    let what = format!("{}, killed at {point}", case.words);
    let before = agent.service(NAME).unwrap()["spec"].clone();
    let effects_before = effects(agent).len();
    begin(agent, &long(case.words));
    // At work: a weight, a drain or the cohorts are in force.
    let works = eventually(SOON, || effects(agent).len() > effects_before);
    assert!(works, "{what}");
    agent.stop();
    agent.restart_with("SHIFTER_KILL_AT", point).unwrap();
    // Its answer may be cut off.
    let _ = agent.cli(&["rollout", "abort", NAME, "--reason", "no"]);
    let killed = agent.wait_for_signal(SOON);
    assert_eq!(killed, Some(libc::SIGKILL), "{what}: {}", agent.log());
    agent.restart().unwrap();
    if point == "rollout_intent" {
        // Neither the kernel nor the store knew of it, and nobody was told that it is done.
        assert_ne!(state(agent), "rolled back", "{what}");
        agent.done(&["rollout", "abort", NAME]).unwrap();
    }
    await_state(agent, "rolled back", SOON);
    let service = agent.service(NAME).unwrap();
    for part in ["live", "green"] {
        assert_eq!(service["spec"][part], before[part], "{what}");
    }
    assert!(service["dead_man"].is_null(), "{what}: {service}");
    assert_all_ready(agent, &what);
    assert_made_once(agent);
    report(agent);
}

/// The same strategy, and so slow that it is met at work.
fn long(words: &str) -> String {
    let slower = words.replace("1s", "10m").replace("2s", "10m");
    slower + " --lease 10m"
}

#[test]
fn an_agent_that_is_killed_on_the_way_back_finishes_it() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let (_servers, service) = two_a_side(&lab);
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    apply_text(&agent, &(to_toml(&[service]) + STAFF));
    let traffic = traffic(&lab);
    let points = ["rollout_intent", "rollout_effect", "rollout_stored"];
    for (i, case) in CASES.iter().enumerate() {
        for k in 0..need::scaled(1, points.len()) {
            is_rolled_back_over_a_kill(&mut agent, case, points[(i + k) % points.len()]);
        }
    }
    assert_no_flow_noticed(traffic, "kills on the way back");
}

#[test]
fn a_handover_continues_a_rollout() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    begin(&agent, "canary --steps 10%,50% --interval 4s");
    let mut watch = agent.cli_command(&["rollout", "watch", NAME]).unwrap();
    let watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    agent.replace().unwrap();
    let watched = watch.wait_with_output().unwrap();
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched));
    let seen = text(&watched);
    assert_eq!(seen.matches("green has 10%").count(), 1, "{seen}");
    assert_made_once(&agent);
}
