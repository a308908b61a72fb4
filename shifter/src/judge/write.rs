//! Gates as the store keeps them: JSON that [`super::gate`] reads.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Bound, GateSpec, Judge, words,
    words::{Word as _, show_time},
};

impl GateSpec {
    /// Every key, defaults too, so that what is stored does not change with them.
    pub fn to_json(&self) -> Value {
        let mut gate = match &self.judge {
            Judge::Sequential(it) => json!({
                "judge": "sequential",
                "alpha": it.alpha.to_string(),
                "min_effect": {
                    "ratio": it.min_effect.ratio.to_string(),
                    "time": show_time(it.min_effect.time),
                    "time_relative": it.min_effect.time_relative.to_string(),
                },
                "measures": it.measures.iter().map(|m| m.word()).collect::<Vec<_>>(),
                "pass_when": it.pass_when.word(),
            }),
            Judge::Threshold(it) => {
                let mut gate = json!({ "judge": "threshold" });
                for bound in &it.bounds {
                    let (key, most) = bound_json(bound);
                    gate[key] = most.into();
                }
                gate
            }
            Judge::MannWhitney(it) => json!({
                "judge": "mann-whitney",
                "measure": it.measure.word(),
                "direction": it.direction.word(),
                "confidence": it.confidence.to_string(),
                "tolerance": it.tolerance.to_string(),
                "effect": it.effect.word(),
                "allowed_increase": it.allowed_increase.get(),
                "allowed_decrease": it.allowed_decrease.get(),
            }),
            Judge::Prometheus(it) => {
                let mut gate = json!({ "judge": "prometheus", "url": it.url, "query": it.query });
                for (key, bound) in [("min", it.min), ("max", it.max)] {
                    if let Some(bound) = bound {
                        gate[key] = bound.get().into();
                    }
                }
                times(&mut gate, it.interval, it.timeout);
                gate
            }
            Judge::Webhook(it) => {
                let metadata: serde_json::Map<String, Value> = it
                    .metadata
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone().into()))
                    .collect();
                let mut gate = json!({
                    "judge": "webhook",
                    "url": it.url,
                    "type": it.hook.word(),
                    "metadata": metadata,
                });
                times(&mut gate, it.interval, it.timeout);
                gate
            }
            Judge::Exec(it) => {
                let mut gate = json!({ "judge": "exec", "file": it.file });
                times(&mut gate, it.interval, it.timeout);
                gate
            }
        };
        gate["name"] = self.name.clone().into();
        gate["on_fail"] = self.on_fail.word().into();
        gate["on_no_data"] = self.on_no_data.word().into();
        gate["on_inconclusive"] = self.on_inconclusive.word().into();
        gate["on_error"] = self.on_error.word().into();
        if !self.reaches_out() {
            gate["min_samples"] = self.min_samples.into();
        }
        gate
    }
}

fn bound_json(bound: &Bound) -> (&'static str, String) {
    match bound {
        Bound::Ratio(signal, most) => (signal.key(), most.to_string()),
        Bound::Quantile(measure, per_mille, most) => {
            let key = words::QUANTILE_KEYS
                .iter()
                .find(|(_, m, q)| (m, q) == (measure, per_mille))
                .map_or("", |(key, ..)| key);
            (key, show_time(*most))
        }
    }
}

fn times(gate: &mut Value, interval: Duration, timeout: Duration) {
    gate["interval"] = show_time(interval).into();
    gate["timeout"] = show_time(timeout).into();
}
