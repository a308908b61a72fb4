//! An agent in memory with numbers that never vary, for tests of API, command
//! line and metrics.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard},
};

use shifter_common::abi::{BackendCounters, PoolCounters, stats::VERDICTS};
use tokio::sync::watch;

use crate::{
    datapath::{Census, FlowRow, HookStatus, LimitUse, VerdictCount},
    model::{PoolName, Protocol, ServiceSpec, Vip, Weight},
    reconcile::{
        Controller,
        controller::{
            BackendView, Change, ControlError, DeadManView, Explanation, FlowQuery, FlowView,
            InfoView, Observed, Receipt, ServiceEvent, ServiceView, ShareOf, WeightChange,
            WriteContext,
        },
    },
};

/// Events that are kept for watchers.
const KEPT: usize = 4;

pub struct FakeAgent {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    services: BTreeMap<String, ServiceView>,
    events: Vec<ServiceEvent>,
    generation: u32,
    /// From this generation on there is a first flow.
    first_flow: Option<u32>,
    last_context: Option<WriteContext>,
}

impl FakeAgent {
    /// Without services; events begin at version 100.
    pub fn new() -> Self {
        Self {
            state: Mutex::default(),
            version: watch::Sender::new(100),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets a first flow come under every generation up to this one.
    pub fn let_first_flow_come(&self, generation: u32) {
        self.state().first_flow = Some(generation);
    }

    /// Changes a service behind the API's back.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut ServiceView)) {
        edit(self.state().services.get_mut(name).unwrap());
        self.tell(name, false);
    }

    /// The conditions under which the last write came.
    pub fn last_context(&self) -> WriteContext {
        self.state().last_context.clone().unwrap()
    }

    fn tell(&self, name: &str, deleted: bool) {
        let version = *self.version.borrow() + 1;
        let mut state = self.state();
        state.events.push(ServiceEvent {
            version,
            service: name.to_owned(),
            deleted,
        });
        if state.events.len() > KEPT {
            state.events.remove(0);
        }
        drop(state);
        self.version.send_replace(version);
    }

    /// Checks conditions, changes a service by `write` and answers for it.
    fn write(
        &self,
        name: &str,
        context: &WriteContext,
        write: impl FnOnce(&mut ServiceView),
    ) -> Result<Receipt, ControlError> {
        let mut state = self.state();
        state.last_context = Some(context.clone());
        state.generation += 1;
        let generation = state.generation;
        let view = find(&mut state, name)?;
        if let Some(asked) = context.etag.clone().filter(|asked| *asked != view.etag) {
            return Err(ControlError::Conflict {
                service: name.to_owned(),
                is: view.etag.clone(),
                asked,
            });
        }
        let before = view.programmed_share;
        let mut changed = view.clone();
        write(&mut changed);
        changed.generation = generation;
        changed.etag = format!("e{generation}");
        changed.programmed_share = changed.spec.green.share();
        let receipt = receipt(&changed, before);
        if context.validate_only {
            return Ok(receipt);
        }
        *view = changed;
        drop(state);
        self.tell(name, false);
        Ok(receipt)
    }
}

fn receipt(view: &ServiceView, before: f64) -> Receipt {
    Receipt {
        service: view.spec.name.clone(),
        generation: view.generation,
        etag: view.etag.clone(),
        moved_share: (view.programmed_share - before).abs(),
        green_share: view.programmed_share,
        programmed_ns: 214_000,
        total_ns: 480_000,
        unchanged: false,
        warnings: Vec::new(),
    }
}

fn find<'a>(state: &'a mut State, name: &str) -> Result<&'a mut ServiceView, ControlError> {
    let known = state
        .services
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    state.services.get_mut(name).ok_or(ControlError::NotFound {
        name: name.to_owned(),
        known,
    })
}

/// A service as the fake shows it: 1,000 new flows, 5.1% of them on green.
fn view(spec: &ServiceSpec, generation: u32) -> ServiceView {
    let mut backends = Vec::new();
    for pool in [PoolName::Blue, PoolName::Green] {
        for spec in spec.pool(pool) {
            let silent = pool == PoolName::Green;
            backends.push(BackendView {
                id: backends.len() as u16 + 1,
                pool,
                spec: *spec,
                health: "unknown",
                placement: "host",
                live_flows: if silent { 3 } else { 97 },
                counters: BackendCounters {
                    flows: 500,
                    forward_packets: 12_345,
                    forward_bytes: 1_234_567,
                    reply_packets: if silent { 0 } else { 23_456 },
                    reply_bytes: if silent { 0 } else { 34_567_890 },
                },
                warnings: match silent {
                    true => vec![format!("{} was sent flows and answered none through this host: its route to the clients must lead here", spec.addr)],
                    false => Vec::new(),
                },
            });
        }
    }
    let counters = |new_flows| PoolCounters {
        new_flows,
        adopted_flows: 7,
        unpinned_flows: 1,
        forward_packets: 12_345,
        forward_bytes: 1_234_567,
        reply_packets: 23_456,
        reply_bytes: 34_567_890,
        cohort_flows: 0,
        fragments: 2,
    };
    ServiceView {
        spec: spec.clone(),
        etag: format!("e{generation}"),
        generation,
        programmed_share: spec.green.share(),
        observed: Observed {
            window_s: 60,
            green: 51,
            total: 1_000,
            interval: Some((0.051, 0.039, 0.066)),
            adopted: 7,
            unpinned: 1,
        },
        carried: [97, 3],
        dead_man: None,
        backends,
        first_flow: None,
        adoption: "single",
        counters: [counters(949), counters(51)],
        warnings: Vec::new(),
    }
}

