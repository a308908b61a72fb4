//! Numbers and services as people read them.

use crate::proto::{DeadMan, Observed, Service, Weights};

pub(super) use crate::model::text::{count, plural};

use super::span;

/// A share as a percentage with up to 4 decimals.
pub(super) fn percent(share: f64) -> String {
    trimmed(format!("{:.4}", share * 100.0))
}

/// A measured share: as many decimals as mean something.
fn about(share: f64) -> String {
    let percent = share * 100.0;
    trimmed(match percent {
        p if p < 0.1 => format!("{p:.3}"),
        p if p < 1.0 => format!("{p:.2}"),
        p => format!("{p:.1}"),
    })
}

fn trimmed(number: String) -> String {
    format!("{}%", number.trim_end_matches('0').trim_end_matches('.'))
}

/// 1.2 MiB.
pub(super) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1_000.0 || unit == "TiB" {
            return match unit {
                "B" => format!("{number} B"),
                _ if value < 10.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1_024.0;
    }
    format!("{number} B")
}

/// What of the service names a client sees.
pub(super) fn name(service: &Service) -> &str {
    service.spec.as_ref().map_or("", |spec| &spec.name)
}

/// The observed share, its interval, its sample and window.
pub(super) fn observed(observed: &Observed) -> String {
    let window = observed.window_seconds;
    match (observed.share, observed.low, observed.high) {
        (Some(share), Some(low), Some(high)) => format!(
            "{} ({}–{}) of {} in {window}s",
            about(share),
            about(low).trim_end_matches('%'),
            about(high),
            count(observed.total),
        ),
        _ => format!("none in {window}s"),
    }
}

/// The flows that each pool carries.
pub(super) fn carried(weights: &Weights) -> String {
    let carried = weights.carried.unwrap_or_default();
    let pool = |flows, idle, name| match idle {
        0 => format!("{} {name}", count(flows)),
        idle => format!("{} {name} ({} idle > 2h)", count(flows), count(idle)),
    };
    format!(
        "{} / {}",
        pool(carried.blue, carried.idle_blue, "blue"),
        pool(carried.green, carried.idle_green, "green")
    )
}

/// What a dead-man will do, or has done.
pub(super) fn dead_man(dead_man: &DeadMan) -> String {
    let safe = percent(dead_man.safe_share);
    match dead_man.passed {
        true => format!("{safe} since the deadline"),
        false => format!("{safe} in {}", span::show(dead_man.remaining_seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(214_748_365.0 / 4_294_967_296.0), "5%");
        assert_eq!(percent(0.0005), "0.05%");
        assert_eq!(percent(1.0 / 3.0), "33.3333%");
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(1.0), "100%");
        assert_eq!(about(0.0514), "5.1%");
        assert_eq!(about(0.000512), "0.051%");
        assert_eq!(bytes(134_217_728), "128 MiB");
        assert_eq!(bytes(1_234_567), "1.2 MiB");
        assert_eq!(bytes(12), "12 B");
    }
}
