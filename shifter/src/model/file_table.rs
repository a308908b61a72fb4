//! A table of a file: its keys are known, its values have the right kind, and a
//! fault names its place.

use std::path::PathBuf;

use super::{
    duration,
    tree::{Entry, Fault, Node, Value},
};

pub(crate) fn place(at: usize, error: impl std::fmt::Display) -> Fault {
    Fault::new(at, error.to_string())
}

/// A table whose keys are all known.
pub(crate) struct Table<'a> {
    pub(crate) at: usize,
    what: &'a str,
    entries: &'a [Entry],
}

impl<'a> Table<'a> {
    /// Refuses what is no table and every key that is not in `known`.
    pub(crate) fn of(node: &'a Node, what: &'a str, known: &[&str]) -> Result<Self, Fault> {
        let Value::Table(entries) = &node.value else {
            let kind = node.value.kind();
            return Err(Fault::new(
                node.at,
                format!("{what} is {kind}: write a table"),
            ));
        };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                return Err(Fault::new(entry.at, unknown(&entry.key, what, known)));
            }
        }
        Ok(Self {
            at: node.at,
            what,
            entries,
        })
    }

    pub(crate) fn find(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A text and its place; `None` if absent.
    pub(crate) fn string(&self, key: &str) -> Result<Option<(&'a str, usize)>, Fault> {
        match self.find(key) {
            None => Ok(None),
            Some(entry) => match &entry.node.value {
                Value::String(text) => Ok(Some((text, entry.node.at))),
                other => Err(Fault::new(
                    entry.node.at,
                    format!("{key} is {}: write it in quotes, as a string", other.kind()),
                )),
            },
        }
    }

    pub(crate) fn need(&self, key: &str, meaning: &str) -> Result<(&'a str, usize), Fault> {
        self.string(key)?.ok_or_else(|| {
            Fault::new(
                self.at,
                format!("{} lacks the key {key}: {meaning}", self.what),
            )
        })
    }

    /// A text read as `T`.
    pub(crate) fn parse<T>(&self, key: &str) -> Result<Option<T>, Fault>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.string(key)?
            .map(|(text, at)| {
                text.parse()
                    .map_err(|e| place(at, format_args!("{key}: {e}")))
            })
            .transpose()
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.find(key) {
            None => Ok(None),
            Some(entry) => match &entry.node.value {
                Value::Bool(value) => Ok(Some(*value)),
                other => Err(Fault::new(
                    entry.node.at,
                    format!("{key} is {}: write true or false", other.kind()),
                )),
            },
        }
    }

    pub(crate) fn integer(&self, key: &str, low: i64, high: i64) -> Result<Option<i64>, Fault> {
        let Some(entry) = self.find(key) else {
            return Ok(None);
        };
        match &entry.node.value {
            Value::Integer(number) if (low..=high).contains(number) => Ok(Some(*number)),
            Value::Integer(number) => Err(Fault::new(
                entry.node.at,
                format!("{key} = {number} is out of range: write {low} to {high}"),
            )),
            other => Err(Fault::new(
                entry.node.at,
                format!(
                    "{key} is {}: write a whole number, {low} to {high}",
                    other.kind()
                ),
            )),
        }
    }

    /// A path from the root.
    pub(crate) fn absolute_path(&self, key: &str) -> Result<Option<PathBuf>, Fault> {
        match self.string(key)? {
            Some((text, at)) if !text.starts_with('/') => Err(Fault::new(
                at,
                format!("{key} = {text:?} is no whole path: write one that begins with '/'"),
            )),
            other => Ok(other.map(|(text, _)| text.into())),
        }
    }

    /// Whole seconds, as a number or as a duration in quotes.
    pub(crate) fn seconds(&self, key: &str, low: u32) -> Result<Option<u32>, Fault> {
        // A year: the coarse ticks of the flow table wrap after two.
        const HIGH: u32 = 31_536_000;
        let Some(entry) = self.find(key) else {
            return Ok(None);
        };
        let number = match &entry.node.value {
            Value::String(text) => {
                let duration = duration::parse(text)
                    .map_err(|e| place(entry.node.at, format_args!("{key}: {e}")))?;
                if duration.subsec_nanos() != 0 {
                    let text =
                        format!("{key} = {text:?} has parts of a second: write whole seconds");
                    return Err(Fault::new(entry.node.at, text));
                }
                duration.as_secs() as i64
            }
            _ => match self.integer(key, i64::from(low), i64::from(HIGH))? {
                Some(number) => number,
                None => return Ok(None),
            },
        };
        if !(i64::from(low)..=i64::from(HIGH)).contains(&number) {
            let text = format!("{key} is out of range: write {low} to {HIGH} seconds");
            return Err(Fault::new(entry.node.at, text));
        }
        Ok(Some(number as u32))
    }
}

fn unknown(key: &str, what: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (distance(key, candidate), candidate))
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= 2.max(candidate.len() / 3) => {
            format!("{what} has no key {key:?}: did you mean {candidate:?}?")
        }
        _ => format!("{what} has no key {key:?}: it has {}", known.join(", ")),
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
