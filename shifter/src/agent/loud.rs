//! What is loud in `status` goes to the log too: once when it begins, and once
//! when it ends.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::{datapath::VerdictCount, telemetry::is_drop};

/// What was not seen for so long has ended.
const QUIET: Duration = Duration::from_secs(10);

/// Units that stand right behind a number; the longer ones first.
const UNITS: [&str; 10] = ["%", "ms", "µs", "ns", "KiB", "MiB", "GiB", "s", "m", "h"];

/// Conditions that stand, and what was counted.
#[derive(Default)]
pub struct Loud {
    drops: HashMap<(&'static str, u32), Drops>,
    warnings: BTreeMap<String, Standing>,
}

struct Drops {
    packets: u64,
    /// Packets before the first drop, and the time of the last one.
    standing: Option<(u64, Instant)>,
}

struct Standing {
    text: String,
    seen: Instant,
}

/// One line of the log.
#[derive(PartialEq, Eq, Debug)]
enum Said {
    Begins(String),
    Ends(String),
}

impl Loud {
    /// Takes in the counters of verdicts; once a second.
    pub fn note_drops(&mut self, verdicts: &[VerdictCount]) {
        say(self.drops(Instant::now(), verdicts));
    }

    /// Takes in the warnings that `status` shows.
    pub fn note_warnings(&mut self, warnings: Vec<String>) {
        say(self.warnings(Instant::now(), warnings));
    }

    fn drops(&mut self, now: Instant, verdicts: &[VerdictCount]) -> Vec<Said> {
        let mut said = Vec::new();
        for count in verdicts.iter().filter(|count| is_drop(count.number)) {
            // What was dropped before this agent's start is no news.
            let drops = self
                .drops
                .entry((count.hook, count.number))
                .or_insert(Drops {
                    packets: count.packets,
                    standing: None,
                });
            let (hook, reason) = (count.hook, count.reason);
            match drops.standing {
                None if count.packets > drops.packets => {
                    let grown = count.packets - drops.packets;
                    said.push(Said::Begins(format!(
                        "packets are dropped at {hook}: {reason} ({grown} in the last second, {} so far)",
                        count.packets
                    )));
                    drops.standing = Some((drops.packets, now));
                }
                Some((first, _)) if count.packets > drops.packets => {
                    drops.standing = Some((first, now));
                }
                Some((first, last)) if now.duration_since(last) >= QUIET => {
                    said.push(Said::Ends(format!(
                        "no packet is dropped at {hook} any more: {reason} ({} were, {} so far)",
                        count.packets - first,
                        count.packets
                    )));
                    drops.standing = None;
                }
                _ => {}
            }
            drops.packets = count.packets;
        }
        said
    }

    fn warnings(&mut self, now: Instant, warnings: Vec<String>) -> Vec<Said> {
        let mut said = Vec::new();
        for text in warnings {
            // The same condition with other numbers is no news.
            let before = self.warnings.insert(
                condition(&text),
                Standing {
                    text: text.clone(),
                    seen: now,
                },
            );
            if before.is_none() {
                said.push(Said::Begins(text));
            }
        }
        self.warnings.retain(|_, standing| {
            let stands = now.duration_since(standing.seen) < QUIET;
            if !stands {
                said.push(Said::Ends(std::mem::take(&mut standing.text)));
            }
            stands
        });
        said
    }
}

/// What a warning is about, without its numbers. A word counts as a number if
/// it is one wholly, a unit behind it or not: `eth0`, `web1` and `10.0.0.1` are
/// names. Only a time may be of several (`1h02m`). What is counted is one word,
/// be it 1 flow or 2 flows.
fn condition(text: &str) -> String {
    let words = text.split_inclusive(|c: char| c.is_whitespace() || "()".contains(c));
    let mut is_counted = false;
    let mut left = String::new();
    for word in words {
        if is_number(word) {
            is_counted = true;
            continue;
        }
        let word = word.trim_end();
        left += if is_counted {
            word.trim_end_matches('s')
        } else {
            word
        };
        left.push(' ');
        is_counted = false;
    }
    left
}

fn is_number(word: &str) -> bool {
    let is_mark = |c: char| c.is_whitespace() || "(),;:.".contains(c);
    let word = word.trim_matches(is_mark);
    let mut rest = word;
    while let Some(after) = rest.strip_prefix(|c: char| c.is_ascii_digit()) {
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ',');
        // One dot: a decimal. More of them: an address.
        let after = match after.strip_prefix('.') {
            Some(decimals) => decimals.trim_start_matches(|c: char| c.is_ascii_digit()),
            None => after,
        };
        let unit = UNITS.iter().find_map(|unit| after.strip_prefix(unit));
        rest = unit.unwrap_or(after);
        if unit.is_none() {
            break;
        }
    }
    !word.is_empty() && rest.is_empty()
}

