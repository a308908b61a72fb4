//! What writes have in common: finding the service, its etag, the way of a change of
//! the split, the receipt's end, the audit, and what a failed store means.

use std::{collections::BTreeMap, time::Instant};

use super::{
    controller::{ControlError, Receipt, WriteContext},
    entry::{Entry, Split, describe, threshold_moved},
    reconciler::{Core, Reconciler},
};
use crate::{
    model::{ServiceSpec, weight::threshold_share},
    store::{Audit, Commit, Store, StoreError},
};

/// Audit records kept until the store can be written again.
const UNSTORED: usize = 1_000;

/// Whether an undurable write stays in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Durability {
    Required,
    Wanted,
}

/// A change of one service's split.
pub(super) struct SplitWrite {
    pub next: Split,
    pub action: &'static str,
    pub durability: Durability,
    pub warnings: Vec<String>,
}

impl Reconciler {
    /// Publishes a split, then makes it last; ARCHITECTURE says why in this order.
    pub(super) fn write_split(
        &self,
        core: &mut Core,
        name: &str,
        write: SplitWrite,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let Core {
            store,
            services,
            generation,
            unstored,
            ..
        } = core;
        let entry = find_mut(services, name)?;
        let before = entry.split();
        let mut receipt = Receipt {
            service: name.to_owned(),
            moved_share: threshold_moved(
                entry.programmed_threshold(&*self.clock),
                write.next.green.threshold(),
            ),
            green_share: threshold_share(write.next.green.threshold()),
            unchanged: before == write.next,
            warnings: write.warnings,
            ..Receipt::default()
        };
        if receipt.unchanged || context.validate_only {
            return Ok(finish(receipt, entry, context));
        }
        if write.durability == Durability::Required {
            store.check().map_err(nothing_changed)?;
        }
        let described = entry.describe();
        entry.set_split(write.next);
        if let Err(error) = self.publish(generation, entry, false) {
            entry.set_split(before);
            return Err(error.into());
        }
        entry.written = entry.generation;
        receipt.programmed_ns = elapsed_ns(context);
        let at_unix_ms = self.clock.unix_ms();
        let commit = Commit {
            generation: *generation,
            at_unix_ms,
            rows: vec![entry.row(entry.dirty)],
            delete: Vec::new(),
            audit: vec![audit(at_unix_ms, context, entry, write.action, &described)],
        };
        match (store.commit(&commit), write.durability) {
            (Ok(()), _) => entry.dirty = false,
            (Err(error), Durability::Wanted) => {
                keep_records(unstored, commit.audit);
                entry.dirty = true;
                tracing::warn!(service = name, %error, "not durable");
                receipt.warnings.push(not_durable(store, &error));
            }
            (Err(error), Durability::Required) => {
                return Err(self.take_back(generation, entry, before, &error));
            }
        }
        tracing::info!(
            service = name,
            action = write.action,
            generation = entry.generation,
            green = %entry.spec.green,
            live = %entry.spec.live,
            actor = context.actor,
            reason = context.reason,
            "split changed"
        );
        self.events.push(name, false);
        Ok(finish(receipt, entry, context))
    }

    /// The kernel gets the split from before back, under a new generation.
    fn take_back(
        &self,
        generation: &mut u32,
        entry: &mut Entry,
        before: Split,
        error: &StoreError,
    ) -> ControlError {
        let after = entry.split();
        entry.dirty = true;
        entry.set_split(before);
        let outcome = match self.publish(generation, entry, false) {
            Ok(()) => {
                entry.written = entry.generation;
                "the change was taken back".to_owned()
            }
            Err(second) => {
                entry.set_split(after);
                format!("the change is in force, because taking it back failed too ({second})")
            }
        };
        self.events.push(&entry.spec.name, false);
        store_failed(error, &outcome)
    }
}

impl Core {
    /// Changes of a rollback that the store failed for: in force, and stored as soon
    /// as that works. The warning says so.
    pub(super) fn keep_unstored<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str>,
        records: Vec<Audit>,
        error: &StoreError,
    ) -> String {
        for name in names {
            if let Some(entry) = self.services.get_mut(name) {
                entry.dirty = true;
            }
            tracing::warn!(service = name, %error, "not durable");
        }
        keep_records(&mut self.unstored, records);
        not_durable(&self.store, error)
    }
}

