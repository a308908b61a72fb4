//! A green that resets some of its connections.

use std::time::Instant;

use shifter_tests::{
    agent::{Agent, Settings, number},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, resetting::Resetting, server},
};

use super::{NAME, begin, report, service, text};

#[test]
fn a_green_that_resets_one_connection_in_fifty_is_rolled_back_by_the_judge() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let green = Resetting::start(&lab, Side::Green, Family::V4, 50);
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 1_000).unwrap();
    begin(
        &agent,
        r#"canary --steps 10%,50% --interval 10m --gates [{"judge":"sequential"}]"#,
    );
    let begun = Instant::now();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    let took = begun.elapsed();
    assert_eq!(watched.status.code(), Some(5), "{}", text(&watched));
    assert!(
        text(&watched).contains("gate \"sequential\" failed"),
        "{}",
        text(&watched)
    );
    let report = report(&agent);
    println!(
        "detected after {took:?}: {}\nrollback: {}\nserver resets: {}",
        report["detection"],
        report["rollback"],
        green.count()
    );
    let times = &report["rollback"];
    assert!(number(&times["programmed_ns"]) < 50_000_000, "{times}");
    assert_eq!(number(&times["candidate_flows_after"]), 0, "{times}");
    assert!(number(&report["pools"][1]["failures"]) > 0, "{report}");
    assert_eq!(number(&report["pools"][0]["failures"]), 0, "{report}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
    drop(requests);
}