fn changes(state: &State, specs: &[ServiceSpec]) -> Vec<Change> {
    let change = |spec: &ServiceSpec| match state.services.get(&spec.name) {
        None => Change {
            service: spec.name.clone(),
            action: "create",
            details: vec![
                format!("vip: {}", spec.vip),
                format!("green: {}", spec.green),
            ],
            moved_share: 0.0,
            flows_that_stay: 0,
            warnings: Vec::new(),
        },
        Some(view) if view.spec.green == spec.green => Change {
            service: spec.name.clone(),
            action: "unchanged",
            ..Change::default()
        },
        Some(view) => weight_change(view, spec.green),
    };
    specs.iter().map(change).collect()
}

fn weight_change(view: &ServiceView, green: Weight) -> Change {
    Change {
        service: view.spec.name.clone(),
        action: if view.spec.green == green {
            "unchanged"
        } else {
            "update"
        },
        details: vec![format!("green: {} -> {green}", view.spec.green)],
        moved_share: (green.share() - view.spec.green.share()).abs(),
        flows_that_stay: view.carried.iter().sum(),
        warnings: match green.share() > 0.5 {
            true => vec!["more than half of the new flows leave the live pool".to_owned()],
            false => Vec::new(),
        },
    }
}

fn green_of(view: &ServiceView, share: ShareOf) -> Weight {
    match (share, view.spec.live) {
        (ShareOf::Green(weight), _) | (ShareOf::Candidate(weight), PoolName::Blue) => weight,
        (ShareOf::Blue(weight), _) | (ShareOf::Candidate(weight), PoolName::Green) => {
            weight.complement()
        }
    }
}

fn good_split(live: PoolName) -> Weight {
    match live {
        PoolName::Blue => Weight::ZERO,
        PoolName::Green => Weight::ONE,
    }
}

fn flow(service: &str, port: u16, pool: PoolName) -> FlowView {
    FlowView {
        service: service.to_owned(),
        backend: SocketAddr::from(([10, 0, u8::from(pool == PoolName::Green), 11], 8443)),
        row: FlowRow {
            service: 0,
            client: SocketAddr::from(([192, 0, 2, 7], port)),
            protocol: Protocol::Tcp,
            pool,
            backend: 1,
            state: "established",
            proven: true,
            adopted: false,
            generation: 1,
            age_s: 3_725.0,
            idle_s: 0.25,
            bytes: 1_048_576,
        },
    }
}

impl Controller for FakeAgent {
    fn list(&self) -> Result<Vec<ServiceView>, ControlError> {
        Ok(self.state().services.values().cloned().collect())
    }

    fn get(&self, name: &str) -> Result<ServiceView, ControlError> {
        find(&mut self.state(), name).cloned()
    }

    fn apply(
        &self,
        specs: &[ServiceSpec],
        context: &WriteContext,
    ) -> Result<(Vec<Receipt>, Vec<Change>), ControlError> {
        let mut state = self.state();
        state.last_context = Some(context.clone());
        let changes = changes(&state, specs);
        if let (Some(asked), [spec]) = (&context.etag, specs) {
            let view = find(&mut state, &spec.name)?;
            if view.etag != *asked {
                return Err(ControlError::Conflict {
                    service: spec.name.clone(),
                    is: view.etag.clone(),
                    asked: asked.clone(),
                });
            }
        }
        if context.validate_only {
            return Ok((Vec::new(), changes));
        }
        let mut receipts = Vec::new();
        for (spec, change) in specs.iter().zip(&changes) {
            let unchanged = change.action == "unchanged";
            state.generation += u32::from(!unchanged);
            let generation = state.generation;
            let view = view(spec, generation);
            receipts.push(Receipt {
                unchanged,
                ..receipt(&view, view.programmed_share)
            });
            state.services.insert(spec.name.clone(), view);
        }
        drop(state);
        for spec in specs {
            self.tell(&spec.name, false);
        }
        Ok((receipts, changes))
    }

    fn plan(&self, specs: &[ServiceSpec]) -> Result<Vec<Change>, ControlError> {
        Ok(changes(&self.state(), specs))
    }

    fn plan_weight(&self, change: &WeightChange) -> Result<Change, ControlError> {
        let view = self.get(&change.service)?;
        Ok(weight_change(&view, green_of(&view, change.share)))
    }

