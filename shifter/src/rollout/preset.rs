//! Strategies as plans of steps.

use std::{net::SocketAddr, time::Duration};

use super::{
    GatePolicy, Plan, Step,
    plan::list,
    spec::{Growth, RolloutSpec, Strategy, Written},
};
use crate::{
    judge::{GateSpec, HookType, Judge},
    model::{BackendState, PoolName, ServiceSpec, Weight},
};

/// Steps that a growth may make at most.
const MAX_GROWN: usize = 1_000;
/// A step of a growth that leaves less than a thousandth is the last one, in millionths.
const NEARLY_ALL: u64 = 999_001;

/// Why a service cannot have such a rollout.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "service {service:?}: {pool} has no backend that is ready, so nothing can be rolled out to it: add one"
    )]
    NothingToGainFrom { service: String, pool: PoolName },
    #[error(
        "service {service:?}: {step} names a backend that it does not have: write one of {known}"
    )]
    UnknownBackend {
        service: String,
        step: String,
        known: String,
    },
    #[error(
        "service {service:?}: surge = {surge} needs as many backends of {pool} in state \"drain\" or \"maint\" to bring in, and there are {spare}: add them, or lower it"
    )]
    TooFewSpares {
        service: String,
        pool: PoolName,
        surge: u32,
        spare: usize,
    },
    #[error(
        "service {service:?}: with max_unavailable = {max} and surge = {surge} none of the {ready} ready backends of {pool} would be left while they are updated: lower max_unavailable"
    )]
    NoneLeft {
        service: String,
        pool: PoolName,
        max: u32,
        surge: u32,
        ready: usize,
    },
    #[error(
        "service {service:?}: the first step gives {pool} a share at once, but the weight is {weight} already: roll it back first"
    )]
    NotAtRest {
        service: String,
        pool: PoolName,
        weight: Weight,
    },
    #[error(
        "service {service:?} has no cohort that could see the candidate first: write [[service.cohort]], or take the strategy \"canary\""
    )]
    NoCohort { service: String },
    #[error(
        "service {service:?} has no cohort, so with split = \"0%\" nobody would see the candidate: write [[service.cohort]], or a split between 0 and 100%"
    )]
    NobodySees { service: String },
    #[error("these steps would be more than {MAX_GROWN}: take larger ones")]
    TooMany,
}

/// The plan of a rollout of this service as it is now.
pub fn plan(spec: &RolloutSpec, service: &ServiceSpec) -> Result<Plan, PlanError> {
    let mut plan = Plan {
        candidate: service.live.other(),
        steps: Vec::new(),
        end: 0,
        promote_at: None,
        gates: spec.gates.iter().map(policy).collect(),
        watching: gates_at(spec, Moment::Analysis),
        progress_deadline_ms: spec.progress_deadline.map(ms),
        lease_ms: ms(spec.lease),
        spares: Vec::new(),
    };
    if spec.strategy != Strategy::Rolling {
        check_at_rest(service)?;
    }
    plan.asks(gates_at(spec, Moment::BeforeStart));
    match spec.strategy {
        Strategy::BlueGreen => {
            plan.weight(Weight::ONE);
            plan.analyse(spec.bake);
            plan.ends(spec);
        }
        Strategy::Canary => {
            plan.grows(spec, service)?;
            plan.ends(spec);
        }
        Strategy::CohortFirst => {
            if service.cohorts.is_empty() {
                return Err(PlanError::NoCohort {
                    service: service.name.clone(),
                });
            }
            plan.weight(Weight::ZERO);
            plan.steps.push(Step::Pause { for_ms: None });
            plan.grows(spec, service)?;
            plan.ends(spec);
        }
        Strategy::Ab => {
            plan.weight(split(spec, service)?);
            plan.analyse(spec.duration);
            plan.weight(Weight::ZERO);
            plan.end = plan.steps.len();
        }
        Strategy::Rolling => plan.rolls(spec, service)?,
    }
    Ok(plan)
}

/// The candidate's share in an experiment: none where its cohorts alone see it.
fn split(spec: &RolloutSpec, service: &ServiceSpec) -> Result<Weight, PlanError> {
    let has_cohorts = !service.cohorts.is_empty();
    let half = Weight::from_threshold(1 << 31);
    match spec.split {
        Some(weight) if weight.threshold() == 0 && !has_cohorts => Err(PlanError::NobodySees {
            service: service.name.clone(),
        }),
        Some(weight) => Ok(weight),
        None if has_cohorts => Ok(Weight::ZERO),
        None => Ok(half),
    }
}

