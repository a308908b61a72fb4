//! Durations as people write them: `75s`, `2h4m`, `5d`.

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

#[cfg(test)]
mod tests {
    use super::*;

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
