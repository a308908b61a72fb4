//! Draining: backends that are offered no new flows, and keep those that they have.

use std::{net::SocketAddr, slice};

use super::{
    apply::Resolved,
    asked::Asked,
    controller::{ControlError, DrainEnd, NamedBackends, Receipt, WriteContext},
    cut::due_after,
    plan::{Rigour, check_specs},
    reconciler::{Reconciler, lock},
    write::find,
};
use crate::{
    model::{BackendState, CutRate, PoolName, ServiceSpec},
    store::{Cut, CutCause, CutKey},
};

impl Reconciler {
    /// Takes backends out of the choice of new flows, or puts them back.
    pub(super) fn do_drain(
        &self,
        named: &NamedBackends,
        drain: Option<DrainEnd>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let cut = drain.and_then(|end| end.cut);
        let due = match cut {
            Some((after_s, rate)) => Some((due_after(self.clock.unix_ms(), after_s)?, rate)),
            None => None,
        };
        {
            let core = lock(&self.core);
            let spec = &find(&core.services, &named.service)?.spec;
            if let Some(backend) = named.backend {
                check_backend(spec, named.pool, backend)?;
            }
        }
        let state = match drain {
            Some(_) => BackendState::Drain,
            None => BackendState::Ready,
        };
        let set = |spec: &mut ServiceSpec| {
            for pool in [PoolName::Blue, PoolName::Green] {
                if named.pool.is_some_and(|wanted| wanted != pool) {
                    continue;
                }
                let backends = match pool {
                    PoolName::Blue => &mut spec.blue_pool,
                    PoolName::Green => &mut spec.green_pool,
                };
                for backend in backends {
                    if named.backend.is_none_or(|wanted| wanted == backend.addr) {
                        backend.state = state;
                    }
                }
            }
        };
        let action = match drain {
            Some(_) => "drain",
            None => "undrain",
        };
        let mut receipt = self.change_backends(&named.service, action, set, false, context)?;
        if !context.validate_only {
            self.cut_after_drain(named, drain.is_some(), due, &mut receipt, context);
        }
        Ok(receipt)
    }

    /// What becomes of the flows that the named backends still have.
    fn cut_after_drain(
        &self,
        named: &NamedBackends,
        is_drain: bool,
        due: Option<(i64, CutRate)>,
        receipt: &mut Receipt,
        context: &WriteContext,
    ) {
        let mut core = lock(&self.core);
        let key = CutKey {
            service: named.service.clone(),
            cause: CutCause::Drain,
            pool: named.pool,
            backend: named.backend,
        };
        match due {
            Some((due_unix_ms, rate)) => {
                let cut = Cut {
                    key,
                    rate,
                    before: receipt.generation,
                    due_unix_ms,
                    actor: context.actor.clone(),
                    reason: context.reason.clone(),
                    ended: 0,
                };
                receipt.warnings.extend(self.begin_cut(&mut core, cut));
            }
            // A drain that keeps its flows takes the place of one that does not.
            None if is_drain => self.finish_cut(&mut core, &key, "stopped: drained anew"),
            None => self.stop_drain_cuts(&mut core, &named.service),
        }
    }

    /// Changes backends of a service and leaves its weight and dead-man as they are.
    /// A rollback is let through in a freeze, and whatever the host and the store say.
    pub(super) fn change_backends(
        &self,
        name: &str,
        action: &'static str,
        set: impl Fn(&mut ServiceSpec),
        is_rollback: bool,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let _turn = lock(&self.refreshing);
        let mut spec = find(&lock(&self.core).services, name)?.spec.clone();
        set(&mut spec);
        let asked = Asked::of(slice::from_ref(&spec), &*self.facts);
        let census = self.census();
        // Its cohorts stay: their set is there already.
        let sets = self.write_sets(slice::from_ref(&spec), context)?;
        let mut core = lock(&self.core);
        self.record_passed_dead_man(&mut core, name);
        // The weight may be another one by now.
        let mut spec = find(&core.services, name)?.spec.clone();
        set(&mut spec);
        if !is_rollback {
            Self::check_no_rollout(&core, name, &context.actor)?;
            self.check_frozen(&core, name)?;
            check_specs(slice::from_ref(&spec))?;
        }
        let rigour = match is_rollback {
            true => Rigour::WayBack,
            false => Rigour::Forced,
        };
        let mut steps = self.prepare(&core, &[spec], rigour, &asked, &census)?;
        for step in &mut steps {
            step.keep_dead_man = true;
            step.action = action;
        }
        let resolved = Resolved { asked, sets };
        let (receipts, _) = self.carry_out(&mut core, steps, &resolved, context)?;
        resolved.sets.keep();
        let receipt = receipts.into_iter().next();
        receipt.ok_or_else(|| ControlError::Internal(format!("drain of {name} had no receipt")))
    }
}

fn check_backend(
    spec: &ServiceSpec,
    pool: Option<PoolName>,
    backend: SocketAddr,
) -> Result<(), ControlError> {
    let pools = [PoolName::Blue, PoolName::Green];
    let wanted = |name: &PoolName| pool.is_none_or(|pool| pool == *name);
    let known: Vec<SocketAddr> = pools
        .into_iter()
        .filter(wanted)
        .flat_map(|name| spec.pool(name).iter().map(|b| b.addr))
        .collect();
    if known.contains(&backend) {
        return Ok(());
    }
    let names: Vec<String> = known.iter().map(SocketAddr::to_string).collect();
    Err(ControlError::Invalid(format!(
        "service {:?} has no backend {backend}{}: it has {}",
        spec.name,
        pool.map_or(String::new(), |pool| format!(" in {pool}")),
        names.join(", ")
    )))
}
