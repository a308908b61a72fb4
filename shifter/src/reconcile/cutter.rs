//! Ends flows, as many a second as each cut may.
//!
//! The flow table is only read: what ends a flow are RSTs that its two ends take, and
//! the datapath does with these what it does with any. So every reply is
//! translated to the last, and an agent that dies leaves nothing half done. Where
//! the backend's socket is on this host, the kernel ends that, and tells the
//! client. Elsewhere each end gets a RST in the other's name. An end that takes
//! none (its numbers have moved on) is tried again. A UDP flow is released, as the
//! sweep does it; its client's next packet is chosen anew.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::SocketAddr,
    time::Instant,
};

use super::{
    cut::Job,
    reconciler::{Reconciler, lock},
};
use crate::{
    datapath::{CutFilter, CutFlow, IdleFlow, Placement},
    model::{CutRate, Protocol},
    store::CutKey,
};

/// Flows taken from the table in one look.
const LOOKED_AT: usize = 1 << 16;
/// Between two looks, in ns, at least; or 20 times what a look took.
const PAUSE_NS: u64 = 1_000_000_000;
const REST: u64 = 20;
/// Where backends are down and carry nothing, pauses double up to this.
const LONGEST_PAUSE_NS: u64 = 30_000_000_000;
/// Flows that wait for their turn are those of this much time, in s, or of half as much
/// again as the pause until the next look.
const QUEUED_S: f64 = 2.0;
/// How many flows were ended is stored this often.
const STORED_NS: u64 = 5_000_000_000;
/// A cut that could not work for a while does not make up for more than this, in s.
const CATCH_UP_S: f64 = 0.5;
/// A flow that goes on is tried again after 1 s, then 2, up to 64.
const MOST_DOUBLED: u32 = 6;

type FlowId = ((u32, u8), u16, u32, SocketAddr);

/// Each cut's own course.
#[derive(Default)]
pub struct Cutting {
    runs: BTreeMap<CutKey, Run>,
}

#[derive(Default)]
struct Run {
    /// What the flows in the queue were found by.
    filter: Option<CutFilter>,
    queue: VecDeque<CutFlow>,
    tried: HashMap<FlowId, Tried>,
    allowed: f64,
    at_ns: Option<u64>,
    look_ns: u64,
    pause_ns: u64,
    stored_ns: u64,
    said: bool,
}

/// A flow that goes on although it was to end.
#[derive(Default)]
struct Tried {
    times: u32,
    /// When it is tried again.
    due_ns: u64,
    is_counted: bool,
}

impl Run {
    fn allow(&mut self, now_ns: u64, rate: CutRate) {
        let before = self.at_ns.replace(now_ns).unwrap_or(now_ns);
        let rate = f64::from(rate.get());
        let more = now_ns.saturating_sub(before) as f64 / 1e9 * rate;
        self.allowed = (self.allowed + more).min((rate * CATCH_UP_S).max(1.0));
    }

    /// True where it counts as ended from now on.
    fn note(&mut self, flow: &CutFlow, now_ns: u64, is_ended: bool) -> bool {
        let tried = self.tried.entry(flow.id()).or_default();
        tried.due_ns = now_ns + (1_000_000_000 << tried.times.min(MOST_DOUBLED));
        tried.times += 1;
        is_ended && !std::mem::replace(&mut tried.is_counted, true)
    }

    /// Flows found by another filter may be in use again: whose backend was undrained,
    /// say, or is up.
    fn follow(&mut self, filter: &CutFilter) {
        if self.filter.as_ref() != Some(filter) {
            self.filter = Some(filter.clone());
            self.queue.clear();
            (self.look_ns, self.pause_ns) = (0, PAUSE_NS);
        }
    }
}

impl Reconciler {
    /// Does what is allowed by now; the agent calls it some times a second. One
    /// caller at a time.
    pub fn cut_flows(&self) {
        let jobs = self.cut_jobs();
        // No request takes this lock.
        let mut cutting = lock(&self.cutting);
        cutting
            .runs
            .retain(|key, _| jobs.iter().any(|job| job.key == *key));
        for job in &jobs {
            let run = cutting.runs.entry(job.key.clone()).or_default();
            self.run(job, run);
        }
    }

    fn run(&self, job: &Job, run: &mut Run) {
        let now_ns = self.clock.monotonic_ns();
        run.follow(&job.filter);
        run.allow(now_ns, job.rate);
        if run.queue.is_empty() && now_ns >= run.look_ns {
            self.look_for_flows(job, run, now_ns);
        }
        let mut turn = Vec::new();
        while run.allowed >= 1.0
            && let Some(flow) = run.queue.pop_front()
        {
            // It may have ended, or moved on in its numbers.
            if let Some(flow) = self.datapath.look_again(&flow) {
                run.allowed -= 1.0;
                turn.push(flow);
            }
        }
        if !turn.is_empty() {
            self.end_flows(job, run, &turn, now_ns);
        }
    }

