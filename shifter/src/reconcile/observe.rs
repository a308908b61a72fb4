//! What is observed: shares over a window, and backends that do not reply.

use std::collections::{BTreeMap, HashMap, VecDeque};

use shifter_common::abi::{BackendCounters, PoolCounters};

use super::{
    controller::Observed,
    entry::Entry,
    reconciler::{Reconciler, lock},
};
use crate::{
    datapath::{BackendId, ServiceId},
    model::{Affinity, wilson},
};

/// The window that shares are observed over.
pub const WINDOW_NS: u64 = 60 * NS;
const NS: u64 = 1_000_000_000;
/// Services and backends looked at in one tick; with more they take turns, so
/// that a tick stays cheap.
const PER_TICK: usize = 1_024;
/// A backend is silent when packets went out for this long without a reply…
const SILENT_NS: u64 = 3 * NS;
/// …and there were at least so many.
const SILENT_PACKETS: u64 = 3;
/// Packets this long ago say nothing about now.
const SILENT_UNTIL_NS: u64 = 60 * NS;

/// New clients `(green, total)` by service.
pub type NewClients = BTreeMap<ServiceId, (u64, u64)>;

/// Samples of counters.
#[derive(Default)]
pub struct Observer {
    services: HashMap<ServiceId, VecDeque<Sample>>,
    backends: HashMap<BackendId, Replies>,
    turn_services: usize,
    turn_backends: usize,
}

#[derive(Clone, Copy)]
struct Sample {
    at_ns: u64,
    counters: [PoolCounters; 2],
}

/// Whether a backend answers.
#[derive(Clone, Copy, Default, Debug)]
struct Replies {
    forward_packets: u64,
    reply_packets: u64,
    /// `forward_packets` when the last reply was seen.
    answered: u64,
    /// When the first packet after it was seen to have gone; 0: none has.
    unanswered_since_ns: u64,
    last_forward_ns: u64,
    seen: bool,
    warned: bool,
}

impl Replies {
    fn note(&mut self, now_ns: u64, counters: &BackendCounters) {
        let replied = counters.reply_packets != self.reply_packets;
        let sent = counters.forward_packets != self.forward_packets;
        if !self.seen || replied || counters.forward_packets < self.answered {
            self.answered = counters.forward_packets;
            self.unanswered_since_ns = 0;
            self.warned = false;
        } else if sent && self.unanswered_since_ns == 0 {
            self.unanswered_since_ns = now_ns;
        }
        if sent {
            self.last_forward_ns = now_ns;
        }
        self.seen = true;
        self.forward_packets = counters.forward_packets;
        self.reply_packets = counters.reply_packets;
    }

    fn warning(&self, now_ns: u64) -> Option<String> {
        let since = self.unanswered_since_ns;
        let packets = self.forward_packets - self.answered;
        let silent = since != 0
            && packets >= SILENT_PACKETS
            && now_ns.saturating_sub(since) >= SILENT_NS
            && now_ns.saturating_sub(self.last_forward_ns) < SILENT_UNTIL_NS;
        silent.then(|| {
            format!(
                "{packets} packets were sent and no reply was seen through this host in the last {}s: its route to the clients must lead here",
                (now_ns - since) / NS
            )
        })
    }
}

impl Reconciler {
    /// Samples the counters; the agent calls it once a second.
    pub fn tick_observed(&self) {
        let (mut services, mut backends, names) = {
            let core = lock(&self.core);
            let services: Vec<ServiceId> = core.services.values().map(|e| e.id).collect();
            let backends = core.backends.ids();
            let names: HashMap<BackendId, std::net::SocketAddr> = backends
                .iter()
                .filter_map(|id| Some((*id, core.backends.get(*id)?.addr)))
                .collect();
            (services, backends, names)
        };
        {
            let mut observer = lock(&self.observer);
            services = take_turn(services, &mut observer.turn_services);
            backends.sort_unstable();
            backends = take_turn(backends, &mut observer.turn_backends);
            observer.backends.retain(|id, _| names.contains_key(id));
        }
        let now_ns = self.clock.monotonic_ns();
        for id in services {
            if let Ok(counters) = self.datapath.pool_counters(id) {
                lock(&self.observer).sample(id, now_ns, counters);
            }
        }
        for id in backends {
            let Ok(counters) = self.datapath.backend_counters(id) else {
                continue;
            };
            let mut observer = lock(&self.observer);
            let replies = observer.backends.entry(id).or_default();
            replies.note(now_ns, &counters);
            if let Some(warning) = replies.warning(now_ns)
                && !std::mem::replace(&mut replies.warned, true)
                && let Some(addr) = names.get(&id)
            {
                tracing::warn!(backend = %addr, "{warning}");
            }
        }
    }

