//! What a description may say, and of which services.

use super::*;

#[test]
fn descriptions_are_refused_with_what_would_be_right() {
    for (json, part) in [
        (r#"{}"#, "lacks the key strategy"),
        (
            r#"{"strategy":"bluegreen"}"#,
            "is no strategy: write one of \"blue-green\"",
        ),
        (
            r#"{"strategy":"blue-green","steps":["5%"]}"#,
            "of the strategy \"blue-green\" has no key \"steps\"",
        ),
        (
            r#"{"strategy":"canary","step":["5%"]}"#,
            "did you mean \"steps\"?",
        ),
        (
            r#"{"strategy":"canary","steps":["5%","5%"]}"#,
            "is not more than 5% before it",
        ),
        (
            r#"{"strategy":"canary","steps":["5"]}"#,
            "is no step: write a share",
        ),
        (
            r#"{"strategy":"canary","steps":["pause 1"]}"#,
            "is no duration",
        ),
        (r#"{"strategy":"canary","steps":["drain x"]}"#, "drain x"),
        (
            r#"{"strategy":"canary","steps":["hook ../x"]}"#,
            "is no name of a hook",
        ),
        (
            r#"{"strategy":"canary","steps":[]}"#,
            "0 steps are out of range",
        ),
        (
            r#"{"strategy":"canary","steps":["5%"],"linear":"5%"}"#,
            "both say how the share grows",
        ),
        (
            r#"{"strategy":"canary","factor":2}"#,
            "goes with exponential only",
        ),
        (
            r#"{"strategy":"canary","linear":"100%"}"#,
            "leaves one of the pools without",
        ),
        (
            r#"{"strategy":"canary","interval":"0s"}"#,
            "out of range: write 1s to 30d",
        ),
        (
            r#"{"strategy":"canary","lease":"1s"}"#,
            "out of range: write 5s to 1d",
        ),
        (
            r#"{"strategy":"canary","promote":"yes"}"#,
            "write true or false",
        ),
        (
            r#"{"strategy":"rolling","max_unavailable":0}"#,
            "are both 0",
        ),
    ] {
        let error = spec::from_json(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn a_service_that_cannot_have_a_rollout_says_why() {
    let mut service = service();
    let refused = |json: &str, service: &ServiceSpec| {
        preset::plan(&spec::from_json(json).unwrap(), service)
            .unwrap_err()
            .to_string()
    };
    let canary = r#"{"strategy":"canary"}"#;
    assert!(refused(r#"{"strategy":"rolling","surge":2}"#, &service).contains("there are 1"));
    assert!(
        refused(r#"{"strategy":"rolling","max_unavailable":3}"#, &service)
            .contains("none of the 3 ready")
    );
    assert!(
        refused(
            r#"{"strategy":"canary","steps":["drain 10.9.9.9:80"]}"#,
            &service
        )
        .contains("write one of 10.0.0.11:80")
    );
    service.green = "5%".parse().unwrap();
    assert!(refused(canary, &service).contains("the weight is 5% already"));
    service.green = Weight::ZERO;
    service.green_pool.clear();
    assert!(refused(canary, &service).contains("green has no backend that is ready"));
}

#[test]
fn growths_rise_to_just_below_all() {
    let weights = |json: &str| -> Vec<String> {
        plan(json)
            .steps
            .iter()
            .filter_map(|step| match step {
                crate::rollout::Step::Weight { candidate } => Some(candidate.to_string()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(
        weights(r#"{"strategy":"canary","linear":"25%"}"#),
        ["25%", "50%", "75%"]
    );
    assert_eq!(
        weights(r#"{"strategy":"canary","exponential":"10%","factor":3}"#),
        ["10%", "30%", "90%"]
    );
    assert_eq!(weights(r#"{"strategy":"canary","linear":"1/3"}"#).len(), 2);
}
