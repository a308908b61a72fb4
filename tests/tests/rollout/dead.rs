//! The agent is dead for good: the lease and the breaker act in the kernel.

use std::time::Duration;

use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, server},
};

use super::{
    NAME, SOON, apply_text, await_state, await_state_of, begin, begin_for,
    cohorts::{STAFF, answers_staff},
    service, state, state_of,
};

/// Waits until green is given no connection for a second, and blue is.
fn await_blue_alone(requests: &Requests) {
    let came_back = eventually(SOON, || {
        let now = requests.tally();
        std::thread::sleep(Duration::from_secs(1));
        let since = requests.since(&now);
        let count = |side: Side| since.get(&side.identity()).copied().unwrap_or(0);
        count(Side::Green) == 0 && count(Side::Blue) > 0
    });
    assert!(came_back, "{:?}", requests.tally());
}

#[test]
fn with_the_agent_dead_for_good_the_lease_takes_weight_and_cohorts_back() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let first = Service::of(&lab, "tcp", Family::V6);
    apply_text(
        &agent,
        &(to_toml(&[service(&lab)]) + &to_toml(std::slice::from_ref(&first)) + STAFF),
    );
    begin(&agent, "blue-green --bake 10m --lease 5s");
    begin_for(&agent, &first.name, "cohort-first --lease 5s");
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    // Longer than the lease: it is renewed.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(state(&agent), "running");
    assert_eq!(state_of(&agent, &first.name), "holding");
    let before = requests.tally();
    let green = Side::Green.identity();
    assert!(before.by_identity.contains_key(&green), "{before:?}");
    assert_eq!(answers_staff(&lab, &first), green);

    agent.kill();
    await_blue_alone(&requests);
    let blue = Side::Blue.identity();
    let cohorts_too = eventually(SOON, || answers_staff(&lab, &first) == blue);
    assert!(cohorts_too, "the cohort still sees green");
    agent.restart().unwrap();
    for name in [NAME, &*first.name] {
        await_state_of(&agent, name, "rolled back", SOON);
        let shown = agent.done(&["rollout", "status", name]).unwrap();
        assert!(shown.contains("dead-man"), "{shown}");
    }
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}

#[test]
fn with_the_agent_dead_the_breaker_ends_what_the_rollout_had_begun() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let [_blue, mut green] = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let breaker = "[service.breaker]\nwindow = \"60s\"\nmax_failures = 5\nmin_attempts = 10\n\
                   max_ratio = \"20%\"\n";
    apply_text(&agent, &(to_toml(&[service(&lab)]) + breaker));
    // The lease is not what ends it.
    begin(&agent, "canary --steps 50% --interval 10m --lease 1h");
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    let on_green = || {
        let tally = requests.tally();
        tally.by_identity.contains_key(&Side::Green.identity())
    };
    assert!(eventually(SOON, on_green), "{:?}", requests.tally());
    assert_eq!(requests.tally().failures, 0);

    agent.kill();
    green.kill();
    await_blue_alone(&requests);
    let tripped = requests.tally();
    assert!(tripped.failures >= 5, "{tripped:?}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        requests.tally().failures,
        tripped.failures,
        "it tripped for good"
    );
    agent.restart().unwrap();
    await_state(&agent, "rolled back", SOON);
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("breaker"), "{shown}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
}