fn say(lines: Vec<Said>) {
    for line in lines {
        match line {
            Said::Begins(text) => tracing::warn!("loud: {text}"),
            Said::Ends(text) => tracing::info!("over: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use shifter_common::abi::stats::Verdict;

    use super::*;

    fn full(packets: u64) -> [VerdictCount; 1] {
        [VerdictCount {
            hook: "tc",
            number: Verdict::TableFull as u32,
            reason: "table_full",
            packets,
        }]
    }

    #[test]
    fn drops_are_said_once_when_they_begin_and_once_when_they_end() {
        let mut loud = Loud::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(loud.drops(at(0), &full(7)), [], "from before the start");
        let begins = "packets are dropped at tc: table_full (3 in the last second, 10 so far)";
        assert_eq!(
            loud.drops(at(1), &full(10)),
            [Said::Begins(begins.to_owned())]
        );
        assert_eq!(loud.drops(at(2), &full(500)), []);
        assert_eq!(loud.drops(at(9), &full(500)), []);
        let ends = "no packet is dropped at tc any more: table_full (493 were, 500 so far)";
        assert_eq!(
            loud.drops(at(12), &full(500)),
            [Said::Ends(ends.to_owned())]
        );
        assert_eq!(loud.drops(at(13), &full(500)), []);
        assert_eq!(loud.drops(at(14), &full(501)).len(), 1, "it begins anew");
    }

    #[test]
    fn a_warning_that_counts_on_is_said_once() {
        let mut loud = Loud::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let text = |n: u32| vec![format!("the table holds {n} flows")];
        assert_eq!(
            loud.warnings(at(0), text(90)),
            [Said::Begins(text(90)[0].clone())]
        );
        assert_eq!(loud.warnings(at(5), text(120)), []);
        assert_eq!(loud.warnings(at(10), Vec::new()), []);
        assert_eq!(
            loud.warnings(at(15), Vec::new()),
            [Said::Ends(text(120)[0].clone())]
        );
        assert_eq!(loud.warnings(at(20), Vec::new()), []);
    }

    #[test]
    fn names_that_differ_in_a_digit_are_warned_of_apart() {
        let mut loud = Loud::default();
        let start = Instant::now();
        let text = |n: u32| format!("interface eth{n} is not there: seen {n} s ago");
        let both = |a: u32, b: u32| vec![text(a), text(b)];
        assert_eq!(loud.warnings(start, both(0, 1)).len(), 2);
        assert_eq!(loud.warnings(start, both(0, 1)), []);
        let later = start + QUIET;
        assert_eq!(
            loud.warnings(later, vec![text(1)]),
            [Said::Ends(text(0))],
            "each ends by itself"
        );
        let names = |n: u32| {
            vec![
                format!("web{n}: no backend"),
                format!("web: 10.0.0.{n}:8443 answers nothing"),
                format!("web: [fd00::{n}]:8443 answers nothing"),
            ]
        };
        assert_eq!(loud.warnings(later, names(1)).len(), 3);
        assert_eq!(loud.warnings(later, names(2)).len(), 3);
    }

    #[test]
    fn a_condition_is_what_is_left_without_numbers() {
        for (a, b) in [
            ("failed 3 times (error 5)", "failed 12 times (error 16)"),
            ("in the last 10s: mend it", "in the last 3600s: mend it"),
            ("holds 1,048,576 flows", "holds 7 flows"),
            ("failed 1 time (x)", "failed 2 times (x)"),
            ("for 1h02m, 5.5%", "for 59m, 0.05%"),
        ] {
            assert_eq!(condition(a), condition(b));
        }
        assert_ne!(condition("interface web"), condition("interface webs"));
        assert_ne!(condition("tag 0a1b"), condition("tag 0a1c"));
        assert_ne!(condition("from 10.0.0.1"), condition("from 10.0.0.2"));
        assert_ne!(condition("at 10.0.0.1:80"), condition("at 10.0.0.1:81"));
    }
}
