//! What writes have in common: finding the service, its etag, the receipt's end, the
//! audit, and what a failed store means.

use std::{collections::BTreeMap, time::Instant};

use super::{
    controller::{ControlError, Receipt, WriteContext},
    entry::{Entry, describe},
};
use crate::{
    model::ServiceSpec,
    store::{Audit, StoreError},
};

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
