//! Blue-green under load, there and back.

use std::time::Duration;

use shifter_tests::{
    agent::{Agent, Settings, number},
    need,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server},
};

use super::{NAME, await_state, begin, report, service, state};

#[test]
fn blue_green_there_and_back_under_load_fails_no_request() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 400).unwrap();
    // There, and back as a rollout of its own.
    for live in ["green", "blue"] {
        begin(&agent, "blue-green --bake 3s");
        await_state(&agent, "promoted", Duration::from_secs(30));
        assert_eq!(agent.service(NAME).unwrap()["spec"]["live"], live);
        report(&agent);
    }
    // There, and back at once by hand.
    begin(&agent, "blue-green --bake 10m");
    std::thread::sleep(Duration::from_secs(2));
    agent.done(&["rollout", "abort", NAME]).unwrap();
    assert_eq!(state(&agent), "rolled back");
    let report = report(&agent);
    println!("rollback: {}", report["rollback"]);
    assert_eq!(
        number(&report["rollback"]["candidate_flows_after"]),
        0,
        "{report}"
    );
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}
