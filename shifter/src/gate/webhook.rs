//! Webhooks with the hook types and payload that Flagger's users know
//! (<https://docs.flagger.app/usage/webhooks>): a POST of JSON, answered by status.

use serde_json::json;

use super::{Asker, Subject, error, first_line, http::Call, said};
use crate::{
    judge::{HookType, Judgement, Outcome, Webhook},
    rollout::Happened,
};

/// Bytes of an answer that are read; only its first line is shown.
const MOST: usize = 1 << 16;

pub(super) async fn ask(asker: &Asker, spec: &Webhook, subject: &Subject) -> Judgement {
    let call = Call {
        url: &spec.url,
        path: "",
        json: Some(payload(spec, subject, None)),
        timeout: spec.timeout,
        most: MOST,
    };
    match asker.call(call).await {
        Ok(answer) => judge(spec.hook, answer.status, &first_line(&answer.body)),
        Err(fault) => error(fault.to_string()),
    }
}

/// Tells it what has happened; any other status than 200 to 299 is a failure.
pub(super) async fn tell(
    asker: &Asker,
    spec: &Webhook,
    subject: &Subject,
    happened: &Happened,
) -> Result<(), String> {
    let call = Call {
        url: &spec.url,
        path: "",
        json: Some(payload(spec, subject, Some(happened))),
        timeout: spec.timeout,
        most: MOST,
    };
    let answer = asker.call(call).await.map_err(|fault| fault.to_string())?;
    match answer.status {
        200..300 => Ok(()),
        status => Err(format!(
            "it answers {status}: {:?}",
            first_line(&answer.body)
        )),
    }
}

/// Kinds of what happens that Flagger calls warnings.
const WARNINGS: [&str; 2] = ["holding", "rolling back"];

/// `name`, `namespace`, `phase` and `metadata` as Flagger has them; what it does
/// not know stands under `shifter`.
fn payload(spec: &Webhook, subject: &Subject, happened: Option<&Happened>) -> String {
    let mut metadata: serde_json::Map<String, serde_json::Value> = spec
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    let mut shifter = json!({
        "type": spec.hook.word(),
        "rollout": subject.rollout,
        "step": subject.step,
        "weight": subject.weight,
        "candidate": subject.candidate,
    });
    if let Some(it) = happened {
        let is_bad = WARNINGS.contains(&it.kind.as_str()) || it.text.starts_with("rolled back");
        let severity = if is_bad { "Warning" } else { "Normal" };
        // Flagger has these three where it tells of an event, all as text.
        metadata.insert("eventMessage".into(), it.text.clone().into());
        metadata.insert("eventType".into(), severity.into());
        metadata.insert("timestamp".into(), it.at_unix_ms.to_string().into());
        shifter["event"] = json!({ "kind": it.kind, "text": it.text });
    }
    json!({
        "name": subject.service,
        "namespace": "",
        "phase": subject.phase,
        "metadata": metadata,
        "shifter": shifter,
    })
    .to_string()
}

fn judge(hook: HookType, status: u16, line: &str) -> Judgement {
    let is_yes = (200..300).contains(&status);
    let text = format!("{} hook answers {status}: {line:?}", hook.word());
    let outcome = match hook {
        // A yes asks for the rollback.
        HookType::Rollback if is_yes => Outcome::Fail,
        HookType::Rollback => Outcome::Pass,
        _ if is_yes => Outcome::Pass,
        // Not confirmed yet: it is asked again.
        HookType::ConfirmRollout | HookType::ConfirmPromotion => Outcome::Inconclusive,
        HookType::PostRollout | HookType::Event => Outcome::Error,
        // Other than a no these say that the hook itself does not work.
        _ if status >= 500 || (300..400).contains(&status) => Outcome::Error,
        _ => Outcome::Fail,
    };
    said(outcome, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_stands_where_flagger_has_it() {
        let spec = Webhook {
            url: "http://h:1/".into(),
            hook: HookType::Event,
            metadata: vec![("team".into(), "shop".into())],
            interval: Default::default(),
            timeout: Default::default(),
        };
        let subject = Subject {
            service: "web".into(),
            rollout: 7,
            phase: "rolling back".into(),
            ..Subject::default()
        };
        let happened = Happened {
            at_unix_ms: 1_700_000_000_123,
            kind: "rolling back".into(),
            text: "gate \"x\" failed".into(),
        };
        let text = payload(&spec, &subject, Some(&happened));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["name"], "web");
        assert_eq!(value["phase"], "rolling back");
        assert_eq!(
            value["metadata"],
            json!({
                "team": "shop",
                "eventMessage": "gate \"x\" failed",
                "eventType": "Warning",
                "timestamp": "1700000000123",
            })
        );
        assert_eq!(value["shifter"]["event"]["kind"], "rolling back");
        let asked: serde_json::Value =
            serde_json::from_str(&payload(&spec, &subject, None)).unwrap();
        assert_eq!(asked["metadata"], json!({ "team": "shop" }));
        assert!(asked["shifter"]["event"].is_null());
    }

    #[test]
    fn each_type_takes_an_answer_in_its_own_way() {
        use HookType::*;
        for (hook, yes, no, broken) in [
            (
                ConfirmRollout,
                Outcome::Pass,
                Outcome::Inconclusive,
                Outcome::Inconclusive,
            ),
            (
                ConfirmPromotion,
                Outcome::Pass,
                Outcome::Inconclusive,
                Outcome::Inconclusive,
            ),
            (PreRollout, Outcome::Pass, Outcome::Fail, Outcome::Error),
            (Rollout, Outcome::Pass, Outcome::Fail, Outcome::Error),
            (Rollback, Outcome::Fail, Outcome::Pass, Outcome::Pass),
            (PostRollout, Outcome::Pass, Outcome::Error, Outcome::Error),
            (Event, Outcome::Pass, Outcome::Error, Outcome::Error),
        ] {
            for (status, outcome) in [(200, yes), (204, yes), (403, no), (500, broken)] {
                assert_eq!(
                    judge(hook, status, "").outcome,
                    outcome,
                    "{hook:?} {status}"
                );
            }
        }
    }
}
