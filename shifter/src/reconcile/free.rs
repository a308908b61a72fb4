//! Ids that nothing names any more are freed, to be given out again.

use super::reconciler::{Reconciler, lock};
use crate::datapath::{BackendId, ServiceId};

impl Reconciler {
    /// Frees service and backend ids that neither a service nor a flow names.
    /// Flows of a deleted service go at once.
    ///
    /// A packet that read a record before it was replaced may still make an
    /// entry under it: the scan that counts is made after a grace period.
    pub(super) fn free_unused(&self) {
        let (services, mut backends) = {
            let core = lock(&self.core);
            // Which backends the rings of an orphan name is not known.
            if core.has_unknown() {
                return;
            }
            (core.ids.retired.clone(), core.backends.idle())
        };
        if services.is_empty() && backends.is_empty() {
            return;
        }
        if !services.is_empty() {
            let freed = self.datapath.free_flows(&services);
            if freed > 0 {
                tracing::info!(flows = freed, "freed the flows of deleted services");
            }
        }
        // Most of what waits here waits for flows: the grace period, which
        // takes some ms, is for what could go.
        let named = self.datapath.named_ids();
        backends.retain(|(id, _)| !named.backends.contains(id));
        if services.is_empty() && backends.is_empty() {
            return;
        }
        if let Err(error) = self.datapath.grace_period() {
            tracing::warn!(%error, "ids cannot be used again yet");
            return;
        }
        let named = self.datapath.named_ids();
        for id in services {
            if !named.services.contains(&id) {
                self.free_service(id);
            }
        }
        for (id, since) in backends {
            if !named.backends.contains(&id) {
                self.free_backend(id, since);
            }
        }
    }

    fn free_service(&self, id: ServiceId) {
        lock(&self.observer).forget(id);
        lock(&self.core).ids.release(id);
    }

    /// `since`: as the slot was when the flows were counted.
    pub(super) fn free_backend(&self, id: BackendId, since: u64) {
        let mut core = lock(&self.core);
        // A write may have named it since, even if another took that back:
        // flows may have begun in between. Or one put an orphan back.
        let slot = core.backends.get(id);
        let in_use = slot.is_none_or(|slot| slot.in_use() || slot.named != since);
        if in_use || core.has_unknown() {
            return;
        }
        match self.datapath.delete_backend(id) {
            Ok(()) => core.backends.release(id),
            Err(error) => tracing::debug!(backend = id, %error, "not freed yet"),
        }
    }
}
