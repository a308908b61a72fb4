//! What programs read: names and types of fields hold.

use serde_json::{Value, json};

use super::{TWO_SERVICES, ask, file};
use crate::{
    control::testbed::Testbed,
    judge::{Recorded, Recording},
    model::{PoolName, signals::PoolSignals},
    reconcile::controller::Event,
};

#[track_caller]
fn value(testbed: &Testbed, line: &str, code: u8) -> Value {
    let ran = ask(testbed, &format!("-o json {line}"));
    assert_eq!((ran.code, ran.err.as_str()), (code, ""), "{}", ran.out);
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn services_are_shown_whole_with_enums_as_words_and_without_seed() {
    let testbed = Testbed::with_web();
    let all = value(&testbed, "get services", 0);
    let service = &all["services"][0];
    assert_eq!(
        service["spec"],
        json!({
            "name": "web", "vip": "203.0.113.10:443/tcp", "mode": "nat", "live": "blue",
            "green": "5%", "health": null, "split": "hash", "affinity": "flow", "vip_routed": false,
            "cohorts": [], "cohorts_off": false,
            "blue": [{"address": "10.0.0.11:8443", "weight": 1, "state": "ready"}],
            "green_pool": [{"address": "10.0.1.11:8443", "weight": 1, "state": "ready"}],
            "breaker": null, "rollout": "",
        })
    );
    assert_eq!(service["green_signals"]["refused"], 2);
    assert_eq!(
        service["green_signals"]["first_byte"]["p99_seconds"],
        Value::Null
    );
    assert_eq!(
        service["weights"],
        json!({
            "configured": "5%", "configured_share": 0.05, "programmed_share": 0.05,
            "observed": {
                "window_seconds": 60, "green": 51, "total": 1000, "share": 0.051,
                "low": 0.039, "high": 0.066, "adopted": 7, "unpinned": 1, "cohort": 0,
            },
            "carried": {"blue": 97, "green": 3, "share": 0.03, "idle_blue": 2, "idle_green": 0},
        })
    );
    assert_eq!(service["dead_man"], Value::Null);
    assert_eq!(value(&testbed, "get services web", 0), all);
}

#[test]
fn a_receipt_stands_beside_the_weights() {
    let testbed = Testbed::with_web();
    let answer = value(&testbed, "shift web --blue 75% --revert-after 90s", 0);
    for (field, expected) in [
        ("service", json!("web")),
        ("generation", json!(2)),
        ("programmed_ns", json!(214_000)),
        ("total_ns", json!(480_000)),
        ("green_share", json!(0.25)),
        ("etag", json!("e2")),
        ("warnings", json!([])),
        ("first_flow", Value::Null),
    ] {
        assert_eq!(answer[field], expected, "{field}");
    }
    assert_eq!(answer["weights"]["programmed_share"], json!(0.25));
    assert_eq!(answer["dead_man"]["remaining_seconds"], json!(90.0));
}

#[test]
fn every_verb_answers_in_json() {
    let testbed = Testbed::with_web();
    let toml = file(&testbed, "services.toml", TWO_SERVICES);
    let plan = value(&testbed, &format!("plan -f {}", toml.display()), 2);
    assert_eq!(plan["changes"][0]["action"], "create");
    let as_json = r#"{"service": [{"name": "api", "vip": "203.0.113.10:80/tcp", "pools": {"blue": ["10.0.0.11:80"]}}]}"#;
    let path = file(&testbed, "services.json", as_json);
    let applied = value(&testbed, &format!("apply -f {}", path.display()), 0);
    assert_eq!(applied["receipts"][0]["service"], "api");
    assert_eq!(
        value(&testbed, "get backends web", 0)["backends"][1]["pool"],
        "green"
    );
    let flows = value(&testbed, "get flows web --pool green", 0);
    assert_eq!(
        (&flows["matched"], &flows["flows"][0]["protocol"]),
        (&json!(1), &json!("tcp"))
    );
    let states = value(&testbed, "get flows web --pool blue", 0);
    assert_eq!(states["flows"][1]["state"], "closing", "JSON has all");
    let audit = value(&testbed, "get audit web", 0);
    assert_eq!(audit["records"][0]["request_id"], "r-7");
    assert_eq!(audit["records"][1]["actor"], "uid 0 pid 4242");
    assert_eq!(value(&testbed, "explain web 192.0.2.7", 0)["pool"], "green");
    let status = value(&testbed, "status", 0);
    assert_eq!(status["interfaces"][0]["hook"], "tc");
    assert!(status["loud"].as_array().unwrap().len() > 2);
    for verb in [
        "confirm web",
        "rollback web",
        "promote web",
        "delete web --force",
    ] {
        assert_eq!(value(&testbed, verb, 0)["service"], "web", "{verb}");
    }
}

#[test]
fn events_are_told_whole() {
    let testbed = Testbed::with_web();
    testbed.agent.happen(Event {
        at_unix_ms: 1_800_000_061_250,
        kind: "change".into(),
        what: "rollback".into(),
        service: "web".into(),
        actor: "dead-man".into(),
        text: "nobody confirmed".into(),
        before: "blue live, green 5%".into(),
        after: "blue live, green 0%".into(),
        generation: 4,
        ..Event::default()
    });
    assert_eq!(
        value(&testbed, "get events", 0),
        json!({"events": [{
            "number": 1, "at_unix_seconds": 1_800_000_061.25, "kind": "change",
            "what": "rollback", "service": "web", "actor": "dead-man",
            "text": "nobody confirmed", "before": "blue live, green 5%",
            "after": "blue live, green 0%", "generation": 4, "rollout": 0,
        }]})
    );
}

#[test]
fn false_alarms_of_a_recording_are_counted_without_an_agent() {
    let testbed = Testbed::new();
    let windows = (1..=60).map(|second| Recorded {
        at_ms: second * 1_000,
        step: 0,
        blue: PoolSignals {
            attempts: 100,
            refused: 2,
            ..PoolSignals::default()
        },
        green: PoolSignals::default(),
    });
    let recording = Recording {
        service: "web".into(),
        live: PoolName::Blue,
        windows: windows.collect(),
    };
    let text = recording.to_text();
    let path = file(&testbed, "recording", &text);
    let gates = r#"[{"judge":"sequential","measures":["failures"]},{"judge":"threshold","failure_ratio_max":"0.5%"},{"judge":"exec","file":"a"}]"#;
    let line = format!(
        "rollout aa --file {} --runs 20 --clumps 1,2 --gates {gates}",
        path.display()
    );
    let answer = value(&testbed, &line, 0);
    assert_eq!(
        (&answer["flows"], &answer["failures"]),
        (&json!(6_000), &json!(120))
    );
    assert_eq!(answer["skipped"], json!(["exec"]));
    let rows = answer["rows"].as_array().unwrap();
    let row = |gate: &str, clump: u64| {
        let is_it = |row: &&Value| row["gate"] == gate && row["clump"] == clump;
        rows.iter().find(is_it).unwrap()
    };
    assert_eq!(rows.len(), 4);
    let sequential = row("sequential", 1);
    assert!(sequential["alarms"].as_u64().unwrap() <= 4, "{sequential}");
    assert!((sequential["allowed"].as_f64().unwrap() - 0.05).abs() < 1e-9);
    assert!(sequential["high"].as_f64().unwrap() < 0.5 && sequential["above"] == false);
    let threshold = row("threshold", 1);
    assert!(threshold["alarms"].as_u64().unwrap() >= 18, "{threshold}");
    assert_eq!(threshold["allowed"], Value::Null);
    assert_eq!(value(&testbed, &line, 0), answer, "the seed is the same");
}
