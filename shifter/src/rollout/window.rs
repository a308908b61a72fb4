//! What the pools did in one window of time of a rollout, and how it is written.

use serde_json::{Value, json};
use shifter_common::histogram::BUCKETS;

use crate::model::signals::{Histogram, PoolSignals};

/// One window.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Window {
    /// Its end, by the wall clock.
    pub at_unix_ms: i64,
    /// How long it lasted.
    pub ms: u64,
    /// Index of the step that it is in.
    pub step: usize,
    /// Share of the candidate, as a weight is written.
    pub weight: String,
    /// What was counted in it, `[blue, green]`.
    pub signals: [PoolSignals; 2],
    /// Live flows at its end, `[blue, green]`.
    pub flows: [u64; 2],
}

impl Window {
    /// Both in one.
    pub fn followed_by(self, later: Self) -> Self {
        let mut signals = self.signals;
        for (sum, more) in signals.iter_mut().zip(&later.signals) {
            add(sum, more);
        }
        Self {
            ms: self.ms + later.ms,
            signals,
            ..later
        }
    }
}

/// Counts of signals by name, in the order of their writing.
fn counts(signals: &PoolSignals) -> [(&'static str, u64); 12] {
    [
        ("attempts", signals.attempts),
        ("answered", signals.answered),
        ("syn_retransmits", signals.syn_retransmits),
        ("unanswered", signals.unanswered),
        ("refused", signals.refused),
        ("resets_before_data", signals.resets_before_data),
        ("resets_after_data", signals.resets_after_data),
        ("client_resets", signals.client_resets),
        ("client_retransmits", signals.client_retransmits),
        ("backend_retransmits", signals.backend_retransmits),
        ("ended", signals.ended),
        ("bytes", signals.bytes),
    ]
}

/// Signals as JSON; zeros are left out.
pub fn write(signals: &PoolSignals) -> Value {
    let mut json = serde_json::Map::new();
    for (name, count) in counts(signals) {
        if count > 0 {
            json.insert(name.to_owned(), count.into());
        }
    }
    for (name, histogram) in [
        ("handshake", &signals.handshake),
        ("first_byte", &signals.first_byte),
        ("duration", &signals.duration),
    ] {
        let filled: Vec<Value> = (0..BUCKETS)
            .filter(|bucket| histogram.0[*bucket] > 0)
            .map(|bucket| json!([bucket, histogram.0[bucket]]))
            .collect();
        if !filled.is_empty() {
            json.insert(name.to_owned(), filled.into());
        }
    }
    Value::Object(json)
}

/// Reads what [`write()`] wrote; what is not there is zero.
pub fn read(json: &Value) -> PoolSignals {
    let count = |name: &str| json.get(name).and_then(Value::as_u64).unwrap_or(0);
    let histogram = |name: &str| {
        let mut histogram = Histogram::default();
        let filled = json.get(name).and_then(Value::as_array);
        for pair in filled.into_iter().flatten() {
            let number = |index: usize| pair.get(index).and_then(Value::as_u64);
            if let (Some(bucket), Some(count)) = (number(0), number(1))
                && let Some(place) = histogram.0.get_mut(bucket as usize)
            {
                *place = count;
            }
        }
        histogram
    };
    PoolSignals {
        attempts: count("attempts"),
        answered: count("answered"),
        syn_retransmits: count("syn_retransmits"),
        unanswered: count("unanswered"),
        refused: count("refused"),
        resets_before_data: count("resets_before_data"),
        resets_after_data: count("resets_after_data"),
        client_resets: count("client_resets"),
        client_retransmits: count("client_retransmits"),
        backend_retransmits: count("backend_retransmits"),
        ended: count("ended"),
        bytes: count("bytes"),
        handshake: histogram("handshake"),
        first_byte: histogram("first_byte"),
        duration: histogram("duration"),
    }
}

/// Adds what came in another window.
pub fn add(sum: &mut PoolSignals, more: &PoolSignals) {
    sum.attempts += more.attempts;
    sum.answered += more.answered;
    sum.syn_retransmits += more.syn_retransmits;
    sum.unanswered += more.unanswered;
    sum.refused += more.refused;
    sum.resets_before_data += more.resets_before_data;
    sum.resets_after_data += more.resets_after_data;
    sum.client_resets += more.client_resets;
    sum.client_retransmits += more.client_retransmits;
    sum.backend_retransmits += more.backend_retransmits;
    sum.ended += more.ended;
    sum.bytes += more.bytes;
    for (sum, more) in [
        (&mut sum.handshake, &more.handshake),
        (&mut sum.first_byte, &more.first_byte),
        (&mut sum.duration, &more.duration),
    ] {
        for (sum, more) in sum.0.iter_mut().zip(more.0.iter()) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_back_as_they_were_written_and_add_up() {
        let mut signals = PoolSignals {
            attempts: 7,
            answered: 6,
            refused: 1,
            bytes: 1 << 40,
            ..PoolSignals::default()
        };
        signals.handshake.0[3] = 5;
        signals.duration.0[BUCKETS - 1] = 1;
        let back = read(&write(&signals));
        assert_eq!(back, signals);
        let mut sum = back.clone();
        add(&mut sum, &signals);
        assert_eq!(sum.since(&signals), signals);
        assert_eq!(read(&Value::Null), PoolSignals::default());
    }
}
