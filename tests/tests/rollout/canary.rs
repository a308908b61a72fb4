//! Canaries that go their way: promoted, without traffic, frozen.

use std::time::Duration;

use shifter_tests::{
    agent::{Agent, Settings, number},
    need,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server},
};

use super::{NAME, assert_made_once, await_state, begin, report, service, state, text};

#[test]
fn a_canary_is_promoted_and_people_are_kept_from_its_weight() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    begin(
        &agent,
        "canary --steps 10%,50% --interval 4s --reason release-7",
    );
    let begun = agent.service(NAME).unwrap();
    assert_eq!(
        begun["spec"]["green"], "10%",
        "the first step is in force at once"
    );
    assert!(
        begun["dead_man"].is_object(),
        "the lease guards it: {begun}"
    );
    for words in [
        &["shift", NAME, "--green", "50%"][..],
        &["confirm", NAME],
        &["promote", NAME],
        &["delete", NAME],
        &["drain", "tcp4/green"],
        &["rollout", "start", NAME, "--strategy", "blue-green"],
    ] {
        let refused = agent.cli(words).unwrap();
        assert_eq!(
            refused.status.code(),
            Some(1),
            "{words:?}: {}",
            text(&refused)
        );
        assert!(
            text(&refused).contains("runs (running): abort it with"),
            "{}",
            text(&refused)
        );
    }
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched));
    for part in [
        "green has 10% of new flows",
        "green has 50%",
        "over",
        "promoted",
    ] {
        assert!(text(&watched).contains(part), "{part}: {}", text(&watched));
    }
    let after = agent.service(NAME).unwrap();
    assert_eq!(after["spec"]["live"], "green");
    assert!(after["dead_man"].is_null(), "{after}");
    let report = report(&agent);
    assert_eq!(
        (
            report["outcome"].as_str(),
            number(&report["reset_by_shifter"])
        ),
        (Some("promoted"), 0)
    );
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    assert!(tally.by_identity.len() == 2, "{tally:?}");
    assert_made_once(&agent);
}

#[test]
fn without_traffic_it_holds_and_goes_on_when_data_comes() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    begin(
        &agent,
        r#"canary --steps 50% --interval 3s --gates [{"judge":"sequential","min_samples":100}]"#,
    );
    await_state(&agent, "holding", Duration::from_secs(20));
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("no data"), "{shown}");
    let _requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 300).unwrap();
    await_state(&agent, "promoted", Duration::from_secs(40));
}

#[test]
fn a_freeze_holds_everything_but_a_rollback() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    begin(&agent, "canary --steps 10%,50% --interval 2s");
    agent.done(&["freeze", NAME, "--reason", "audit"]).unwrap();
    await_state(&agent, "holding", Duration::from_secs(20));
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("is frozen by"), "{shown}");
    agent.kill();
    agent.restart().unwrap();
    for words in [
        &["shift", NAME, "--green", "50%"][..],
        &["rollout", "advance", NAME],
        &["undrain", NAME],
    ] {
        let code = agent.cli(words).unwrap().status.code();
        assert!(code == Some(7) || code == Some(1), "{words:?}");
    }
    // By hand: it ends the rollout, whatever is frozen.
    agent
        .done(&["rollback", NAME, "--reason", "enough"])
        .unwrap();
    assert_eq!(state(&agent), "rolled back");
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("rolled the service back: enough"), "{shown}");
    let refused = agent.cli(&["shift", NAME, "--green", "50%"]).unwrap();
    assert_eq!(refused.status.code(), Some(7), "{}", text(&refused));
    agent.done(&["unfreeze", NAME]).unwrap();
    agent.done(&["shift", NAME, "--green", "50%"]).unwrap();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    assert_eq!(watched.status.code(), Some(5), "{}", text(&watched));
}
