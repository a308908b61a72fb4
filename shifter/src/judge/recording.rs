//! A recording: what both pools of a service did in a rollout, window by window, as
//! JSON lines.
//!
//! ```text
//! {"format":"shifter-recording","version":1,"service":"web","live":"blue"}
//! {"at_ms":1000,"step":0,"blue":{"attempts":97,..},"green":{"attempts":3,..}}
//! ```
//!
//! `at_ms` is the end of the window since the rollout began and rises; `step` is the
//! step it belongs to and never falls. Counts are those of the window alone.
//! Histograms are `[[bucket, count], ..]` of `shifter_common::histogram`.

use serde::{Deserialize, Serialize};

use super::{Window, sparse};
use crate::model::{PoolName, signals::PoolSignals};

const FORMAT: &str = "shifter-recording";
const VERSION: u32 = 1;

/// A whole recording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    pub service: String,
    /// The pool that was live when it began.
    pub live: PoolName,
    pub windows: Vec<Recorded>,
}

/// One window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Its end, in ms since the rollout began.
    pub at_ms: u64,
    /// From 0.
    pub step: u32,
    #[serde(with = "sparse::signals")]
    pub blue: PoolSignals,
    #[serde(with = "sparse::signals")]
    pub green: PoolSignals,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    service: String,
    live: String,
}

/// Why a recording is refused, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct RecordingError {
    /// From 1.
    pub line: usize,
    pub text: String,
}

impl Recorded {
    /// The window as judges see it.
    pub fn window(&self, live: PoolName) -> Window {
        let (live, candidate) = match live {
            PoolName::Blue => (&self.blue, &self.green),
            PoolName::Green => (&self.green, &self.blue),
        };
        Window {
            live: live.clone(),
            candidate: candidate.clone(),
        }
    }

    /// Its line, without the end of line.
    pub fn line(&self) -> String {
        // Tables of whole numbers always have a JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Recording {
    /// The first line of a recording, without the end of line.
    pub fn header(service: &str, live: PoolName) -> String {
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            service: service.into(),
            live: live.to_string(),
        };
        serde_json::to_string(&header).unwrap_or_default()
    }

    /// All of it as text.
    pub fn to_text(&self) -> String {
        let mut text = Self::header(&self.service, self.live) + "\n";
        for window in &self.windows {
            text += &window.line();
            text.push('\n');
        }
        text
    }

    /// Reads one. Nothing is taken of a text with a fault.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        let fault = |line, text: String| RecordingError { line, text };
        let (service, live) = match lines.next() {
            Some((line, text)) => header(text).map_err(|text| fault(line, text))?,
            None => return Err(fault(1, "the recording is empty".into())),
        };
        let mut windows: Vec<Recorded> = Vec::new();
        for (line, text) in lines {
            let window: Recorded =
                serde_json::from_str(text).map_err(|error| fault(line, unreadable(&error)))?;
            if let Some(last) = windows.last() {
                let text = if window.at_ms <= last.at_ms {
                    format!("at_ms {} is not after {}", window.at_ms, last.at_ms)
                } else if window.step < last.step {
                    format!("step {} comes after step {}", window.step, last.step)
                } else {
                    String::new()
                };
                if !text.is_empty() {
                    let text = format!("{text}: windows stand in the order of time");
                    return Err(fault(line, text));
                }
            }
            windows.push(window);
        }
        Ok(Self {
            service,
            live,
            windows,
        })
    }
}

fn unreadable(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "the line is cut off: take it out to read what is before it".into();
    }
    format!("no window of a recording: {error}")
}

fn header(text: &str) -> Result<(String, PoolName), String> {
    let wanted = Recording::header("web", PoolName::Blue);
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|_| format!("no recording: its first line is as {wanted}"))?;
    if value["format"] != FORMAT {
        return Err(format!("no recording: its first line is as {wanted}"));
    }
    if value["version"] != VERSION {
        return Err(format!(
            "this is version {} of the format: this program reads version {VERSION}",
            value["version"]
        ));
    }
    let header: Header = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let live = header
        .live
        .parse()
        .map_err(|error| format!("live: {error}"))?;
    Ok((header.service, live))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        let pool = |attempts| PoolSignals {
            attempts,
            ..PoolSignals::default()
        };
        let windows = (1..4).map(|i| Recorded {
            at_ms: i * 1_000,
            step: i as u32 / 2,
            blue: pool(100),
            green: pool(i),
        });
        Recording {
            service: "web".into(),
            live: PoolName::Green,
            windows: windows.collect(),
        }
    }

    #[test]
    fn a_recording_is_read_as_it_was_written() {
        let text = recording().to_text();
        assert_eq!(Recording::parse(&text), Ok(recording()));
        let window = recording().windows[0].window(PoolName::Green);
        assert_eq!((window.live.attempts, window.candidate.attempts), (1, 100));
    }

    #[test]
    fn a_bad_recording_is_refused_with_its_line() {
        let good = recording().to_text();
        let with = |line: usize, text: &str| {
            let mut lines: Vec<&str> = good.lines().collect();
            lines[line] = text;
            lines.join("\n")
        };
        let second = good.lines().nth(1).unwrap();
        for (text, line, part) in [
            (String::new(), 1, "is empty"),
            ("{}".into(), 1, "its first line is as"),
            ("x".into(), 1, "its first line is as"),
            (
                good.replacen("\"version\":1", "\"version\":2", 1),
                1,
                "reads version 1",
            ),
            (good.replacen("\"green\"", "\"red\"", 1), 1, "live: "),
            (with(2, "{}"), 3, "missing field"),
            (with(2, &second[..40]), 3, "is cut off"),
            (with(2, second), 3, "at_ms 1000 is not after 1000"),
            (
                with(1, &second.replace("\"step\":0", "\"step\":9")),
                3,
                "step 1 comes after step 9",
            ),
            (
                with(1, &second.replace("\"refused\"", "\"refusd\"")),
                2,
                "unknown field `refusd`",
            ),
            (with(2, ""), 3, "is cut off"),
        ] {
            let error = Recording::parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.text.contains(part), "{part}: {error}");
        }
    }
}
