//! Webhooks with the hook types and payload that Flagger's users know
//! (<https://docs.flagger.app/usage/webhooks>): a POST of JSON, answered by status.

use serde_json::json;

use super::{Asker, Subject, error, first_line, http::Call, said};
use crate::judge::{HookType, Judgement, Outcome, Webhook};

/// Bytes of an answer that are read; only its first line is shown.
const MOST: usize = 1 << 16;

pub(super) async fn ask(asker: &Asker, spec: &Webhook, subject: &Subject) -> Judgement {
    let call = Call {
        url: &spec.url,
        path: "",
        json: Some(payload(spec, subject)),
        timeout: spec.timeout,
        most: MOST,
    };
    match asker.call(call).await {
        Ok(answer) => judge(spec.hook, answer.status, &first_line(&answer.body)),
        Err(fault) => error(fault.to_string()),
    }
}

/// `name`, `namespace`, `phase` and `metadata` as Flagger has them; what it does
/// not know stands under `shifter`.
fn payload(spec: &Webhook, subject: &Subject) -> String {
    let metadata: serde_json::Map<String, serde_json::Value> = spec
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    json!({
        "name": subject.service,
        "namespace": "",
        "phase": subject.phase,
        "metadata": metadata,
        "shifter": {
            "type": spec.hook.word(),
            "rollout": subject.rollout,
            "step": subject.step,
            "weight": subject.weight,
            "candidate": subject.candidate,
        },
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
