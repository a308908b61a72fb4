//! An agent in memory with numbers that never vary, for tests of API, command
//! line and metrics.

mod views;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::{
    model::{BackendState, CutRate, PoolName, Protocol, ServiceSpec, Vip},
    reconcile::{
        Controller,
        controller::{
            AuditQuery, Change, ControlError, DeadManView, DrainEnd, Event, EventQuery, Events,
            Explanation, FlowQuery, FlowView, InfoView, NamedBackends, Receipt, Recorded,
            ReportFormat, RolloutCommand, RolloutFigures, RolloutView, ServiceEvent, ServiceView,
            StartRollout, WeightChange, WriteContext,
        },
    },
};
use views::{flow, green_of, receipt, view, weight_change};

/// Events that are kept for watchers.
const KEPT: usize = 4;

pub struct FakeAgent {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    happened: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    services: BTreeMap<String, ServiceView>,
    events: Vec<ServiceEvent>,
    happened: Vec<Event>,
    generation: u32,
    /// From this generation on there is a first flow.
    first_flow: Option<u32>,
    last_context: Option<WriteContext>,
    store_problem: Option<String>,
    frozen: BTreeMap<String, String>,
    rollouts: Vec<RolloutView>,
    figures: RolloutFigures,
}

impl FakeAgent {
    /// Without services; events begin at version 100.
    pub fn new() -> Self {
        Self {
            state: Mutex::default(),
            version: watch::Sender::new(100),
            happened: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets a first flow come under every generation up to this one.
    pub fn let_first_flow_come(&self, generation: u32) {
        self.state().first_flow = Some(generation);
    }

    /// Lets the store fail, or not any more.
    pub fn set_store_problem(&self, problem: Option<&str>) {
        self.state().store_problem = problem.map(str::to_owned);
    }

    /// Changes a service behind the API's back.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut ServiceView)) {
        edit(self.state().services.get_mut(name).unwrap());
        self.tell(name, false);
    }

    /// There are these rollouts, and these figures over all that were.
    pub fn roll_out(&self, rollouts: Vec<RolloutView>, figures: RolloutFigures) {
        let mut state = self.state();
        (state.rollouts, state.figures) = (rollouts, figures);
    }

    /// The conditions under which the last write came.
    pub fn last_context(&self) -> WriteContext {
        self.state().last_context.clone().unwrap()
    }

    /// Lets something happen.
    pub fn happen(&self, event: Event) {
        let mut state = self.state();
        let number = state.happened.len() as u64 + 1;
        state.happened.push(Event { number, ..event });
        drop(state);
        self.happened.send_replace(number);
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
        if state.frozen.contains_key(name) {
            return Err(ControlError::Frozen(format!("service {name:?} is frozen")));
        }
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
        if context.validate_only {
            return Ok(receipt);
        }
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
        _cut: Option<CutRate>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        if to > 0 {
            return Err(ControlError::Invalid(format!(
                "generation {to} of service {name:?} is not known: leave --to out for the good split"
            )));
        }
        self.write(name, context, |view| view.spec.green = view.spec.live.all())
    }

    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.write(name, context, |view| {
            view.spec.live = view.spec.live.other();
            view.spec.green = view.spec.live.all();
        })
    }

    fn start_rollout(
        &self,
        start: &StartRollout,
        _: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        self.get(&start.service)?;
        Err(no_rollout(&start.service))
    }

    fn command_rollout(
        &self,
        name: &str,
        _: RolloutCommand,
        _: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        self.get(name)?;
        Err(no_rollout(name))
    }

    fn rollout(&self, name: &str, _: u64) -> Result<RolloutView, ControlError> {
        self.get(name)?;
        Err(no_rollout(name))
    }

    fn rollouts(&self, _: &str, _: u32) -> Result<Vec<RolloutView>, ControlError> {
        Ok(self.state().rollouts.clone())
    }

    fn rollout_report(
        &self,
        name: &str,
        _: u64,
        _: ReportFormat,
    ) -> Result<(u64, String), ControlError> {
        self.get(name)?;
        Err(no_rollout(name))
    }

    fn rollout_figures(&self) -> Result<RolloutFigures, ControlError> {
        Ok(self.state().figures.clone())
    }

    fn freeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError> {
        let mut state = self.state();
        find(&mut state, name)?;
        state.frozen.insert(name.to_owned(), context.actor.clone());
        Ok(())
    }

    fn unfreeze(&self, name: &str, _: &WriteContext) -> Result<(), ControlError> {
        self.state().frozen.remove(name);
        Ok(())
    }

    fn drain(
        &self,
        named: &NamedBackends,
        drain: Option<DrainEnd>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.write(&named.service, context, |view| {
            for backend in &mut view.backends {
                let named = named.backend.is_none_or(|addr| addr == backend.spec.addr)
                    && named.pool.is_none_or(|pool| pool == backend.pool);
                if named {
                    backend.spec.state = match drain {
                        Some(_) => BackendState::Drain,
                        None => BackendState::Ready,
                    };
                }
            }
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
            cohort: None,
            why: vec![format!("{client} hashes to 0.031, below green's 0.05")],
            flow,
        })
    }

    fn flows(&self, query: &FlowQuery) -> Result<(Vec<FlowView>, u64), ControlError> {
        let name = query.service.as_deref().unwrap_or("web");
        let mut ended = flow(name, 40_003, PoolName::Blue);
        ended.row.state = "closing";
        let all = [
            flow(name, 40_001, PoolName::Blue),
            flow(name, 40_002, PoolName::Green),
            ended,
        ];
        let matching = all
            .into_iter()
            .filter(|flow| !(query.open_only && flow.row.state == "closing"))
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
        Ok(views::info(self.state().services.len() as u64))
    }

    fn audit(&self, query: &AuditQuery) -> Result<Vec<Recorded>, ControlError> {
        let records = views::audit().into_iter();
        let matching = records.filter(|record| {
            (query.service.is_empty() || record.audit.service == query.service)
                && (query.before == 0 || record.number < query.before)
        });
        Ok(matching.take(query.limit as usize).collect())
    }

    fn events(&self, query: &EventQuery) -> Result<Events, ControlError> {
        let state = self.state();
        let matching = state.happened.iter().filter(|event| {
            (query.service.is_empty() || event.service == query.service)
                && (query.kind.is_empty() || event.kind == query.kind || event.what == query.kind)
                && event.number > query.after.unwrap_or(0)
        });
        let mut events: Vec<Event> = matching.cloned().collect();
        let limit = query.limit as usize;
        match query.after {
            Some(_) => events.truncate(limit),
            None => drop(events.drain(..events.len().saturating_sub(limit))),
        }
        Ok(Events {
            events,
            newest: state.happened.len() as u64,
            oldest: 1,
        })
    }

    fn events_stored(&self) -> watch::Receiver<u64> {
        self.happened.subscribe()
    }

    fn store_problem(&self) -> Option<String> {
        self.state().store_problem.clone()
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

fn no_rollout(name: &str) -> ControlError {
    ControlError::Precondition(format!("service {name:?} has no rollout under way"))
}
