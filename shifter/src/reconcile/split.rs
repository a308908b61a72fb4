//! Writes on the weight: shift, confirm, rollback, promote, and the dead-man.

use std::time::Duration;

use super::{
    controller::{Change, ControlError, Receipt, ShareOf, WeightChange, WriteContext},
    cut::pace_of_rollout,
    entry::{DeadMan, Entry, Split, adoption, adoption_meaning, threshold_moved},
    reconciler::{Core, Reconciler, lock},
    write::{Durability, SplitWrite, check_etag, find, own_context},
};
use crate::{
    datapath::DeadManImage,
    model::{CutRate, PoolName, Weight, cohort, duration, validate},
    store::{Promoted, StoredDeadMan},
};

/// A dead-man beyond this is a mistake of units.
const MAX_REVERT_AFTER: Duration = Duration::from_secs(30 * 86_400);

impl Reconciler {
    pub(super) fn do_set_weight(
        &self,
        change: &WeightChange,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let mut core = lock(&self.core);
        let name = &change.service;
        self.record_passed_dead_man(&mut core, name);
        let entry = find(&core.services, name)?;
        check_etag(entry, context)?;
        Self::check_no_rollout(&core, name, &context.actor)?;
        self.check_frozen(&core, name)?;
        let (next, mut warnings) = self.shifted(entry, change)?;
        warnings.extend(unready_warning(entry, next.live, next.green));
        let write = SplitWrite {
            next,
            action: "shift",
            durability: Durability::Required,
            warnings,
        };
        self.write_split(&mut core, name, write, context)
    }

    /// What a shift leads to.
    fn shifted(
        &self,
        entry: &Entry,
        change: &WeightChange,
    ) -> Result<(Split, Vec<String>), ControlError> {
        let green = green_weight(entry.spec.live, change.share);
        self.check_gain(entry, green)?;
        let cohorts_on = cohorts_wanted(entry, change.cohorts)?;
        self.check_cohorts_on(entry, cohorts_on)?;
        let mut warnings = Vec::new();
        let dead_man = match change.revert_after {
            Some(after)
                if green.threshold() == entry.spec.live.all().threshold()
                    && (entry.spec.cohorts.is_empty() || !cohorts_on) =>
            {
                warnings.push(format!(
                    "no dead-man is armed: this weight gives the live pool everything already, so there is nothing to revert after {}",
                    duration::show(after)
                ));
                None
            }
            Some(after) => Some(self.dead_man(entry.spec.live, after)?),
            None => None,
        };
        let next = Split {
            green,
            cohorts_on,
            dead_man,
            ..entry.split()
        };
        Ok((next, warnings))
    }

    /// Refuses to put cohorts in force whose pool has too few backends up.
    pub(super) fn check_cohorts_on(&self, entry: &Entry, on: bool) -> Result<(), ControlError> {
        if !on || entry.spec.cohorts_on {
            return Ok(());
        }
        let mut spec = entry.spec.clone();
        spec.cohorts_on = on;
        self.check_cohorts_healthy(Some(&entry.spec), &spec, &entry.down)
    }

    /// Refuses when the pool that gains has nothing to carry it.
    pub(super) fn check_gain(&self, entry: &Entry, green: Weight) -> Result<(), ControlError> {
        let (before, after) = (entry.spec.green.threshold(), green.threshold());
        let (pool, share) = match after.cmp(&before) {
            std::cmp::Ordering::Greater => (PoolName::Green, green),
            std::cmp::Ordering::Less => (PoolName::Blue, green.complement()),
            std::cmp::Ordering::Equal => return Ok(()),
        };
        let share = share.to_string();
        let fault = if entry.spec.pool(pool).is_empty() {
            validate::SpecFault::WeightToEmpty { pool, share }
        } else if !validate::has_ready(&entry.spec, pool) {
            validate::SpecFault::WeightToUnready { pool, share }
        } else {
            return self.check_healthy(&entry.spec, &entry.down, pool, &share);
        };
        let service = &entry.spec.name;
        Err(ControlError::Precondition(format!(
            "service {service:?}: {fault}"
        )))
    }

