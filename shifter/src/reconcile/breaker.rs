//! The circuit breaker that trips in the kernel: seen here, told, and recorded
//! as the rollback that it is.

use super::{
    controller::BreakerView,
    entry::Entry,
    reconciler::{Core, Reconciler},
    write::{Durability, SplitWrite, audit, own_context},
};
use crate::{
    datapath::{BreakerImage, BreakerState, Trip},
    model::{breaker::Breaker, duration},
    store::Audit,
};

/// As the kernel takes it.
pub(super) fn image(breaker: &Breaker) -> BreakerImage {
    BreakerImage {
        window_ns: breaker.window.as_nanos() as u64,
        max_failures: breaker.max_failures,
        min_attempts: breaker.min_attempts,
        max_ratio: breaker.max_ratio.threshold().min(u64::from(u32::MAX)) as u32,
    }
}

/// Why a breaker has tripped.
pub(super) fn reason(entry: &Entry, trip: &Trip) -> String {
    let window = entry.spec.breaker.unwrap_or_default().window;
    format!(
        "breaker tripped in the kernel: {} of {} attempts on {} within {} were refused, unanswered or reset before data",
        trip.failures,
        trip.attempts,
        entry.spec.live.other(),
        duration::show(window)
    )
}

impl Reconciler {
    pub(super) fn breaker_state(&self, entry: &Entry) -> Option<BreakerState> {
        entry.spec.breaker?;
        match self.datapath.breaker(entry.id) {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(service = entry.spec.name, %error, "reading a breaker failed");
                None
            }
        }
    }

    /// The trip by which the kernel gives every new flow to the live pool now.
    pub(super) fn trip_in_force(&self, entry: &Entry) -> Option<Trip> {
        let trip = self.breaker_state(entry)?.trip?;
        (trip.generation == entry.generation).then_some(trip)
    }

    /// Threshold that the kernel acts on now: of the live pool where the breaker
    /// has tripped, past a deadline the dead-man's.
    pub(super) fn threshold_in_force(&self, entry: &Entry) -> u64 {
        match self.trip_in_force(entry) {
            Some(_) => entry.spec.live.all().threshold(),
            None => entry.programmed_threshold(&*self.clock),
        }
    }

    /// A breaker that tripped becomes a rollback, so that the configured weight
    /// is what is in force. The kernel holds it until then, and where that fails.
    pub(super) fn record_trip(&self, core: &mut Core, name: &str) -> bool {
        let Some(entry) = core.services.get(name) else {
            return false;
        };
        let Some(trip) = self.trip_in_force(entry) else {
            return false;
        };
        let reason = reason(entry, &trip);
        let next = entry.way_back(entry.spec.live);
        if next == entry.split() {
            // The weight was there already: late failures of flows of its own
            // generation. Nothing to take back.
            return false;
        }
        tracing::error!(service = name, generation = trip.generation, "{reason}");
        let write = SplitWrite {
            next,
            action: "rollback",
            durability: Durability::Wanted,
            warnings: Vec::new(),
        };
        let context = own_context("breaker", reason);
        if let Err(error) = self.write_split(core, name, write, &context) {
            tracing::warn!(service = name, %error, "recording a tripped breaker failed: it holds in the kernel, and is recorded as soon as that works");
        } else {
            self.cut_of_rollout(core, name, &context);
            self.rollout_taken_back(core, name, &context.actor, &context.reason);
        }
        true
    }

    /// Whether a breaker has tripped and nobody could record it yet: then only the
    /// generation in force holds it, and what nobody asked for must not replace that.
    pub(super) fn holds_by_trip(&self, entry: &Entry) -> bool {
        self.trip_in_force(entry).is_some() && entry.split() != entry.way_back(entry.spec.live)
    }

    /// As [`Reconciler::record_trip`], for one that tripped while no agent ran:
    /// the start publishes what it leads to.
    pub(super) fn take_trip(&self, entry: &mut Entry, at_unix_ms: i64) -> Option<Audit> {
        let trip = self.trip_in_force(entry)?;
        let next = entry.way_back(entry.spec.live);
        if next == entry.split() {
            return None;
        }
        let reason = reason(entry, &trip);
        let before = entry.describe();
        entry.set_split(next);
        tracing::error!(
            service = entry.spec.name,
            generation = trip.generation,
            "{reason}"
        );
        let context = own_context("breaker", reason);
        Some(audit(at_unix_ms, &context, entry, "rollback", &before))
    }

    pub(super) fn breaker_view(&self, entry: &Entry) -> Option<BreakerView> {
        let breaker = entry.spec.breaker?;
        let state = self.breaker_state(entry).unwrap_or_default();
        let everything = entry.spec.live.all().threshold();
        // It stands until somebody gives the candidate flows again.
        let trip = state.trip.filter(|trip| {
            trip.generation == entry.generation || entry.spec.green.threshold() == everything
        });
        Some(BreakerView {
            breaker,
            attempts: state.attempts,
            failures: state.failures,
            tripped_ago_s: trip
                .map(|trip| self.clock.boot_ns().saturating_sub(trip.at_ns) as f64 / 1e9),
            warning: trip.map(|trip| {
                format!(
                    "{}; every new flow goes to {}: mend {}, then shift again",
                    reason(entry, &trip),
                    entry.spec.live,
                    entry.spec.live.other()
                )
            }),
        })
    }
}
