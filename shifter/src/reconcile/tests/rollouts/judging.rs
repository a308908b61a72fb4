//! Judged by what packets say, promoted or rolled back, with a report.

use super::*;

#[test]
fn a_canary_walks_to_its_promotion_and_leaves_a_report() {
    let rig = with_signals();
    let begun = start(&rig, CANARY).unwrap();
    assert_eq!(
        (begun.state.as_str(), begun.weight.as_str()),
        ("running", "10%")
    );
    assert_eq!(rig.green(), "10%");
    pass_with_traffic(&rig, 20, 0);
    assert_eq!(view(&rig).state, "promoted");
    assert_eq!(rig.green(), "100%");
    assert!(rig.reconciler.get("web").unwrap().dead_man.is_none());
    let report = rig.reconciler.rollout_report("web", 0, ReportFormat::Json);
    let report: serde_json::Value = serde_json::from_str(&report.unwrap().1).unwrap();
    assert_eq!(report["outcome"], "promoted");
    assert!(
        report["pools"][1]["attempts"].as_u64().unwrap() > 500,
        "{report}"
    );
    let notes: Vec<String> = view(&rig).notes.into_iter().map(|n| n.text).collect();
    assert!(
        notes.contains(&"green has 50% of new flows".to_owned()),
        "{notes:?}"
    );
}

#[test]
fn a_bad_green_is_judged_and_the_report_says_how_soon() {
    let rig = with_signals();
    start(&rig, SEQUENTIAL).unwrap();
    pass_with_traffic(&rig, 20, 0);
    assert_eq!(view(&rig).state, "running");
    pass_with_traffic(&rig, 60, 5);
    let over = view(&rig);
    assert_eq!(over.state, "rolled back", "{over:?}");
    assert!(
        over.why.contains("gate \"sequential\" failed"),
        "{}",
        over.why
    );
    assert_eq!(rig.green(), "0%");
    let (_, report) = rig
        .reconciler
        .rollout_report("web", 0, ReportFormat::Json)
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(
        report["detection"]["failures"].as_u64().unwrap() >= 5,
        "{report}"
    );
    assert!(report["rollback"]["programmed_ns"].is_u64(), "{report}");
}

#[test]
fn a_restart_goes_on_judging_where_it_was() {
    let mut rig = with_signals();
    let json = r#"{"strategy":"canary","steps":["50%"],"interval":"40s","gates":[{"judge":"sequential","min_samples":3000}]}"#;
    start(&rig, json).unwrap();
    pass_with_traffic(&rig, 20, 0);
    rig.restart();
    pass_with_traffic(&rig, 19, 0);
    let gate = view(&rig).gates.remove(0);
    assert_eq!(
        gate.verdict, "pass",
        "windows from before it count: {}",
        gate.reason
    );
    pass_with_traffic(&rig, 5, 0);
    assert_eq!(view(&rig).state, "promoted");
}

#[test]
fn a_failed_judgement_needs_no_disk() {
    let rig = with_signals();
    start(&rig, SEQUENTIAL).unwrap();
    pass_with_traffic(&rig, 5, 0);
    rig.disk_full(true);
    pass_with_traffic(&rig, 60, 5);
    assert_eq!(rig.green(), "0%", "{}", view(&rig).why);
    rig.disk_full(false);
    pass(&rig, 3);
    assert_eq!(view(&rig).state, "rolled back");
}

#[test]
fn the_list_of_events_tells_a_rollout_whole_with_its_gates_and_survives_a_restart() {
    let mut rig = Rig::with_web();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%"],"interval":"10s","gates":[{"judge":"threshold","failure_ratio_max":"1%"}]}"#,
    )
    .unwrap();
    pass(&rig, 2);
    tell(&rig, RolloutCommand::Abort).unwrap();
    pass(&rig, 5);
    let events = |rig: &Rig| {
        let query = EventQuery {
            service: "web".into(),
            limit: 100,
            ..EventQuery::default()
        };
        rig.reconciler.events(&query).unwrap().events
    };
    let before = events(&rig);
    let words: Vec<&str> = before.iter().map(|event| event.what.as_str()).collect();
    for what in [
        "apply",
        "rollout start",
        "weight",
        "gate",
        "rollback",
        "rolling back",
        "over",
    ] {
        assert!(words.contains(&what), "{what}: {words:?}");
    }
    let gate = before.iter().find(|event| event.what == "gate").unwrap();
    assert_eq!((gate.kind.as_str(), gate.rollout), ("rollout", 1));
    assert!(gate.text.starts_with("threshold: no data"), "{}", gate.text);
    assert!(before.is_sorted_by_key(|event| event.number));
    rig.restart();
    assert_eq!(events(&rig)[..before.len()], before[..]);
}
