//! Durations as people write and read them: the one place for both.
//!
//! | | |
//! |---|---|
//! | [`parse`], [`show`] | as they are written in files and options: `75s`, `2h4m`, `250ms` |
//! | [`about`] | how long something takes or took, in its two largest units: `1m05s` |
//! | [`short`] | what was measured in the kernel's times: `214 µs`, `3.1 ms` |

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no duration: write numbers with units d, h, m, s or ms, as \"90s\" or \"2h4m\""
)]
pub struct DurationError {
    pub text: String,
}

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("ms", 1),
    ("m", 60_000),
    ("s", 1_000),
];

/// Reads a duration; at most 100 years.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let fault = || DurationError {
        text: text.to_owned(),
    };
    let mut rest = text;
    let mut sum_ms = 0u64;
    if rest.is_empty() {
        return Err(fault());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        rest = &rest[digits..];
        let (unit, ms) = UNITS
            .iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or_else(fault)?;
        rest = &rest[unit.len()..];
        sum_ms = number
            .checked_mul(*ms)
            .and_then(|ms| sum_ms.checked_add(ms))
            .filter(|ms| *ms <= 100 * 365 * 86_400_000)
            .ok_or_else(fault)?;
    }
    Ok(Duration::from_millis(sum_ms))
}

/// As `2h4m`, whole seconds from one second on.
pub fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        let count = match unit {
            "d" => seconds / size,
            "h" => seconds % 86_400 / size,
            "m" => seconds % 3_600 / size,
            _ => seconds % 60,
        };
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// Seconds in their two largest units, cut and not rounded: no minute has 60 seconds.
pub fn about(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 if seconds <= 0.0 => "0s".to_owned(),
        0..10 => format!("{:.1}s", (seconds * 10.0).floor() / 10.0),
        10..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A short time in ns with the unit that fits.
pub fn short(ns: f64) -> String {
    match ns.abs() {
        size if size < 1e3 => format!("{ns:.0} ns"),
        size if size < 1e6 => format!("{:.0} µs", ns / 1e3),
        size if size < 1e9 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.1} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_passed_are_shown_in_their_two_largest_units() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.25, "0.2s"),
            (5.25, "5.2s"),
            (9.99, "9.9s"),
            (59.97, "59s"),
            (119.7, "1m59s"),
            (598.0, "9m58s"),
            (5_400.0, "1h30m"),
            (7_199.0, "1h59m"),
            (200_000.0, "2d07h"),
        ] {
            assert_eq!(about(seconds), text);
        }
    }

    #[test]
    fn short_times_have_the_unit_that_fits() {
        for (ns, text) in [
            (999.0, "999 ns"),
            (214_000.0, "214 µs"),
            (1_200_000.0, "1.2 ms"),
            (-8_000_000.0, "-8.0 ms"),
            (2.5e9, "2.5 s"),
        ] {
            assert_eq!(short(ns), text);
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        for (text, ms) in [
            ("45s", 45_000),
            ("2h4m", 7_440_000),
            ("5d", 432_000_000),
            ("250ms", 250),
            ("1m30s", 90_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(ms));
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "10 s",
            "1x",
            "99999999999999d",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }
}
