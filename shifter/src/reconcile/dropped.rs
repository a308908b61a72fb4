//! Packets that were dropped lately: loud, while the totals are only shown.

use std::collections::{BTreeMap, VecDeque};

use super::reconciler::{Reconciler, lock};
use crate::{datapath::VerdictCount, telemetry::is_drop};

/// What was dropped within it is loud.
const WINDOW_NS: u64 = 60_000_000_000;

/// Packets by hook and number of verdict.
pub type Drops = BTreeMap<(&'static str, u32), u64>;

/// Counters of dropped packets over the window.
#[derive(Default, Debug)]
pub(super) struct Dropped {
    samples: VecDeque<(u64, Drops)>,
}

impl Dropped {
    /// Takes in the counters; once a second.
    pub fn note(&mut self, now_ns: u64, verdicts: &[VerdictCount]) {
        self.samples.push_back((now_ns, drops(verdicts)));
        // The oldest one kept is the newest that is a whole window old.
        while self
            .samples
            .get(1)
            .is_some_and(|(at_ns, _)| at_ns + WINDOW_NS <= now_ns)
        {
            self.samples.pop_front();
        }
    }

    /// What was dropped within the window, zeros left out. What was before
    /// this agent's start is no news.
    pub fn lately(&self, now_ns: u64, verdicts: &[VerdictCount]) -> Drops {
        let is_recent = |(at_ns, _): &&(u64, Drops)| at_ns + WINDOW_NS >= now_ns;
        let first = self.samples.iter().find(is_recent).or(self.samples.back());
        let Some((_, first)) = first else {
            return Drops::new();
        };
        let mut lately = drops(verdicts);
        lately.retain(|reason, packets| {
            *packets = packets.saturating_sub(first.get(reason).copied().unwrap_or(0));
            *packets > 0
        });
        lately
    }
}

fn drops(verdicts: &[VerdictCount]) -> Drops {
    verdicts
        .iter()
        .filter(|count| is_drop(count.number))
        .map(|count| ((count.hook, count.number), count.packets))
        .collect()
}

impl Reconciler {
    /// Takes in the counters of verdicts; the agent calls it once a second.
    pub fn note_drops(&self, verdicts: &[VerdictCount]) {
        let now_ns = self.clock.monotonic_ns();
        lock(&self.dropped).note(now_ns, verdicts);
    }
}

#[cfg(test)]
mod tests {
    use shifter_common::abi::stats::Verdict;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn counts(full: u64) -> [VerdictCount; 2] {
        let count = |verdict, reason, packets| VerdictCount {
            hook: "tc",
            number: verdict as u32,
            reason,
            packets,
        };
        [
            count(Verdict::NotOurs, "not_ours", full * 10),
            count(Verdict::TableFull, "table_full", full),
        ]
    }

    #[test]
    fn a_drop_is_recent_for_a_minute() {
        let mut dropped = Dropped::default();
        let lately = |dropped: &Dropped, at, full| {
            let lately = dropped.lately(at * SECOND, &counts(full));
            lately.values().copied().collect::<Vec<_>>()
        };
        assert_eq!(lately(&dropped, 0, 7), [0u64; 0], "nothing is known yet");
        for at in 0..200 {
            dropped.note(at * SECOND, &counts(if at < 10 { 7 } else { 12 }));
            let expected: &[u64] = if (10..70).contains(&at) { &[5] } else { &[] };
            assert_eq!(
                lately(&dropped, at, if at < 10 { 7 } else { 12 }),
                expected,
                "after {at} s"
            );
        }
        assert!(
            dropped.samples.len() <= 61,
            "no more is kept than is needed"
        );
    }

    #[test]
    fn what_was_dropped_since_the_last_sample_counts() {
        let mut dropped = Dropped::default();
        dropped.note(0, &counts(7));
        let lately = dropped.lately(SECOND / 2, &counts(9));
        let reason = ("tc", Verdict::TableFull as u32);
        assert_eq!(lately, Drops::from([(reason, 2)]));
    }
}
