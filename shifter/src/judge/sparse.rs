//! Signals of a pool as JSON: sums by name, and only the buckets that are not empty.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use shifter_common::histogram::BUCKETS;

use crate::model::signals::{Histogram, PoolSignals};

/// A histogram as `[[bucket, count], ..]`, buckets rising.
pub(super) mod histogram {
    use super::*;

    pub fn serialize<S: Serializer>(it: &Histogram, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = it.0.iter().enumerate().filter(|(_, count)| **count > 0);
        serializer.collect_seq(filled)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram, D::Error> {
        let mut histogram = Histogram::default();
        let mut least = 0;
        let mut sum = 0u64;
        for (bucket, count) in Vec::<(usize, u64)>::deserialize(deserializer)? {
            if bucket < least || bucket >= BUCKETS {
                return Err(D::Error::custom(format!(
                    "bucket {bucket} is out of order or range: write {least} to {}",
                    BUCKETS - 1
                )));
            }
            sum = sum
                .checked_add(count)
                .ok_or_else(|| D::Error::custom("the counts of a histogram do not fit 64 bits"))?;
            histogram.0[bucket] = count;
            least = bucket + 1;
        }
        Ok(histogram)
    }
}

/// `PoolSignals`, field by field.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PoolSignals", deny_unknown_fields)]
struct Fields {
    attempts: u64,
    answered: u64,
    syn_retransmits: u64,
    unanswered: u64,
    refused: u64,
    resets_before_data: u64,
    resets_after_data: u64,
    client_resets: u64,
    client_retransmits: u64,
    backend_retransmits: u64,
    ended: u64,
    bytes: u64,
    #[serde(with = "histogram")]
    handshake: Histogram,
    #[serde(with = "histogram")]
    first_byte: Histogram,
    #[serde(with = "histogram")]
    duration: Histogram,
}

/// What can be written with `#[serde(with)]`.
pub(super) mod signals {
    use super::*;

    pub fn serialize<S: Serializer>(it: &PoolSignals, serializer: S) -> Result<S::Ok, S::Error> {
        Fields::serialize(it, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PoolSignals, D::Error> {
        Fields::deserialize(deserializer)
    }
}

/// Signals as JSON.
pub fn signals_to_json(signals: &PoolSignals) -> serde_json::Value {
    // A table of numbers and lists of numbers always has a JSON.
    Fields::serialize(signals, serde_json::value::Serializer).unwrap_or_default()
}

/// Signals from what [`signals_to_json`] wrote.
pub fn signals_from_json(json: &serde_json::Value) -> Result<PoolSignals, String> {
    Fields::deserialize(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_they_were_written() {
        let mut signals = PoolSignals {
            attempts: u64::MAX,
            bytes: 3,
            ..PoolSignals::default()
        };
        signals.handshake.0[0] = 1;
        signals.handshake.0[BUCKETS - 1] = 2;
        let json = signals_to_json(&signals);
        assert_eq!(json["handshake"].to_string(), "[[0,1],[183,2]]");
        assert_eq!(signals_from_json(&json), Ok(signals));
    }

    #[test]
    fn what_is_no_signals_is_refused() {
        let good = signals_to_json(&PoolSignals::default());
        for (key, value, part) in [
            ("handshake", "[[184,1]]", "bucket 184"),
            ("handshake", "[[5,1],[5,1]]", "write 6 to 183"),
            ("handshake", "[[5,-1]]", "invalid value"),
            (
                "handshake",
                "[[1,18446744073709551615],[2,1]]",
                "do not fit",
            ),
            ("attempts", "-1", "invalid value"),
            ("attemps", "1", "unknown field"),
        ] {
            let mut bad = good.clone();
            bad[key] = serde_json::from_str(value).unwrap();
            let error = signals_from_json(&bad).unwrap_err();
            assert!(error.contains(part), "{key} = {value}: {error}");
        }
    }
}
