//! Flows that shall be ended: found and looked at again, never written to.

use std::collections::BTreeSet;

use shifter_common::abi::{FlowEntry, flow::*};

use super::{
    BackendId, CutFilter, CutFlow,
    flows::{FlowTable, client_of},
};
use crate::model::{PoolName, Protocol};

impl FlowTable {
    /// Flows that match and can be ended, at most `limit`, and the number of all that match.
    pub fn to_cut(&self, filter: &CutFilter, limit: usize) -> (Vec<CutFlow>, u64) {
        let (mut found, mut matched) = (Vec::new(), 0);
        self.for_each_place(|set, place, entry| {
            if matches(entry, filter) {
                matched += 1;
                if found.len() < limit && is_cut_in(control_state(entry.control)) {
                    found.push(cut_flow((set, place as u8), entry));
                }
            }
        });
        (found, matched)
    }

    /// The same flow as it is now; `None`: it has ended.
    pub fn look_again(&self, flow: &CutFlow) -> Option<CutFlow> {
        let entry = self.read(flow.place.0, usize::from(flow.place.1))?;
        let now = cut_flow(flow.place, &entry);
        (now.id() == flow.id() && is_cut_in(control_state(entry.control))).then_some(now)
    }
}

/// Half-open flows end or become established, and closing ones are ending.
fn is_cut_in(state: u8) -> bool {
    is_live(state) && !is_closing(state) && state != STATE_HALF_OPEN
}

/// Half-open ones count: the work is not done before they are.
fn counts_in(state: u8) -> bool {
    is_live(state) && !is_closing(state)
}

fn matches(entry: &FlowEntry, filter: &CutFilter) -> bool {
    let in_pool = |pool: PoolName| (pool == PoolName::Green) == (entry.flags & FLOW_GREEN != 0);
    let on = |backends: &BTreeSet<BackendId>| backends.contains(&entry.backend);
    counts_in(control_state(entry.control))
        && entry.service == filter.service
        && filter.pool.is_none_or(in_pool)
        && filter.backends.as_ref().is_none_or(on)
        && filter.before.is_none_or(|before| entry.generation < before)
}

fn cut_flow(place: (u32, u8), entry: &FlowEntry) -> CutFlow {
    let is_udp = entry.flags & FLOW_UDP != 0;
    CutFlow {
        place,
        control: entry.control,
        backend: entry.backend,
        client: client_of(entry),
        protocol: if is_udp { Protocol::Udp } else { Protocol::Tcp },
        client_acked: entry.seq_a,
        backend_acked: entry.seq_b,
    }
}

#[cfg(test)]
mod tests {
    use shifter_common::abi::flow::control_word;

    use super::*;

    fn entry(state: u8, flags: u16, generation: u32) -> FlowEntry {
        // SAFETY: all zeros are a valid entry.
        let mut entry: FlowEntry = unsafe { std::mem::zeroed() };
        entry.control = control_word(state, 7, 1, 0);
        (entry.flags, entry.generation) = (flags, generation);
        (entry.service, entry.backend) = (3, 9);
        entry
    }

    #[test]
    fn what_began_since_or_is_elsewhere_is_left_alone() {
        let filter = CutFilter {
            service: 3,
            pool: Some(PoolName::Green),
            backends: Some(BTreeSet::from([9])),
            before: Some(5),
        };
        let green = entry(STATE_ESTABLISHED, FLOW_GREEN, 4);
        assert!(matches(&green, &filter));
        assert!(!matches(&entry(STATE_ESTABLISHED, FLOW_GREEN, 5), &filter));
        assert!(!matches(&entry(STATE_ESTABLISHED, 0, 4), &filter));
        assert!(!matches(
            &FlowEntry {
                service: 4,
                ..green
            },
            &filter
        ));
        assert!(!matches(
            &FlowEntry {
                backend: 8,
                ..green
            },
            &filter
        ));
        for state in [STATE_FREE, STATE_CLAIMING, STATE_CLOSING, STATE_RESET] {
            assert!(!matches(&entry(state, FLOW_GREEN, 4), &filter), "{state}");
        }
        for state in [STATE_ADOPTED, STATE_UDP_ANSWERED, STATE_UDP_UNANSWERED] {
            assert!(matches(&entry(state, FLOW_GREEN, 4), &filter), "{state}");
            assert!(is_cut_in(state), "{state}");
        }
        assert!(!is_cut_in(STATE_HALF_OPEN), "its end is near anyway");
    }
}