/// Whether a weight of this step puts the service's cohorts in force, or suspends
/// them; `None`: it leaves them as they are.
pub fn cohorts_at(strategy: Strategy, plan: &Plan, step: usize) -> Option<bool> {
    let gives =
        |step: &Step| matches!(step, Step::Weight { candidate } if candidate.threshold() != 0);
    match strategy {
        Strategy::CohortFirst => Some(true),
        // An experiment on cohorts alone takes them out of force at its end.
        Strategy::Ab if !plan.steps.iter().any(gives) => Some(step + 1 < plan.steps.len()),
        _ => None,
    }
}

fn policy(gate: &GateSpec) -> GatePolicy {
    GatePolicy {
        name: gate.name.clone(),
        on_fail: gate.on_fail.into(),
        on_no_data: gate.on_no_data.into(),
        on_inconclusive: gate.on_inconclusive.into(),
        on_error: gate.on_error.into(),
    }
}

/// At which moment of a rollout a gate is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeStart,
    Analysis,
    BeforePromotion,
    /// Not at all: it is told what happens, and its answer changes nothing.
    Never,
}

fn moment(gate: &GateSpec) -> Moment {
    let Judge::Webhook(webhook) = &gate.judge else {
        return Moment::Analysis;
    };
    match webhook.hook {
        HookType::ConfirmRollout | HookType::PreRollout => Moment::BeforeStart,
        HookType::ConfirmPromotion => Moment::BeforePromotion,
        HookType::Rollout | HookType::Rollback => Moment::Analysis,
        HookType::PostRollout | HookType::Event => Moment::Never,
    }
}

