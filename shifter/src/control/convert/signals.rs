//! Signals and breakers as messages, and back.

use crate::{
    model::{
        breaker::Breaker,
        signals::{Histogram, PoolSignals},
    },
    proto,
    reconcile::controller::BreakerView,
};

/// A desired breaker.
pub(super) fn breaker(message: &proto::BreakerSpec) -> Result<Breaker, String> {
    let default = Breaker::default();
    let window = super::seconds(message.window_seconds, "window_seconds")
        .map_err(|error| error.to_string())?;
    Ok(Breaker {
        window: if window.is_zero() {
            default.window
        } else {
            window
        },
        max_failures: message.max_failures.unwrap_or(default.max_failures),
        min_attempts: message.min_attempts.unwrap_or(default.min_attempts),
        max_ratio: match message.max_ratio.as_str() {
            "" => default.max_ratio,
            text => text
                .parse()
                .map_err(|error: crate::model::weight::WeightError| {
                    format!("max_ratio: {error}")
                })?,
        },
    })
}

pub(super) fn breaker_message(breaker: &Breaker) -> proto::BreakerSpec {
    proto::BreakerSpec {
        window_seconds: breaker.window.as_secs_f64(),
        max_failures: Some(breaker.max_failures),
        min_attempts: Some(breaker.min_attempts),
        max_ratio: breaker.max_ratio.to_string(),
    }
}

pub(super) fn status(view: &BreakerView) -> proto::BreakerStatus {
    proto::BreakerStatus {
        attempts: view.attempts,
        failures: view.failures,
        tripped: view.tripped_ago_s.is_some(),
        tripped_ago_seconds: view.tripped_ago_s.unwrap_or_default(),
    }
}

pub(super) fn message(signals: &PoolSignals) -> proto::PoolSignals {
    proto::PoolSignals {
        attempts: signals.attempts,
        answered: signals.answered,
        syn_retransmits: signals.syn_retransmits,
        unanswered: signals.unanswered,
        refused: signals.refused,
        resets_before_data: signals.resets_before_data,
        resets_after_data: signals.resets_after_data,
        client_resets: signals.client_resets,
        client_retransmits: signals.client_retransmits,
        backend_retransmits: signals.backend_retransmits,
        ended: signals.ended,
        bytes: signals.bytes,
        handshake: Some(summary(&signals.handshake)),
        first_byte: Some(summary(&signals.first_byte)),
        duration: Some(summary(&signals.duration)),
    }
}

fn summary(histogram: &Histogram) -> proto::TimeSummary {
    let quantile = |q| histogram.quantile_ns(q).map(|ns| ns / 1e9);
    proto::TimeSummary {
        count: histogram.count(),
        p50_seconds: quantile(0.5),
        p90_seconds: quantile(0.9),
        p99_seconds: quantile(0.99),
    }
}
