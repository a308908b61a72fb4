//! Spans of time as people write and read them: `90s`, `10m`, `1h30m`.

use std::time::Duration;

/// Reads a span; at most a year.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no time: write it with units, as in 90s, 10m, 1h30m or 500ms");
    let mut rest = text;
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        total_ms = number
            .checked_mul(unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .filter(|ms| *ms <= 366 * 86_400_000)
            .ok_or_else(|| format!("{text:?} is longer than a year"))?;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes seconds in their two largest units.
pub(super) fn show(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 if seconds <= 0.0 => "0s".to_owned(),
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Writes a short span in ns with the unit that fits.
pub(super) fn show_ns(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_units_only() {
        for (text, ms) in [
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "10",
            "m",
            "-5s",
            "5 m",
            "1.5h",
            "10y",
            "99999999999999999999s",
            "400d",
            "5ß",
        ] {
            assert!(parse(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn spans_are_written_in_their_two_largest_units() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.25, "0.2s"),
            (59.9, "59s"),
            (598.0, "9m58s"),
            (5_400.0, "1h30m"),
            (200_000.0, "2d07h"),
        ] {
            assert_eq!(show(seconds), text);
        }
        assert_eq!(show_ns(214_000), "214 µs");
        assert_eq!(show_ns(1_200_000), "1.2 ms");
    }
}