    fn look_for_flows(&self, job: &Job, run: &mut Run, now_ns: u64) {
        let began = Instant::now();
        let (flows, left) = self.datapath.flows_to_cut(&job.filter, LOOKED_AT);
        let took_ns = began.elapsed().as_nanos() as u64;
        let pause_ns = PAUSE_NS.max(took_ns * REST);
        run.look_ns = now_ns + pause_ns;
        lock(&self.cut_figures).left.insert(job.key.clone(), left);
        if left == 0 {
            run.tried.clear();
            match job.asked {
                Some(_) => self.finish_done(job),
                None => {
                    run.pause_ns = (run.pause_ns * 2).min(LONGEST_PAUSE_NS).max(pause_ns);
                    run.look_ns = now_ns + run.pause_ns;
                }
            }
            return;
        }
        run.pause_ns = pause_ns;
        if flows.len() < LOOKED_AT {
            let there: std::collections::HashSet<FlowId> = flows.iter().map(CutFlow::id).collect();
            run.tried.retain(|id, _| there.contains(id));
        }
        let is_due = |flow: &CutFlow| {
            let tried = run.tried.get(&flow.id());
            tried.is_none_or(|tried| tried.due_ns <= now_ns)
        };
        let queued_s = QUEUED_S.max(pause_ns as f64 / 1e9 * 1.5);
        let most = (f64::from(job.rate.get()) * queued_s).ceil() as usize;
        let mut due: Vec<CutFlow> = flows.into_iter().filter(is_due).collect();
        // One that takes no RST keeps no other from its turn.
        due.sort_by_cached_key(|flow| run.tried.get(&flow.id()).map_or(0, |tried| tried.times));
        run.queue = due.into_iter().take(most).collect();
    }

    /// Unless it was asked for anew meanwhile.
    fn finish_done(&self, job: &Job) {
        let mut core = lock(&self.core);
        if core.cuts.iter().any(|cut| job.is_of(cut)) {
            self.finish_cut(&mut core, &job.key, "none is left");
        }
    }

    fn end_flows(&self, job: &Job, run: &mut Run, turn: &[CutFlow], now_ns: u64) {
        let (tcp, udp): (Vec<CutFlow>, Vec<CutFlow>) =
            turn.iter().partition(|f| f.protocol == Protocol::Tcp);
        let mut ended = 0;
        for flow in &udp {
            let idle = IdleFlow {
                place: flow.place,
                control: flow.control,
                backend: flow.backend,
                client: flow.client,
            };
            let is_released = self.datapath.release(&[idle], None) == 1;
            ended += u64::from(run.note(flow, now_ns, is_released));
        }
        for flow in self.end_here(job, &tcp) {
            ended += u64::from(run.note(&flow.0, now_ns, flow.1.is_ok()));
            if let Err(error) = flow.1 {
                self.say_failed(job, run, &flow.0, &error);
            }
        }
        self.count_ended(job, run, ended, now_ns);
    }

    /// Ends TCP flows: by their sockets on this host, else by RSTs.
    fn end_here(&self, job: &Job, flows: &[CutFlow]) -> Vec<(CutFlow, io::Result<()>)> {
        let mut by_home: BTreeMap<Option<Option<i32>>, Vec<(CutFlow, SocketAddr)>> =
            BTreeMap::new();
        for flow in flows {
            let Some((addr, placement)) = job.homes.get(&flow.backend) else {
                continue;
            };
            let home = match placement {
                Placement::Host => Some(None),
                Placement::Kernel { netns: Some(netns) } => Some(Some(*netns)),
                _ => None,
            };
            by_home.entry(home).or_default().push((*flow, *addr));
        }
        let mut results = Vec::new();
        for (home, flows) in by_home {
            let pairs: Vec<_> = flows
                .iter()
                .map(|(flow, addr)| (*addr, flow.client))
                .collect();
            let ended = match home {
                Some(netns) => self.facts.end_sockets(netns, &pairs).unwrap_or_else(|error| {
                    tracing::debug!(?netns, %error, "sockets could not be ended: RSTs are sent");
                    Vec::new()
                }),
                None => Vec::new(),
            };
            for (place, (flow, addr)) in flows.into_iter().enumerate() {
                let result = match ended.get(place) {
                    Some(true) => Ok(()),
                    _ => self.send_resets(&flow, addr, home != Some(None)),
                };
                results.push((flow, result));
            }
        }
        results
    }

    /// The backend first: what it still sends then is answered by a RST.
    fn send_resets(&self, flow: &CutFlow, backend: SocketAddr, to_both: bool) -> io::Result<()> {
        let (client, acked) = (flow.client, (flow.client_acked, flow.backend_acked));
        let told = match to_both && acked.1 != 0 {
            true => self.facts.send_reset(client, backend, acked.1, acked.0),
            false => Ok(()),
        };
        self.facts.send_reset(backend, client, acked.0, acked.1)?;
        told
    }

    fn say_failed(&self, job: &Job, run: &mut Run, flow: &CutFlow, error: &io::Error) {
        if !std::mem::replace(&mut run.said, true) {
            tracing::warn!(
                service = job.key.service,
                client = %flow.client,
                %error,
                "a flow could not be ended, and is tried again: this needs CAP_NET_ADMIN and a route to both of its ends"
            );
        }
    }

    /// Stored now and then, and without the core's lock: a rollback waits for no figure.
    fn count_ended(&self, job: &Job, run: &mut Run, ended: u64, now_ns: u64) {
        if ended == 0 {
            return;
        }
        {
            let mut figures = lock(&self.cut_figures);
            let of = (job.key.service.clone(), job.key.cause);
            *figures.ended.entry(of).or_default() += ended;
        }
        let (beside, ended) = {
            let mut core = lock(&self.core);
            let core = &mut *core;
            let Some(cut) = core.cuts.iter_mut().find(|cut| job.is_of(cut)) else {
                return;
            };
            cut.ended += ended;
            if now_ns < run.stored_ns {
                return;
            }
            (core.store.beside(), cut.ended)
        };
        run.stored_ns = now_ns + STORED_NS;
        if let Some(Err(error)) = beside.map(|beside| beside.count_cut(&job.key, ended)) {
            tracing::debug!(%error, "how many flows were ended is not stored");
        }
    }
}