    pub(super) fn dead_man(
        &self,
        live: PoolName,
        after: Duration,
    ) -> Result<DeadMan, ControlError> {
        if after.is_zero() || after > MAX_REVERT_AFTER {
            return Err(ControlError::Invalid(format!(
                "revert after {} is out of range: write up to 30 days, as \"10m\"",
                duration::show(after)
            )));
        }
        let safe_threshold = live.all().threshold();
        let after_ms = (after.as_millis() as i64).max(1);
        Ok(DeadMan {
            image: DeadManImage {
                safe_threshold,
                deadline_ns: self.clock.boot_ns() + after.as_nanos() as u64,
            },
            stored: StoredDeadMan {
                safe_threshold,
                deadline_unix_ms: self.clock.unix_ms() + after_ms,
                after_ms,
            },
        })
    }

    pub(super) fn do_plan_weight(&self, change: &WeightChange) -> Result<Change, ControlError> {
        let census = self.census();
        let core = lock(&self.core);
        let entry = find(&core.services, &change.service)?;
        let (next, mut warnings) = self.shifted(entry, change)?;
        let before = entry.programmed_threshold(&*self.clock);
        let after = next.green.threshold();
        warnings.extend(big_shift(entry.spec.live, before, after));
        warnings.extend(unready_warning(entry, next.live, next.green));
        let carried = census.services.get(&entry.id).copied().unwrap_or_default();
        let unchanged = next == entry.split();
        let mut details = Vec::new();
        if !unchanged {
            details.push(format!("green: {} -> {}", entry.spec.green, next.green));
        }
        if next.cohorts_on != entry.spec.cohorts_on {
            let word = |on| if on { "on" } else { "suspended" };
            details.push(format!(
                "cohorts: {} -> {}; how many clients come from their prefixes is not known",
                word(entry.spec.cohorts_on),
                word(next.cohorts_on)
            ));
        }
        if let Some(after) = change.revert_after
            && next.dead_man.is_some()
        {
            details.push(format!(
                "unless confirmed, {} gets everything again after {}",
                entry.spec.live,
                duration::show(after)
            ));
        } else if entry.dead_man.is_some() {
            details.push("the armed dead-man is taken out".to_owned());
        }
        Ok(Change {
            service: change.service.clone(),
            action: if unchanged { "unchanged" } else { "update" },
            details,
            moved_share: threshold_moved(before, after),
            flows_that_stay: carried[0] + carried[1],
            warnings,
        })
    }

    pub(super) fn do_confirm(
        &self,
        name: &str,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let mut core = lock(&self.core);
        if self.record_passed_dead_man(&mut core, name) {
            return Err(ControlError::Precondition(format!(
                "service {name:?}: the deadline has passed and the live pool has everything again; shift once more if the weight shall be kept"
            )));
        }
        let entry = find(&core.services, name)?;
        check_etag(entry, context)?;
        Self::check_no_rollout(&core, name, &context.actor)?;
        self.check_frozen(&core, name)?;
        let write = SplitWrite {
            next: Split {
                dead_man: None,
                ..entry.split()
            },
            action: "confirm",
            durability: Durability::Required,
            warnings: Vec::new(),
        };
        self.write_split(&mut core, name, write, context)
    }

    pub(super) fn do_rollback(
        &self,
        name: &str,
        to: u32,
        cut: Option<CutRate>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let mut core = lock(&self.core);
        self.record_passed_dead_man(&mut core, name);
        if to != 0 && !context.validate_only {
            // One that cannot be gone back to ends nothing.
            earlier_split(&core, find(&core.services, name)?, to)?;
            // Its own way back comes first, and then the generation that is asked for.
            self.rollout_taken_back(&mut core, name, &context.actor, &context.reason);
        }
        let entry = find(&core.services, name)?;
        let (next, mut warnings) = if to == 0 {
            match Self::rollout_way_back(&core, entry) {
                Some(next) => (next, Vec::new()),
                None => self.good_split(entry),
            }
        } else {
            (earlier_split(&core, entry, to)?, Vec::new())
        };
        warnings.extend(unready_warning(entry, next.live, next.green));
        warnings.extend(suspended_warning(entry));
        let write = SplitWrite {
            next,
            action: "rollback",
            durability: Durability::Wanted,
            warnings,
        };
        let mut receipt = self.write_split(&mut core, name, write, context)?;
        if !context.validate_only {
            if let Some(rate) = cut.or_else(|| pace_of_rollout(&core, name)) {
                self.cut_after_rollback(&mut core, &mut receipt, rate, context);
            }
            self.rollout_taken_back(&mut core, name, &context.actor, &context.reason);
        }
        Ok(receipt)
    }

