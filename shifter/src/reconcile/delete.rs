//! Delete: the VIP goes out of service.

use super::{
    apply::slots,
    controller::{ControlError, Receipt, WriteContext},
    entry::Entry,
    reconciler::{Reconciler, lock},
    write::{audit, check_etag, elapsed_ns, find, nothing_changed, store_failed},
};
use crate::{
    datapath::{FlowFilter, LONG_IDLE_S, ServiceId, idle_note, plural},
    store::{Commit, StoreError},
};

/// Flows looked at one by one; beyond, the count is a lower bound.
const LOOKED_AT: usize = 65_536;

impl Reconciler {
    pub(super) fn do_delete(
        &self,
        name: &str,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        let (id, vip_backend) = {
            let core = lock(&self.core);
            let entry = find(&core.services, name)?;
            check_etag(entry, context)?;
            Self::check_no_rollout(&core, name, &context.actor)?;
            self.check_frozen(&core, name)?;
            (entry.id, entry.vip_backend)
        };
        let mut receipt = Receipt {
            service: name.to_owned(),
            ..Receipt::default()
        };
        // The pass over the table is made without the lock.
        if let Some(text) = self.flows_in_the_way(id, vip_backend) {
            let text = format!("service {name:?} {text}");
            if !context.force {
                return Err(ControlError::Precondition(format!(
                    "{text}: shift to the pool that holds the VIP and wait until they have ended, or force it"
                )));
            }
            receipt.warnings.push(text);
        }
        let mut core = lock(&self.core);
        let core = &mut *core;
        let entry = find(&core.services, name)?.clone();
        check_etag(&entry, context)?;
        Self::check_no_rollout(core, name, &context.actor)?;
        self.check_frozen(core, name)?;
        receipt.generation = entry.generation;
        receipt.etag = entry.etag();
        if context.validate_only {
            return Ok(receipt);
        }
        let noted = [(name, None)];
        core.store.note_pending(&noted).map_err(nothing_changed)?;
        self.datapath.delete_service(entry.id)?;
        receipt.programmed_ns = elapsed_ns(context);
        let at_unix_ms = self.clock.unix_ms();
        let mut record = audit(at_unix_ms, context, &entry, "delete", &entry.describe());
        record.after = String::new();
        let commit = Commit {
            generation: core.generation,
            at_unix_ms,
            delete: vec![name],
            audit: vec![record],
            ..Commit::default()
        };
        if let Err(error) = core.store.commit(&commit) {
            return Err(self.put_back(core, entry, &error));
        }
        core.services.remove(name);
        // A rollout that is over goes with its next round, which makes its report.
        core.frozen.remove(name);
        let vip = entry.spec.vip;
        core.vips.remove(&(vip.addr, vip.protocol));
        core.backends.unname(entry.id, &entry.named());
        for id in entry.named() {
            if let Err(error) = core.backends.sync(id, &*self.datapath) {
                tracing::warn!(backend = id, %error, "marking a removed backend failed");
            }
        }
        self.datapath.drop_cohorts(entry.cohort_set);
        core.ids.retired.insert(entry.id);
        core.ring_slots -= slots(&entry);
        lock(&self.observer).forget(entry.id);
        self.events.push(name, true);
        tracing::info!(service = name, actor = context.actor, "deleted");
        receipt.total_ns = elapsed_ns(context);
        Ok(receipt)
    }

    /// Flows that a delete would cut: those on backends other than the VIP.
    fn flows_in_the_way(&self, id: ServiceId, vip_backend: u16) -> Option<String> {
        let filter = FlowFilter {
            service: Some(id),
            limit: LOOKED_AT,
            ..FlowFilter::default()
        };
        let (rows, matched) = self.datapath.flows(&filter);
        let (mut cut, mut idle) = ([0u64; 2], 0);
        for row in &rows {
            if row.backend != vip_backend && !matches!(row.state, "closing" | "reset") {
                cut[row.pool.index()] += 1;
                idle += u64::from(row.idle_s > f64::from(LONG_IDLE_S));
            }
        }
        let sum = cut[0] + cut[1];
        let least = if matched > rows.len() as u64 {
            "at least "
        } else {
            ""
        };
        (sum > 0).then(|| {
            format!(
                "carries {least}{}{} on backends other than the VIP (blue {}, green {}), which would be cut",
                plural(sum, "flow"),
                idle_note(idle),
                cut[0],
                cut[1]
            )
        })
    }

    fn put_back(
        &self,
        core: &mut super::reconciler::Core,
        mut entry: Entry,
        error: &StoreError,
    ) -> ControlError {
        let name = entry.spec.name.clone();
        entry.dirty = true;
        let outcome = match self.publish(&mut core.generation, &mut entry, true) {
            Ok(()) => "the service was put back".to_owned(),
            Err(second) => format!("putting the service back failed too ({second})"),
        };
        core.services.insert(name, entry);
        store_failed(error, &outcome)
    }
}