    /// The window begins anew: what was chosen under another split says
    /// nothing about this one.
    pub(super) fn restart_window(&self, id: ServiceId, at_ns: u64) {
        let Ok(counters) = self.datapath.pool_counters(id) else {
            return;
        };
        let sample = Sample { at_ns, counters };
        lock(&self.observer)
            .services
            .insert(id, VecDeque::from([sample]));
    }

    pub(super) fn silence(&self, id: BackendId) -> Option<String> {
        let now_ns = self.clock.monotonic_ns();
        lock(&self.observer).backends.get(&id)?.warning(now_ns)
    }

    /// New clients of the services that choose by client, in one pass over the
    /// table; no pass where there is none.
    pub(super) fn new_clients<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) -> NewClients {
        let now_ns = self.clock.monotonic_ns();
        let windows: BTreeMap<ServiceId, u32> = {
            let observer = lock(&self.observer);
            entries
                .into_iter()
                .filter(|entry| matches!(entry.spec.affinity, Affinity::Client(_)))
                .filter_map(|entry| {
                    let first = observer.first(entry.id, now_ns)?;
                    Some((entry.id, window_s(now_ns, &first)))
                })
                .collect()
        };
        if windows.is_empty() {
            return NewClients::new();
        }
        self.datapath.new_clients(&windows)
    }

    /// Observed share now, from the counters read just before.
    pub(super) fn observed(
        &self,
        entry: &Entry,
        counters: &[PoolCounters; 2],
        clients: &NewClients,
    ) -> Observed {
        let now_ns = self.clock.monotonic_ns();
        let Some(first) = lock(&self.observer).first(entry.id, now_ns) else {
            return Observed::default();
        };
        let window_s = window_s(now_ns, &first);
        let grown = |field: fn(&PoolCounters) -> u64| {
            [0, 1].map(|pool| field(&counters[pool]).saturating_sub(field(&first.counters[pool])))
        };
        let (green, total) = match entry.spec.affinity {
            Affinity::Flow => {
                let [blue, green] = grown(|c| c.new_flows);
                (green, blue + green)
            }
            Affinity::Client(_) => clients.get(&entry.id).copied().unwrap_or_default(),
        };
        Observed {
            window_s,
            green,
            total,
            interval: wilson::interval(green, total),
            adopted: grown(|c| c.adopted_flows).iter().sum(),
            unpinned: grown(|c| c.unpinned_flows).iter().sum(),
            cohort: grown(|c| c.cohort_flows).iter().sum(),
        }
    }

    /// Whether fragments reached the VIP within the window.
    pub(super) fn fragments(&self, entry: &Entry, counters: &[PoolCounters; 2]) -> u64 {
        let now_ns = self.clock.monotonic_ns();
        let first = lock(&self.observer).first(entry.id, now_ns);
        let sum = |c: &[PoolCounters; 2]| c[0].fragments + c[1].fragments;
        first.map_or(0, |first| {
            sum(counters).saturating_sub(sum(&first.counters))
        })
    }
}

impl Observer {
    fn sample(&mut self, id: ServiceId, at_ns: u64, counters: [PoolCounters; 2]) {
        let samples = self.services.entry(id).or_default();
        samples.push_back(Sample { at_ns, counters });
        // The oldest one kept is the newest that is a whole window old.
        while samples
            .get(1)
            .is_some_and(|second| second.at_ns + WINDOW_NS <= at_ns)
        {
            samples.pop_front();
        }
    }

    fn first(&self, id: ServiceId, now_ns: u64) -> Option<Sample> {
        let samples = self.services.get(&id)?;
        let in_window = |s: &&Sample| s.at_ns + WINDOW_NS >= now_ns;
        samples.iter().find(in_window).or(samples.back()).copied()
    }

    pub(super) fn forget(&mut self, id: ServiceId) {
        self.services.remove(&id);
    }
}

/// Seconds since a sample, at least one.
fn window_s(now_ns: u64, first: &Sample) -> u32 {
    now_ns.saturating_sub(first.at_ns).div_ceil(NS).max(1) as u32
}

/// At most [`PER_TICK`] of `all`, beginning where the last turn ended.
fn take_turn<T: Copy>(all: Vec<T>, turn: &mut usize) -> Vec<T> {
    if all.len() <= PER_TICK {
        return all;
    }
    let begin = *turn % all.len();
    *turn = begin + PER_TICK;
    all.iter()
        .cycle()
        .skip(begin)
        .take(PER_TICK)
        .copied()
        .collect()
}
