//! The words that stand for things in gates, each in one place.

use std::time::Duration;

use super::{
    Direction, Effect, HookType, Measure, Outcome, PassWhen, Policy, RatioSignal, read::Kind,
};

/// A choice that is written as a word.
pub(super) trait Word: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    /// Its word.
    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, value)| *value == self);
        found.map_or("", |(word, _)| word)
    }

    /// By its word; the error says what would be right.
    fn read(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("{text:?} is not known: write one of {}", Self::words()))
    }

    /// All of them, for messages.
    fn words() -> String {
        let words: Vec<String> = Self::WORDS.iter().map(|(w, _)| format!("{w:?}")).collect();
        words.join(", ")
    }
}

impl Word for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("sequential", Self::Sequential),
        ("threshold", Self::Threshold),
        ("mann-whitney", Self::MannWhitney),
        ("prometheus", Self::Prometheus),
        ("webhook", Self::Webhook),
        ("exec", Self::Exec),
    ];
}

impl Word for Outcome {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("pass", Self::Pass),
        ("fail", Self::Fail),
        ("inconclusive", Self::Inconclusive),
        ("no-data", Self::NoData),
        ("error", Self::Error),
    ];
}

impl Outcome {
    /// As it is shown and stored.
    pub fn word(self) -> &'static str {
        Word::word(self)
    }

    /// By its word.
    pub fn of(word: &str) -> Option<Self> {
        Self::read(word).ok()
    }
}

impl Word for Policy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("hold", Self::Hold),
        ("advance", Self::Advance),
        ("rollback", Self::Rollback),
    ];
}

impl Policy {
    /// As it is written.
    pub fn word(self) -> &'static str {
        Word::word(self)
    }
}

impl Word for Measure {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("failures", Self::Failures),
        ("handshake", Self::Handshake),
        ("first-byte", Self::FirstByte),
        ("duration", Self::Duration),
    ];
}

impl Word for PassWhen {
    const WORDS: &'static [(&'static str, Self)] =
        &[("no-alarm", Self::NoAlarm), ("shown", Self::Shown)];
}

impl Word for Direction {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("increase", Self::Increase),
        ("decrease", Self::Decrease),
        ("either", Self::Either),
    ];
}

impl Word for Effect {
    const WORDS: &'static [(&'static str, Self)] =
        &[("mean-ratio", Self::MeanRatio), ("cles", Self::Cles)];
}

impl Word for HookType {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("confirm-rollout", Self::ConfirmRollout),
        ("pre-rollout", Self::PreRollout),
        ("rollout", Self::Rollout),
        ("confirm-promotion", Self::ConfirmPromotion),
        ("post-rollout", Self::PostRollout),
        ("rollback", Self::Rollback),
        ("event", Self::Event),
    ];
}

impl HookType {
    /// As it is written, and as hooks are told.
    pub fn word(self) -> &'static str {
        Word::word(self)
    }
}

impl RatioSignal {
    /// Every one, in the order in which they are looked at.
    pub const ALL: [Self; 9] = [
        Self::Failure,
        Self::Unanswered,
        Self::Refused,
        Self::Reset,
        Self::ResetBeforeData,
        Self::ClientReset,
        Self::SynRetransmit,
        Self::ClientRetransmit,
        Self::BackendRetransmit,
    ];

    /// Its key in a gate of judge "threshold".
    pub const fn key(self) -> &'static str {
        match self {
            Self::Failure => "failure_ratio_max",
            Self::Unanswered => "unanswered_ratio_max",
            Self::Refused => "refused_ratio_max",
            Self::Reset => "reset_ratio_max",
            Self::ResetBeforeData => "reset_before_data_ratio_max",
            Self::ClientReset => "client_reset_ratio_max",
            Self::SynRetransmit => "syn_retransmit_ratio_max",
            Self::ClientRetransmit => "client_retransmit_ratio_max",
            Self::BackendRetransmit => "backend_retransmit_ratio_max",
        }
    }
}

/// Keys that bound a quantile (in parts per thousand) of a time.
pub(super) const QUANTILE_KEYS: [(&str, Measure, u16); 12] = [
    ("handshake_p50_max", Measure::Handshake, 500),
    ("handshake_p90_max", Measure::Handshake, 900),
    ("handshake_p95_max", Measure::Handshake, 950),
    ("handshake_p99_max", Measure::Handshake, 990),
    ("first_byte_p50_max", Measure::FirstByte, 500),
    ("first_byte_p90_max", Measure::FirstByte, 900),
    ("first_byte_p95_max", Measure::FirstByte, 950),
    ("first_byte_p99_max", Measure::FirstByte, 990),
    ("duration_p50_max", Measure::Duration, 500),
    ("duration_p90_max", Measure::Duration, 900),
    ("duration_p95_max", Measure::Duration, 950),
    ("duration_p99_max", Measure::Duration, 990),
];

/// Every key of a gate of judge "threshold" that others do not have.
pub(super) const THRESHOLD_KEYS: [&str; 22] = {
    let mut keys = ["min_samples"; 22];
    let mut i = 0;
    while i < RatioSignal::ALL.len() {
        keys[1 + i] = RatioSignal::ALL[i].key();
        i += 1;
    }
    let mut j = 0;
    while j < QUANTILE_KEYS.len() {
        keys[1 + i + j] = QUANTILE_KEYS[j].0;
        j += 1;
    }
    keys
};

/// A time as it is written: microseconds where milliseconds would not do.
pub(super) fn show_time(time: Duration) -> String {
    match time.subsec_micros() % 1_000 {
        0 => format!("{}ms", time.as_millis()),
        _ => format!("{}us", time.as_micros()),
    }
}

/// A share in reasons: `2.1%`.
pub(super) fn show_share(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A factor of evidence in reasons.
pub(super) fn show_evidence(evidence: f64) -> String {
    if evidence < 1e6 {
        format!("{evidence:.3}")
    } else {
        format!("{evidence:.1e}")
    }
}
