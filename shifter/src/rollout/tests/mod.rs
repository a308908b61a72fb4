//! The machine of a rollout, by what it does: a world that carries out what it asks for, and a
//! run of it in that world.

mod canary;
mod chaos;
mod descriptions;
mod failures;
mod freeze;
mod rolling;

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    Action, BackendFacts, Effect, Event, Facts, Health, Outcome, Phase, Plan, State, check, notes,
    preset, spec, step,
};
use crate::{
    judge::{self, Judgement},
    model::{
        ServiceSpec, Weight,
        file::{Format, parse_services},
    },
};

const SECOND: i64 = 1_000;

fn service() -> ServiceSpec {
    let text = r#"
[[service]]
name = "web"
vip = "203.0.113.10:443/tcp"
[[service.cohort]]
name = "staff"
prefixes = ["10.9.0.0/16"]
[service.pools]
blue = ["10.0.0.11:80", "10.0.0.12:80", "10.0.0.13:80", { addr = "10.0.0.14:80", state = "drain" }]
green = ["10.0.1.11:80"]
"#;
    parse_services(text, "f", Format::Toml).unwrap().remove(0)
}

fn plan(json: &str) -> Plan {
    preset::plan(&spec::from_json(json).unwrap(), &service()).unwrap()
}

fn said(outcome: judge::Outcome) -> Judgement {
    Judgement {
        outcome,
        reason: "because".into(),
        statistics: vec![("share".into(), 0.02), ("none".into(), f64::NAN)],
    }
}

/// Carries effects out as the agent does: looks at what is there first.
#[derive(Default)]
struct World {
    weight: Option<Weight>,
    live_is_candidate: bool,
    drained: BTreeSet<SocketAddr>,
    /// Changes that were made, by the number of their effect.
    made: Vec<u64>,
    weights: Vec<Weight>,
    hooks: Vec<u64>,
    rolled_back: bool,
}

impl World {
    fn candidate(&self) -> Weight {
        self.weight.unwrap_or(Weight::ZERO)
    }

    /// Whether anything was changed.
    fn carry(&mut self, effect: &Effect) {
        let changed = match &effect.action {
            Action::Weight { candidate } => {
                let changed = self.candidate() != *candidate;
                self.weight = Some(*candidate);
                if changed {
                    self.weights.push(*candidate);
                }
                changed
            }
            Action::Promote => !std::mem::replace(&mut self.live_is_candidate, true),
            Action::Keep => false,
            Action::Drain { backend } => self.drained.insert(*backend),
            Action::Undrain { backend } => self.drained.remove(backend),
            Action::Hook { .. } => {
                self.hooks.push(effect.id);
                true
            }
            Action::Rollback { undrain, drain } => {
                let changed = self.candidate() != Weight::ZERO;
                self.weight = Some(Weight::ZERO);
                self.rolled_back = true;
                self.drained.retain(|b| !undrain.contains(b));
                self.drained.extend(drain);
                changed
            }
        };
        if changed {
            self.made.push(effect.id);
        }
    }
}

/// One rollout with its agent.
struct Run<'a> {
    plan: &'a Plan,
    state: State,
    world: World,
    now: i64,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            state: State::new(plan.gates.len(), 0),
            world: World::default(),
            now: 0,
        }
    }

    /// An event and everything that follows from it.
    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let (state, effects) = step(self.plan, self.state.clone(), event, self.now);
            self.state = state;
            for effect in effects {
                self.world.carry(&effect);
                events.push(Event::Done { id: effect.id });
            }
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.pass_with(seconds, &Facts::default());
    }

    fn pass_with(&mut self, seconds: i64, facts: &Facts) {
        for _ in 0..seconds {
            self.now += SECOND;
            self.tell(Event::Tick(facts.clone()));
        }
    }

    /// Right before the next tick, as the agent does.
    fn judge(&mut self, outcome: judge::Outcome) {
        let judgement = said(outcome);
        self.now += SECOND;
        self.tell(Event::Judged { gate: 0, judgement });
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.state.outcome()
    }
}

const CANARY: &str = r#"{"strategy":"canary","steps":["5%","25%"],"interval":"10s","gates":[{"judge":"sequential"}]}"#;

fn facts(flows: u64, health: Health) -> Facts {
    let backends = service().blue_pool.into_iter().map(|backend| BackendFacts {
        backend: backend.addr,
        flows,
        health,
    });
    Facts {
        flows: [flows, 0],
        backends: backends.collect(),
        frozen: None,
    }
}