fn keep_records(unstored: &mut Vec<Audit>, records: Vec<Audit>) {
    let room = UNSTORED.saturating_sub(unstored.len());
    unstored.extend(records.into_iter().take(room));
}

fn not_durable(store: &Store, error: &StoreError) -> String {
    let again = match store.refused() {
        None => "it is tried again every second",
        Some(_) => "nothing is stored until the agent is started with a good store",
    };
    format!("not durable: it is in force, but the store failed ({error}); {again}")
}

/// A write that the store refused before the kernel was asked.
pub(super) fn nothing_changed(error: StoreError) -> ControlError {
    store_failed(&error, "nothing was changed")
}

/// A failed store, and what became of the write.
pub(super) fn store_failed(error: &StoreError, outcome: &str) -> ControlError {
    let text = format!("{error}; {outcome}");
    if error.is_lasting() {
        ControlError::Precondition(text)
    } else {
        ControlError::Internal(text)
    }
}

/// The entry of a name.
pub(super) fn find<'a>(
    services: &'a BTreeMap<String, Entry>,
    name: &str,
) -> Result<&'a Entry, ControlError> {
    services.get(name).ok_or_else(|| not_found(services, name))
}

/// The entry of a name, to change it.
pub(super) fn find_mut<'a>(
    services: &'a mut BTreeMap<String, Entry>,
    name: &str,
) -> Result<&'a mut Entry, ControlError> {
    if !services.contains_key(name) {
        return Err(not_found(services, name));
    }
    services
        .get_mut(name)
        .ok_or_else(|| ControlError::Internal(format!("service {name:?} vanished")))
}

fn not_found(services: &BTreeMap<String, Entry>, name: &str) -> ControlError {
    const SHOWN: usize = 10;
    let mut known: Vec<&str> = services.keys().take(SHOWN).map(String::as_str).collect();
    let more = format!("… ({} in all)", services.len());
    match services.len() {
        0 => known.push("none yet"),
        count if count > SHOWN => known.push(&more),
        _ => {}
    }
    ControlError::NotFound {
        name: name.to_owned(),
        known: known.join(", "),
    }
}

/// Refuses unless the request's etag, if it has one, is the service's.
pub(super) fn check_etag(entry: &Entry, context: &WriteContext) -> Result<(), ControlError> {
    match &context.etag {
        Some(asked) if *asked != entry.etag() => Err(ControlError::Conflict {
            service: entry.spec.name.clone(),
            is: entry.etag(),
            asked: asked.clone(),
        }),
        _ => Ok(()),
    }
}

pub(super) fn elapsed_ns(context: &WriteContext) -> u64 {
    context.arrived.elapsed().as_nanos() as u64
}

/// Fills in what is known at the end.
pub(super) fn finish(mut receipt: Receipt, entry: &Entry, context: &WriteContext) -> Receipt {
    receipt.generation = entry.generation;
    receipt.etag = entry.etag();
    receipt.total_ns = elapsed_ns(context);
    receipt
}

pub(super) fn audit(
    at_unix_ms: i64,
    context: &WriteContext,
    entry: &Entry,
    action: &str,
    before: &str,
) -> Audit {
    audit_spec(
        at_unix_ms,
        context,
        &entry.spec,
        action,
        before,
        &entry.describe(),
        entry.generation,
    )
}

pub(super) fn audit_spec(
    at_unix_ms: i64,
    context: &WriteContext,
    spec: &ServiceSpec,
    action: &str,
    before: &str,
    after: &str,
    generation: u32,
) -> Audit {
    Audit {
        at_unix_ms,
        actor: context.actor.clone(),
        request_id: context.request_id.clone(),
        service: spec.name.clone(),
        action: action.to_owned(),
        reason: context.reason.clone(),
        before: before.to_owned(),
        after: after.to_owned(),
        generation,
    }
}

/// What the agent itself writes as.
pub(super) fn own_context(actor: &str, reason: String) -> WriteContext {
    WriteContext {
        arrived: Instant::now(),
        actor: actor.to_owned(),
        reason,
        request_id: String::new(),
        etag: None,
        force: false,
        validate_only: false,
    }
}

/// A spec's split in words, for audits of what has no entry yet.
pub(super) fn describe_spec(spec: &ServiceSpec) -> String {
    describe(spec, false)
}