    fn delete(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        let view = self.get(name)?;
        if !context.force && view.carried[1] > 0 {
            return Err(ControlError::Precondition(format!(
                "service {name:?} carries {} flows on green, which would be cut: shift and wait, or repeat with force",
                view.carried[1]
            )));
        }
        let receipt = self.write(name, context, |_| {})?;
        self.state().services.remove(name);
        self.tell(name, true);
        Ok(receipt)
    }

    fn set_weight(
        &self,
        change: &WeightChange,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.write(&change.service, context, |view| {
            let safe_share = view.programmed_share;
            view.spec.green = green_of(view, change.share);
            view.dead_man = change.revert_after.map(|after| DeadManView {
                safe_share,
                remaining_s: after.as_secs_f64(),
                passed: false,
            });
        })
    }

    fn confirm(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.write(name, context, |view| view.dead_man = None)
    }

    fn rollback(
        &self,
        name: &str,
        to: u32,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        if to > 0 {
            return Err(ControlError::Invalid(format!(
                "generation {to} of service {name:?} is not known: leave --to out for the good split"
            )));
        }
        self.write(name, context, |view| {
            view.spec.green = good_split(view.spec.live)
        })
    }

    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.write(name, context, |view| {
            view.spec.live = view.spec.live.other();
            view.spec.green = good_split(view.spec.live);
        })
    }

    fn explain(
        &self,
        name: &str,
        client: IpAddr,
        port: Option<u16>,
    ) -> Result<Explanation, ControlError> {
        self.get(name)?;
        let flow = port.map(|port| flow(name, port, PoolName::Green));
        Ok(Explanation {
            pool: PoolName::Green,
            backend: SocketAddr::from(([10, 0, 1, 11], 8443)),
            pinned: flow.is_some(),
            why: vec![format!("{client} hashes to 0.031, below green's 0.05")],
            flow,
        })
    }

    fn flows(&self, query: &FlowQuery) -> Result<(Vec<FlowView>, u64), ControlError> {
        let name = query.service.as_deref().unwrap_or("web");
        let all = [
            flow(name, 40_001, PoolName::Blue),
            flow(name, 40_002, PoolName::Green),
        ];
        let matching = all
            .into_iter()
            .filter(|flow| query.pool.is_none_or(|pool| flow.row.pool == pool))
            .filter(|flow| {
                query
                    .client
                    .is_none_or(|client| flow.row.client.ip() == client)
            })
            .filter(|flow| query.backend.is_none_or(|backend| flow.backend == backend));
        let mut flows: Vec<_> = matching.collect();
        let matched = flows.len() as u64;
        flows.truncate(query.limit);
        Ok((flows, matched))
    }

    fn info(&self) -> Result<InfoView, ControlError> {
        let verdict = |(number, (_, reason)): (usize, &(_, &'static str))| VerdictCount {
            hook: "tc",
            number: number as u32,
            reason,
            packets: number as u64 % 16,
        };
        Ok(InfoView {
            tag: "t1".to_owned(),
            uptime_s: 61.5,
            hooks: vec![HookStatus {
                interface: "eth0".to_owned(),
                ifindex: 2,
                hook: "tc".to_owned(),
                egress: "tcx".to_owned(),
                why: "auto: veth".to_owned(),
                tag: "t1".to_owned(),
                up: true,
            }],
            limits: vec![LimitUse {
                name: "services",
                used: self.state().services.len() as u64,
                limit: 8_192,
                memory_bytes: 3_145_728,
            }],
            census: Census {
                live: 100,
                proven: 90,
                unproven: 6,
                closing: 4,
                took_ns: 1_500_000,
                ..Census::default()
            },
            flow_capacity: 1_048_576,
            table_memory_bytes: 134_217_728,
            verdicts: VERDICTS.iter().enumerate().map(verdict).collect(),
            warnings: vec!["16 Mi hugepages are missing".to_owned()],
            state_dir: "/var/lib/shifter".to_owned(),
        })
    }

    fn first_flow(&self, name: &str, generation: u32) -> Result<Option<(u32, u64)>, ControlError> {
        self.get(name)?;
        let first = self.state().first_flow;
        Ok(first
            .filter(|up_to| *up_to >= generation)
            .map(|up_to| (up_to, 1_200_000)))
    }

    fn events_since(&self, since: u64) -> Option<Vec<ServiceEvent>> {
        let newest = *self.version.borrow();
        let state = self.state();
        let oldest = state
            .events
            .first()
            .map_or(newest + 1, |event| event.version);
        (since + 1 >= oldest).then(|| {
            let newer = state.events.iter().filter(|event| event.version > since);
            newer.cloned().collect()
        })
    }

    fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn vip(&self, name: &str) -> Result<(Vip, Protocol), ControlError> {
        let vip = self.get(name)?.spec.vip;
        Ok((vip, vip.protocol))
    }
}
