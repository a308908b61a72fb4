//! What rollouts measure each second: read from the kernel and stored without the
//! core's lock, so that no rollback waits for either.

use super::{gates::Seen, sample::At};
use crate::{
    datapath::{Census, DatapathError, ServiceId},
    model::signals::PoolSignals,
    reconcile::reconciler::{Core, Reconciler, lock},
    store::{Beside, Measured},
};

/// The kernel's signals of one service.
pub(super) struct Reading {
    service: ServiceId,
    /// CLOCK_MONOTONIC before and after.
    began_ns: u64,
    done_ns: u64,
    signals: Result<[PoolSignals; 2], DatapathError>,
}

/// What is to be stored, and where.
pub(super) struct Taken {
    measured: Measured,
    beside: Beside,
}

impl Reconciler {
    /// Reads the signals of a service with a rollout; not with the core's lock.
    pub(super) fn read_signals(&self, name: &str) -> Option<Reading> {
        let service = {
            let core = lock(&self.core);
            let entry = core.services.get(name)?;
            core.rollouts.contains_key(name).then_some(entry.id)?
        };
        let began_ns = self.clock.monotonic_ns();
        let signals = self.datapath.signals(service);
        Some(Reading {
            service,
            began_ns,
            done_ns: self.clock.monotonic_ns(),
            signals,
        })
    }

    /// Takes a reading in, if it is still of this service.
    pub(super) fn sample(
        &self,
        core: &mut Core,
        name: &str,
        census: &Census,
        reading: Option<Reading>,
    ) {
        let (Some(entry), Some(reading)) = (core.services.get(name), reading) else {
            return;
        };
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return;
        };
        if reading.service != entry.id {
            return;
        }
        let signals = match reading.signals {
            Ok(signals) => signals,
            Err(error) => {
                rollout.sampler.problem = Some(error.to_string());
                return;
            }
        };
        rollout.sampler.problem = None;
        if rollout.seen_step != rollout.state.step {
            rollout.seen = Seen::new(&rollout.spec.gates);
            rollout.seen_step = rollout.state.step;
        }
        let at = At {
            began_ns: reading.began_ns,
            monotonic_ns: reading.done_ns,
            unix_ms: self.clock.unix_ms(),
            began_unix_ms: rollout.began_unix_ms,
            step: rollout.state.step,
            weight: rollout.state.weight.to_string(),
            flows: census.services.get(&entry.id).copied().unwrap_or_default(),
        };
        if let Some(window) = rollout.sampler.take(signals, at) {
            let gates = &rollout.spec.gates;
            rollout.seen.add(gates, &window, rollout.plan.candidate);
        }
    }

    /// Takes out what a rollout has measured, to be stored beside. Where there is more
    /// to store, or no place beside, it is stored here.
    pub(super) fn measured(&self, core: &mut Core, name: &str) -> Option<Taken> {
        let beside = core.store.beside();
        let rollout = core.rollouts.get_mut(name)?;
        let state = rollout.state.clone();
        // How a way back began is stored with its state.
        let is_plain = !rollout.is_rolling_back() || rollout.late.is_empty();
        let (Some(beside), true, None) = (beside, is_plain, state.outcome()) else {
            if let Err(error) = self.store_state(core, name, &state, &[]) {
                tracing::debug!(service = name, %error, "what a rollout measured is not stored yet");
            }
            return None;
        };
        let measured = Measured {
            id: rollout.id,
            before: rollout.stored.clone(),
            state: serde_json::to_string(&state).ok()?,
            windows: std::mem::take(&mut rollout.sampler.full),
            notes: std::mem::take(&mut rollout.late),
        };
        Some(Taken { measured, beside })
    }

    /// Stores what was taken out; not with the core's lock. A state that was stored
    /// meanwhile is newer and stays.
    pub(super) fn store_measured(&self, name: &str, taken: Option<Taken>) {
        let Some(Taken { measured, beside }) = taken else {
            return;
        };
        let stored = beside.write(&measured);
        let mut core = lock(&self.core);
        let Core {
            store, rollouts, ..
        } = &mut *core;
        if let Err(error) = &stored {
            tracing::debug!(service = name, %error, "what a rollout measured is not stored yet");
            store.note_beside(error);
        }
        let Some(rollout) = rollouts.get_mut(name).filter(|r| r.id == measured.id) else {
            return;
        };
        match stored {
            Ok(is_newest) => {
                if is_newest && rollout.stored == measured.before {
                    rollout.stored = measured.state;
                }
                rollout.unstored = None;
                if !measured.notes.is_empty() {
                    self.event_queue.note_stored();
                }
            }
            Err(error) => {
                rollout.sampler.put_back(measured.windows);
                rollout.late.splice(..0, measured.notes);
                rollout.unstored = Some(error.to_string());
            }
        }
    }
}
