//! What is loud in `status` goes to the log too: once when it begins, and once
//! when it ends.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::{
    datapath::{DatapathError, VerdictCount},
    telemetry::is_drop,
};

/// What was not seen for so long has ended.
const QUIET: Duration = Duration::from_secs(10);

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
    pub fn note_drops(&mut self, verdicts: &Result<Vec<VerdictCount>, DatapathError>) {
        match verdicts {
            Ok(verdicts) => say(self.drops(Instant::now(), verdicts)),
            Err(error) => tracing::debug!(%error, "reading the verdicts failed"),
        }
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
            let key = text.chars().filter(|c| !c.is_ascii_digit()).collect();
            let before = self.warnings.insert(
                key,
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
}
