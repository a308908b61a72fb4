//! Flows that give way to new ones: loud while it goes on.

use std::time::{Duration, Instant};

/// What was not seen for so long has ended.
const QUIET: Duration = Duration::from_secs(10);

/// The count so far, and when it began to grow.
#[derive(Default, Debug)]
pub(super) struct Shed {
    seen: Option<u64>,
    /// The count before it grew, and when it grew last.
    growing: Option<(u64, Instant)>,
}

impl Shed {
    /// Takes in how many flows gave way so far; how many of them since that
    /// began, while it goes on. What was before this agent's start is no news.
    pub fn note(&mut self, total: u64, now: Instant) -> Option<u64> {
        let before = self.seen.replace(total).unwrap_or(total);
        match self.growing {
            _ if total > before => {
                let first = self.growing.map_or(before, |(first, _)| first);
                self.growing = Some((first, now));
            }
            Some((_, last)) if now.duration_since(last) >= QUIET => self.growing = None,
            _ => {}
        }
        self.growing.map(|(first, _)| total - first)
    }
}

/// What `status` and the log say of it.
pub(super) fn warning(lately: u64, total: u64) -> String {
    format!(
        "the flow table is under pressure: {lately} flows gave way to new ones ({total} so far), no proven flow that is in use: a flood, or flow_capacity is too small for what comes; `shifter_flow_table_evicted_total` counts them by state"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_loud_while_flows_give_way_and_silent_afterwards() {
        let mut shed = Shed::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(shed.note(50, at(0)), None, "from before the start");
        assert_eq!(shed.note(50, at(1)), None);
        assert_eq!(shed.note(80, at(2)), Some(30));
        assert_eq!(shed.note(90, at(9)), Some(40));
        assert_eq!(shed.note(90, at(18)), Some(40));
        assert_eq!(shed.note(90, at(19)), None);
        assert_eq!(shed.note(91, at(20)), Some(1), "it begins anew");
    }
}
