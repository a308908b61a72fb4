//! Numbers and services as people read them.

use crate::proto::{DeadMan, Observed, Service, Weights};

pub(super) use crate::model::text::{count, plural};

use crate::model::duration;

/// A share as a percentage with up to 4 decimals.
pub(super) fn percent(share: f64) -> String {
    trimmed(format!("{:.4}", share * 100.0))
}

/// A measured share: as many decimals as mean something.
pub(super) fn percent_about(share: f64) -> String {
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

/// Seconds since 1970 as `2027-01-15 08:01:01Z`, by the proleptic Gregorian calendar.
pub(super) fn utc(unix_seconds: f64) -> String {
    let seconds = unix_seconds.floor() as i64;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years begin in March, eras of 400 years in March of the year 0.
    let day = days + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// What of the service names a client sees.
pub(super) fn name(service: &Service) -> &str {
    service.spec.as_ref().map_or("", |spec| &spec.name)
}

/// The observed share, its interval, its sample and window.
pub(super) fn observed(observed: &Observed) -> String {
    let window = observed.window_seconds;
    let weighed = match (observed.share, observed.low, observed.high) {
        (Some(share), Some(low), Some(high)) => format!(
            "{} ({}–{}) of {} in {window}s",
            percent_about(share),
            percent_about(low).trim_end_matches('%'),
            percent_about(high),
            count(observed.total),
        ),
        _ => format!("none in {window}s"),
    };
    match observed.cohort {
        0 => weighed,
        forced => format!("{weighed}; {} by cohort", count(forced)),
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
        false => format!("{safe} in {}", duration::about(dead_man.remaining_seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_utc() {
        for (seconds, shown) in [
            (0.0, "1970-01-01 00:00:00Z"),
            (-1.0, "1969-12-31 23:59:59Z"),
            (951_782_400.5, "2000-02-29 00:00:00Z"),
            (1_800_000_061.25, "2027-01-15 08:01:01Z"),
            (4_107_542_399.0, "2100-02-28 23:59:59Z"),
            (4_107_542_400.0, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), shown);
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(214_748_365.0 / 4_294_967_296.0), "5%");
        assert_eq!(percent(0.0005), "0.05%");
        assert_eq!(percent(1.0 / 3.0), "33.3333%");
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(1.0), "100%");
        assert_eq!(percent_about(0.0514), "5.1%");
        assert_eq!(percent_about(0.000512), "0.051%");
        assert_eq!(bytes(134_217_728), "128 MiB");
        assert_eq!(bytes(1_234_567), "1.2 MiB");
        assert_eq!(bytes(12), "12 B");
    }
}
