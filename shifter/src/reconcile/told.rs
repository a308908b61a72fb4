//! Events: what is told here and listed from the store, without the lock that a
//! rollback needs.

use std::sync::atomic::Ordering;

use super::{
    controller::ControlError,
    reconciler::{Core, Reconciler, lock},
};
use crate::datapath::plural;
use crate::store::{Audit, Event, EventQuery, Events};

impl Reconciler {
    /// Tells of something that happened. Waits for nothing.
    pub(super) fn tell_event(&self, kind: &str, what: &str, service: &str, text: String) {
        self.event_queue.push(Event {
            at_unix_ms: self.clock.unix_ms(),
            kind: kind.to_owned(),
            what: what.to_owned(),
            service: service.to_owned(),
            text,
            ..Event::default()
        });
    }

    /// What was there when this began, in words.
    pub fn found(&self) -> String {
        match self.adopted {
            0 => "no service was in force".to_owned(),
            count => format!("adopted {} in force", plural(count as u64, "service")),
        }
    }

    /// Stores what was told; what cannot be stored now waits on. The agent calls it
    /// many times a second.
    pub fn flush_events(&self) {
        if self.event_queue.is_empty() {
            return;
        }
        {
            // A file that is not whole any more is not written to.
            let mut core = lock(&self.core);
            if core.store.problem().is_some() || core.store.check().is_err() {
                return;
            }
        }
        // Without a file of its own the next write of the store takes them along.
        if let Some(file) = &mut *lock(&self.event_file)
            && let Err(error) = file.flush(&self.event_queue)
        {
            tracing::debug!(%error, "events wait to be stored");
        }
    }

    /// Events in their order; those that are not stored yet at the end. Writes nothing:
    /// an agent that has made way for another answers this too.
    pub(super) fn do_events(&self, query: &EventQuery) -> Result<Events, ControlError> {
        let file = lock(&self.event_file);
        let found = file.as_ref().map(|file| file.events(query));
        drop(file);
        let found = found.unwrap_or_else(|| lock(&self.core).store.events(query));
        let mut found = found.map_err(|error| ControlError::Internal(error.to_string()))?;
        if query.after.is_none() {
            let unstored = lock(&self.core).unstored.clone();
            let waiting = unstored.into_iter().map(change);
            let waiting = waiting.chain(self.event_queue.waiting());
            found
                .events
                .extend(waiting.filter(|it| is_asked(it, query)));
            let beyond = found.events.len().saturating_sub(query.limit as usize);
            found.events.drain(..beyond);
        }
        Ok(found)
    }

    /// Tells once that the store fails, and once that it works again.
    pub(super) fn tell_of_store(&self, core: &Core) {
        let problem = core.store.problem();
        let failed = self.store_failed.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(why) if !failed => {
                let text = format!("changes are not durable: {why}");
                self.tell_event("agent", "store failed", "", text);
            }
            None if failed => {
                let text = "changes are stored again".to_owned();
                self.tell_event("agent", "store works", "", text);
            }
            _ => {}
        }
    }
}

/// A record of the audit that is in force and not stored yet.
fn change(audit: Audit) -> Event {
    Event {
        number: 0,
        at_unix_ms: audit.at_unix_ms,
        kind: "change".to_owned(),
        what: audit.action,
        service: audit.service,
        actor: audit.actor,
        text: audit.reason,
        before: audit.before,
        after: audit.after,
        generation: audit.generation,
        rollout: 0,
    }
}

fn is_asked(event: &Event, query: &EventQuery) -> bool {
    let of_service = query.service.is_empty()
        || event.service == query.service
        || event.service == super::freeze::ALL;
    let of_kind = query.kind.is_empty() || [&event.kind, &event.what].contains(&&query.kind);
    of_service && of_kind && event.at_unix_ms >= query.since_unix_ms
}