fn gates_at(spec: &RolloutSpec, at: Moment) -> Vec<usize> {
    let gates = spec.gates.iter().enumerate();
    let gates = gates.filter(|(_, gate)| moment(gate) == at);
    gates.map(|(index, _)| index).collect()
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// The candidate must be able to gain, and must not have gained yet.
fn check_at_rest(service: &ServiceSpec) -> Result<(), PlanError> {
    let pool = service.live.other();
    let ready = |b: &crate::model::BackendSpec| b.state == BackendState::Ready;
    if !service.pool(pool).iter().any(ready) {
        return Err(PlanError::NothingToGainFrom {
            service: service.name.clone(),
            pool,
        });
    }
    let weight = match service.live {
        PoolName::Blue => service.green,
        PoolName::Green => service.green.complement(),
    };
    if weight != Weight::ZERO && weight.threshold() != 0 {
        return Err(PlanError::NotAtRest {
            service: service.name.clone(),
            pool,
            weight,
        });
    }
    Ok(())
}

impl Plan {
    fn weight(&mut self, candidate: Weight) {
        self.steps.push(Step::Weight { candidate });
    }

    fn analyse(&mut self, time: Duration) {
        if !time.is_zero() {
            self.steps.push(Step::Analyse {
                for_ms: ms(time),
                gates: self.watching.clone(),
            });
        }
    }

    /// Waits for gates of one moment.
    fn asks(&mut self, gates: Vec<usize>) {
        if !gates.is_empty() {
            self.steps.push(Step::Analyse { for_ms: 0, gates });
        }
    }

    /// The last step is there in any case, for who tells it to promote.
    fn ends(&mut self, spec: &RolloutSpec) {
        if spec.promote {
            self.asks(gates_at(spec, Moment::BeforePromotion));
        }
        self.promote_at = Some(self.steps.len());
        self.end = self.steps.len() + usize::from(spec.promote);
        self.steps.push(Step::Promote);
    }

    fn grows(&mut self, spec: &RolloutSpec, service: &ServiceSpec) -> Result<(), PlanError> {
        match &spec.growth {
            Growth::Linear(by) => {
                let by = by.millionths();
                self.grows_to(spec, by, |at| at + by.max(1))?;
            }
            Growth::Exponential(from, factor) => {
                self.grows_to(spec, from.millionths(), |at| at * u64::from(*factor))?;
            }
            Growth::Steps(steps) => {
                for step in steps {
                    self.written(step, spec, service)?;
                }
            }
        }
        if !spec.bake.is_zero() {
            self.weight(Weight::ONE);
            self.analyse(spec.bake);
        }
        Ok(())
    }

    /// Shares in millionths, from `first` on, below all.
    fn grows_to(
        &mut self,
        spec: &RolloutSpec,
        first: u64,
        next: impl Fn(u64) -> u64,
    ) -> Result<(), PlanError> {
        let mut at = first.max(1);
        while at < NEARLY_ALL {
            if self.steps.len() > 2 * MAX_GROWN {
                return Err(PlanError::TooMany);
            }
            self.weight(Weight::from_millionths(at as u32));
            self.analyse(spec.interval);
            at = next(at);
        }
        Ok(())
    }

    fn written(
        &mut self,
        step: &Written,
        spec: &RolloutSpec,
        service: &ServiceSpec,
    ) -> Result<(), PlanError> {
        let known = |backend: &SocketAddr| has_backend(service, *backend);
        let step = match step {
            Written::Share(weight) => {
                self.weight(*weight);
                self.analyse(spec.interval);
                return Ok(());
            }
            Written::Analyse(time) => {
                self.analyse(*time);
                return Ok(());
            }
            Written::Pause(time) => Step::Pause {
                for_ms: time.map(ms),
            },
            Written::AwaitDrain(time) => Step::AwaitPool {
                pool: service.live,
                deadline_ms: ms(*time),
            },
            Written::Drain(backend) => {
                known(backend)?;
                Step::Drain { backend: *backend }
            }
            Written::Undrain(backend) => {
                known(backend)?;
                Step::Undrain { backend: *backend }
            }
            Written::Hook(name) => Step::Hook {
                name: name.clone(),
                backend: None,
                on_error: spec.on_hook_error,
            },
        };
        self.steps.push(step);
        Ok(())
    }

    /// Backend by backend of one pool; spares first, which then help out.
    fn rolls(&mut self, spec: &RolloutSpec, service: &ServiceSpec) -> Result<(), PlanError> {
        let pool = spec.pool.unwrap_or(service.live);
        let backends = |ready: bool| -> Vec<SocketAddr> {
            let backends = service.pool(pool).iter();
            let backends = backends.filter(|b| (b.state == BackendState::Ready) == ready);
            backends.map(|b| b.addr).collect()
        };
        let (ready, spare) = (backends(true), backends(false));
        let name = || service.name.clone();
        if ready.is_empty() {
            return Err(PlanError::NothingToGainFrom {
                service: name(),
                pool,
            });
        }
        let surge = spec.surge as usize;
        if surge > spare.len() {
            return Err(PlanError::TooFewSpares {
                service: name(),
                pool,
                surge: spec.surge,
                spare: spare.len(),
            });
        }
        let at_once = spec.max_unavailable as usize + surge;
        if spec.max_unavailable as usize >= ready.len() {
            return Err(PlanError::NoneLeft {
                service: name(),
                pool,
                max: spec.max_unavailable,
                surge: spec.surge,
                ready: ready.len(),
            });
        }
        self.candidate = service.live.other();
        self.spares = spare[..surge].to_vec();
        if surge > 0 {
            let spares = self.spares.clone();
            self.updates(&spares, spec);
        }
        for batch in ready.chunks(at_once) {
            for backend in batch {
                self.steps.push(Step::Drain { backend: *backend });
            }
            self.steps.push(Step::AwaitDrained {
                backends: batch.to_vec(),
                deadline_ms: ms(spec.drain_deadline),
            });
            self.updates(batch, spec);
        }
        for backend in self.spares.clone() {
            self.steps.push(Step::Drain { backend });
        }
        self.end = self.steps.len();
        Ok(())
    }

    /// Backends without new flows are updated, looked at and brought back.
    fn updates(&mut self, backends: &[SocketAddr], spec: &RolloutSpec) {
        match &spec.hook {
            Some(name) => self.steps.extend(backends.iter().map(|backend| Step::Hook {
                name: name.clone(),
                backend: Some(*backend),
                on_error: spec.on_hook_error,
            })),
            None => self.steps.push(Step::AwaitPerson {
                backends: backends.to_vec(),
            }),
        }
        self.steps.push(Step::AwaitHealthy {
            backends: backends.to_vec(),
            deadline_ms: ms(spec.health_deadline),
        });
        let undrain = |backend: &SocketAddr| Step::Undrain { backend: *backend };
        self.steps.extend(backends.iter().map(undrain));
        if !self.watching.is_empty() {
            self.analyse(spec.interval);
        }
    }
}

fn has_backend(service: &ServiceSpec, backend: SocketAddr) -> Result<(), PlanError> {
    let all = || service.blue_pool.iter().chain(&service.green_pool);
    if all().any(|b| b.addr == backend) {
        return Ok(());
    }
    let known: Vec<SocketAddr> = all().map(|b| b.addr).collect();
    Err(PlanError::UnknownBackend {
        service: service.name.clone(),
        step: format!("\"drain {backend}\""),
        known: list(&known),
    })
}
