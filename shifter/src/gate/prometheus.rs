//! PromQL: an instant query whose one number has to lie within bounds
//! (<https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>).

use serde::Deserialize;

use super::{Asker, error, first_line, http::Call, said};
use crate::judge::{Judgement, Outcome, Prometheus};

/// Bytes of an answer: a vector of one number is a few hundred.
const MOST: usize = 1 << 20;

pub(super) async fn ask(asker: &Asker, spec: &Prometheus) -> Judgement {
    let path = format!(
        "/api/v1/query?query={}&timeout={}ms",
        encode(&spec.query),
        spec.timeout.as_millis()
    );
    let call = Call {
        url: &spec.url,
        path: &path,
        json: None,
        timeout: spec.timeout,
        most: MOST,
    };
    match asker.call(call).await {
        Ok(answer) => judge(spec, answer.status, &answer.body),
        Err(fault) => error(fault.to_string()),
    }
}

/// RFC 3986: all but unreserved characters.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

fn judge(spec: &Prometheus, status: u16, body: &[u8]) -> Judgement {
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(fault) => {
            let line = first_line(body);
            return error(format!(
                "status {status} and no answer of Prometheus ({fault}): {line:?}"
            ));
        }
    };
    if answer.status != "success" || status != 200 {
        let text = first_line(answer.error.as_bytes());
        return error(format!("Prometheus refuses the query ({status}): {text}"));
    }
    let Some(data) = answer.data else {
        return error("Prometheus answers without data");
    };
    let value = match (data.result_type.as_str(), &data.result) {
        ("scalar", value) => sample(value),
        ("vector", serde_json::Value::Array(items)) => match items.as_slice() {
            [] => return said(Outcome::NoData, "the query has no result"),
            [one] => sample(&one["value"]),
            many => {
                return error(format!(
                    "the query has {} results: write one that gives one number, as sum(..)",
                    many.len()
                ));
            }
        },
        (other, _) => {
            let kind = first_line(other.as_bytes());
            return error(format!(
                "the query gives a {kind}: write one that gives a scalar or a vector of one"
            ));
        }
    };
    match value {
        None => error("Prometheus answers with a number that cannot be read"),
        Some(value) => bounds(spec, value),
    }
}

/// `[time, "number"]`.
fn sample(value: &serde_json::Value) -> Option<f64> {
    match value[1].as_str()? {
        "NaN" => Some(f64::NAN),
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust reads words for these that Prometheus does not write.
        text if text.contains(['n', 'N', 'i', 'I']) => None,
        text => text.parse().ok(),
    }
}

fn bounds(spec: &Prometheus, value: f64) -> Judgement {
    if value.is_nan() {
        // 0/0: a ratio of nothing.
        return said(Outcome::NoData, "the query gives NaN: a ratio of nothing");
    }
    let (min, max) = (spec.min.map(|it| it.get()), spec.max.map(|it| it.get()));
    let mut judgement = if let Some(max) = max.filter(|max| value > *max) {
        said(Outcome::Fail, format!("{value} is above max = {max}"))
    } else if let Some(min) = min.filter(|min| value < *min) {
        said(Outcome::Fail, format!("{value} is below min = {min}"))
    } else {
        said(Outcome::Pass, format!("{value} is within its bounds"))
    };
    judgement.statistics.push(("value".into(), value));
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Number;

    #[test]
    fn each_answer_has_its_outcome() {
        let spec = Prometheus {
            url: String::new(),
            query: String::new(),
            min: Number::new(-1.0),
            max: Number::new(2.0),
            interval: Default::default(),
            timeout: Default::default(),
        };
        let of = |kind: &str, result: &str| {
            format!(r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}}}"#)
        };
        let vector = |value: &str| {
            of(
                "vector",
                &format!(r#"[{{"metric":{{}},"value":[1,{value}]}}]"#),
            )
        };
        for (body, outcome) in [
            (of("scalar", r#"[1.5,"2"]"#), Outcome::Pass),
            (vector(r#""2.5""#), Outcome::Fail),
            (vector(r#""-1.5""#), Outcome::Fail),
            (vector(r#""1e-3""#), Outcome::Pass),
            (vector(r#""NaN""#), Outcome::NoData),
            (vector(r#""+Inf""#), Outcome::Fail),
            (vector(r#""-Inf""#), Outcome::Fail),
            (vector(r#""infinity""#), Outcome::Error),
            (vector("1"), Outcome::Error),
            (vector(r#""1 2""#), Outcome::Error),
            (of("vector", "[]"), Outcome::NoData),
            (of("vector", "{}"), Outcome::Error),
            (
                of("vector", r#"[{"value":[1,"1"]},{"value":[1,"1"]}]"#),
                Outcome::Error,
            ),
            (of("matrix", "[]"), Outcome::Error),
            (of("string", r#"[1,"1"]"#), Outcome::Error),
            (r#"{"status":"success"}"#.into(), Outcome::Error),
            (
                r#"{"status":"error","error":"parse"}"#.into(),
                Outcome::Error,
            ),
            ("<html>".into(), Outcome::Error),
            (String::new(), Outcome::Error),
        ] {
            let it = judge(&spec, 200, body.as_bytes());
            assert_eq!(it.outcome, outcome, "{body}: {}", it.reason);
        }
        let it = judge(&spec, 503, of("scalar", r#"[1,"1"]"#).as_bytes());
        assert_eq!(it.outcome, Outcome::Error);
    }

    #[test]
    fn a_query_is_encoded() {
        assert_eq!(
            encode("a{b=\"ä\"} > 1&c"),
            "a%7Bb%3D%22%C3%A4%22%7D%20%3E%201%26c"
        );
    }
}