    /// Everything to the live pool; to the former one within the bake time.
    pub(super) fn good_split(&self, entry: &Entry) -> (Split, Vec<String>) {
        let mut warnings = Vec::new();
        let bake_ms = self.settings.bake.as_millis() as i64;
        let mut live = entry.spec.live;
        let mut promoted = entry.promoted;
        if let Some(Promoted { former, at_unix_ms }) = entry.promoted
            && self.clock.unix_ms() - at_unix_ms < bake_ms
        {
            if entry.spec.pool(former).is_empty() {
                warnings.push(format!(
                    "{former} was live before the promote but has no backend any more: {live} stays live"
                ));
            } else {
                live = former;
            }
            promoted = None;
        }
        let next = Split {
            promoted,
            ..entry.way_back(live)
        };
        (next, warnings)
    }

    pub(super) fn do_promote(
        &self,
        name: &str,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let mut core = lock(&self.core);
        self.record_passed_dead_man(&mut core, name);
        let entry = find(&core.services, name)?;
        check_etag(entry, context)?;
        Self::check_no_rollout(&core, name, &context.actor)?;
        self.check_frozen(&core, name)?;
        self.promote_split(&mut core, name, context)
    }

    /// The candidate takes everything and becomes live.
    pub(super) fn promote_split(
        &self,
        core: &mut Core,
        name: &str,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let entry = find(&core.services, name)?;
        let former = entry.spec.live;
        let live = former.other();
        let mut warnings = Vec::new();
        if entry.spec.green.threshold() == former.all().threshold() {
            warnings.push(format!(
                "{live} had no new flows before this promote: it was not tried under traffic"
            ));
        }
        let mut spec = entry.spec.clone();
        (spec.live, spec.green) = (live, live.all());
        if adoption(&spec, entry.translated) == "refused" {
            warnings.push(format!("adoption: {}", adoption_meaning("refused")));
        }
        spec.live = former;
        warnings.extend(suspended_warning(entry));
        validate::split(&spec).map_err(|error| ControlError::Precondition(error.to_string()))?;
        if entry.spec.green.threshold() != live.all().threshold() {
            self.check_healthy(&entry.spec, &entry.down, live, "100%")?;
        }
        let write = SplitWrite {
            next: Split {
                promoted: Some(Promoted {
                    former,
                    at_unix_ms: self.clock.unix_ms(),
                }),
                ..entry.way_back(live)
            },
            action: "promote",
            durability: Durability::Required,
            warnings,
        };
        self.write_split(core, name, write, context)
    }

    /// A passed dead-man becomes a rollback; true if there was one. If the
    /// kernel refuses, the safe threshold holds all the same, and it is tried again.
    /// So does a breaker that tripped, which every write has to know of as well.
    pub(super) fn record_passed_dead_man(&self, core: &mut Core, name: &str) -> bool {
        self.record_trip(core, name);
        let Some(entry) = core.services.get(name) else {
            return false;
        };
        let Some(dead_man) = entry
            .dead_man
            .filter(|_| entry.dead_man_passed(&*self.clock))
        else {
            return false;
        };
        let after = Duration::from_millis(dead_man.stored.after_ms.max(0) as u64);
        let reason = format!("not confirmed within {}", duration::show(after));
        let write = SplitWrite {
            next: entry.way_back(entry.spec.live),
            action: "rollback",
            durability: Durability::Wanted,
            warnings: Vec::new(),
        };
        let context = own_context("dead-man", reason);
        if let Err(error) = self.write_split(core, name, write, &context) {
            tracing::warn!(service = name, %error, "recording a passed dead-man failed");
        } else {
            self.cut_of_rollout(core, name, &context);
            self.rollout_taken_back(core, name, &context.actor, &context.reason);
        }
        true
    }
}

