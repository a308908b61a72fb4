//! Values of a gate's keys: words, percentages, numbers, times, URLs.

use std::time::Duration;

use super::{
    Number, Ratio,
    read::MAX_TEXT,
    words::{Word, show_time},
};
use crate::model::{
    duration,
    file_table::{Table, place},
    tree::{Fault, Value},
};

impl Table<'_> {
    pub(super) fn word<T: Word>(&self, key: &str) -> Result<Option<T>, Fault> {
        self.string(key)?
            .map(|(text, at)| {
                T::read(text).map_err(|text| Fault::new(at, format!("{key}: {text}")))
            })
            .transpose()
    }

    /// A percentage between two bounds in millionths.
    pub(super) fn ratio(&self, key: &str, low: u32, high: u32) -> Result<Option<Ratio>, Fault> {
        let Some(ratio) = self.parse::<Ratio>(key)? else {
            return Ok(None);
        };
        if !(low..=high).contains(&ratio.ppm) {
            let (low, high) = (Ratio { ppm: low }, Ratio { ppm: high });
            let at = self.find(key).map_or(self.at, |entry| entry.node.at);
            let text = format!("{key} = \"{ratio}\" is out of range: write {low} to {high}");
            return Err(Fault::new(at, text));
        }
        Ok(Some(ratio))
    }

    pub(super) fn number(&self, key: &str, low: f64, high: f64) -> Result<Option<Number>, Fault> {
        let Some(entry) = self.find(key) else {
            return Ok(None);
        };
        let number = match &entry.node.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            other => {
                let text = format!("{key} is {}: write a number, without quotes", other.kind());
                return Err(Fault::new(entry.node.at, text));
            }
        };
        match Number::new(number) {
            Some(it) if (low..=high).contains(&number) => Ok(Some(it)),
            _ => Err(Fault::new(
                entry.node.at,
                format!("{key} = {number} is out of range: write {low} to {high}"),
            )),
        }
    }

    /// A duration; below a millisecond in `us`.
    pub(super) fn time(
        &self,
        key: &str,
        low: Duration,
        high: Duration,
    ) -> Result<Option<Duration>, Fault> {
        let Some((text, at)) = self.string(key)? else {
            return Ok(None);
        };
        let micros = text.strip_suffix("us").and_then(|n| n.parse::<u32>().ok());
        let time = match micros {
            Some(us) => Duration::from_micros(u64::from(us)),
            None => duration::parse(text).map_err(|e| place(at, format_args!("{key}: {e}")))?,
        };
        if !(low..=high).contains(&time) {
            let (low, high) = (show_time(low), show_time(high));
            let text = format!("{key} = {text:?} is out of range: write {low} to {high}");
            return Err(Fault::new(at, text));
        }
        Ok(Some(time))
    }

    pub(super) fn need_text(&self, key: &str, meaning: &str) -> Result<String, Fault> {
        let (text, at) = self.need(key, meaning)?;
        if text.trim().is_empty() || text.len() > MAX_TEXT {
            let text = format!("{key} has {} bytes: write 1 to {MAX_TEXT}", text.len());
            return Err(Fault::new(at, text));
        }
        Ok(text.to_owned())
    }

    pub(super) fn url(&self) -> Result<String, Fault> {
        let url = self.need_text(
            "url",
            "where it is asked, as url = \"http://127.0.0.1:9090\"",
        )?;
        let at = self.find("url").map_or(self.at, |entry| entry.node.at);
        match super::host_of(&url) {
            Ok(_) => Ok(url),
            Err(error) => Err(place(at, error)),
        }
    }
}