/// Whether cohorts shall be in force after a shift.
fn cohorts_wanted(entry: &Entry, asked: Option<bool>) -> Result<bool, ControlError> {
    let service = &entry.spec.name;
    let Some(on) = asked else {
        return Ok(entry.spec.cohorts_on);
    };
    if entry.spec.cohorts.is_empty() {
        return Err(ControlError::Precondition(format!(
            "service {service:?} has no cohorts to put in force or to suspend: apply it with [[service.cohort]] tables first"
        )));
    }
    let mut spec = entry.spec.clone();
    spec.cohorts_on = on;
    match cohort::pools(&spec) {
        Ok(()) => Ok(on),
        Err((_, fault)) => Err(ControlError::Precondition(format!(
            "service {service:?}: {fault}"
        ))),
    }
}

/// What becomes of cohorts where the live pool gets everything.
fn suspended_warning(entry: &Entry) -> Option<String> {
    let were_on = !entry.spec.active_cohorts().is_empty();
    were_on.then(|| {
        "the cohorts are suspended, for the live pool has everything now: `shifter apply` or `shifter shift --cohorts on` puts them in force again".to_owned()
    })
}

fn green_weight(live: PoolName, share: ShareOf) -> Weight {
    match (share, live) {
        (ShareOf::Green(weight), _) | (ShareOf::Candidate(weight), PoolName::Blue) => weight,
        (ShareOf::Blue(weight), _) | (ShareOf::Candidate(weight), PoolName::Green) => {
            weight.complement()
        }
    }
}

/// The split of an earlier generation, if its pools can still carry it.
fn earlier_split(core: &Core, entry: &Entry, to: u32) -> Result<Split, ControlError> {
    let name = &entry.spec.name;
    let internal = |error: crate::store::StoreError| ControlError::Internal(error.to_string());
    let Some((live, green)) = core.store.split(name, to).map_err(internal)? else {
        let nearest = core.store.nearest_generations(name, to).map_err(internal)?;
        let nearest: Vec<String> = nearest.iter().map(u32::to_string).collect();
        return Err(ControlError::Invalid(format!(
            "service {name:?} has no generation {to}: the nearest known are {}",
            nearest.join(", ")
        )));
    };
    for (pool, weight) in [
        (PoolName::Blue, green.complement()),
        (PoolName::Green, green),
    ] {
        if entry.spec.pool(pool).is_empty() && (weight.threshold() > 0 || pool == live) {
            return Err(ControlError::Precondition(format!(
                "service {name:?}: generation {to} gave {weight} to {pool}, which has no backend any more: add one, or roll back without a generation"
            )));
        }
    }
    // For everybody, whatever generation it goes to: cohorts are suspended.
    Ok(Split {
        green,
        ..entry.way_back(live)
    })
}

/// A pool with a share and no ready backend.
pub(super) fn unready_warning(entry: &Entry, live: PoolName, green: Weight) -> Option<String> {
    [
        (PoolName::Blue, green.complement()),
        (PoolName::Green, green),
    ]
    .into_iter()
    .find(|(pool, weight)| weight.threshold() > 0 && !validate::has_ready(&entry.spec, *pool))
    .map(|(pool, weight)| {
        let role = if pool == live { "the live pool " } else { "" };
        format!(
            "none of the backends of {role}{pool} is ready, but it has {weight} of new flows: they go to the other pool if that has a ready backend"
        )
    })
}

/// More than half leaves the live pool at once.
pub(super) fn big_shift(live: PoolName, before: u64, after: u64) -> Option<String> {
    let taken = match live {
        PoolName::Blue => after.saturating_sub(before),
        PoolName::Green => before.saturating_sub(after),
    };
    let share = crate::model::weight::threshold_share(taken);
    (share > 0.5).then(|| {
        format!(
            "this takes {:.4}% of new flows from the live pool {live} at once: smaller steps, or revert_after, make a mistake cheaper",
            share * 100.0
        )
    })
}
