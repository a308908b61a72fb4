//! The reconciler as the API's controller.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
    sync::{Condvar, Mutex, PoisonError},
};

use super::{
    controller::{
        Change, ControlError, Controller, Explanation, FlowQuery, FlowView, InfoView, Receipt,
        ServiceEvent, ServiceView, WeightChange, WriteContext,
    },
    reconciler::{Reconciler, find, lock},
};
use crate::model::{Protocol, ServiceSpec, Vip};

/// Answers that are remembered for a request that comes again.
const REMEMBERED: usize = 256;

/// Receipts of the latest requests that had an id.
#[derive(Default)]
pub struct Answered {
    requests: Mutex<Requests>,
    /// A request has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Requests {
    running: HashSet<String>,
    #[cfg(test)]
    begun: u64,
    answers: VecDeque<(String, Receipt)>,
}

/// A request that runs; others under its key wait until this goes.
struct Running<'a> {
    answered: &'a Answered,
    key: String,
}

impl Answered {
    /// Requests that came, answered or not.
    #[cfg(test)]
    pub(super) fn begun(&self) -> u64 {
        lock(&self.requests).begun
    }

    /// The answer that a request had, or the right to carry it out. While
    /// another one carries it out, waits for that one's answer.
    fn begin(&self, key: String) -> Result<Receipt, Running<'_>> {
        let mut requests = lock(&self.requests);
        #[cfg(test)]
        {
            requests.begun += 1;
        }
        loop {
            let known = |(k, receipt): &(String, Receipt)| (*k == key).then(|| receipt.clone());
            if let Some(receipt) = requests.answers.iter().find_map(known) {
                return Ok(receipt);
            }
            if requests.running.insert(key.clone()) {
                return Err(Running {
                    answered: self,
                    key,
                });
            }
            let waited = self.ended.wait(requests);
            requests = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Running<'_> {
    /// Remembers the answer. Without it the next request is carried out.
    fn answer(&self, receipt: &Receipt) {
        let mut requests = lock(&self.answered.requests);
        let answer = (self.key.clone(), receipt.clone());
        requests.answers.push_back(answer);
        if requests.answers.len() > REMEMBERED {
            requests.answers.pop_front();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.answered.requests).running.remove(&self.key);
        self.answered.ended.notify_all();
    }
}

impl Reconciler {
    /// A request that comes again under the same id (AIP-155) gets the first
    /// answer: a promote, sent twice over a broken connection, is one promote.
    fn once(
        &self,
        verb: &str,
        name: &str,
        context: &WriteContext,
        write: impl FnOnce() -> Result<Receipt, ControlError>,
    ) -> Result<Receipt, ControlError> {
        if context.request_id.is_empty() || context.validate_only {
            return write();
        }
        let key = format!("{verb} {name} {}", context.request_id);
        let running = match self.answered.begin(key) {
            Ok(receipt) => return Ok(receipt),
            Err(running) => running,
        };
        let receipt = write()?;
        running.answer(&receipt);
        Ok(receipt)
    }
}

impl Controller for Reconciler {
    fn list(&self) -> Result<Vec<ServiceView>, ControlError> {
        self.do_list()
    }

    fn get(&self, name: &str) -> Result<ServiceView, ControlError> {
        self.do_get(name)
    }

    fn apply(
        &self,
        specs: &[ServiceSpec],
        context: &WriteContext,
    ) -> Result<(Vec<Receipt>, Vec<Change>), ControlError> {
        self.do_apply(specs, context)
    }

    fn plan(&self, specs: &[ServiceSpec]) -> Result<Vec<Change>, ControlError> {
        self.do_plan(specs)
    }

    fn plan_weight(&self, change: &WeightChange) -> Result<Change, ControlError> {
        self.do_plan_weight(change)
    }

    fn delete(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.once("delete", name, context, || self.do_delete(name, context))
    }

    fn set_weight(
        &self,
        change: &WeightChange,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.once("shift", &change.service, context, || {
            self.do_set_weight(change, context)
        })
    }

    fn confirm(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.once("confirm", name, context, || self.do_confirm(name, context))
    }

    fn rollback(
        &self,
        name: &str,
        to: u32,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.once("rollback", name, context, || {
            self.do_rollback(name, to, context)
        })
    }

    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.once("promote", name, context, || self.do_promote(name, context))
    }

    fn explain(
        &self,
        name: &str,
        client: IpAddr,
        port: Option<u16>,
    ) -> Result<Explanation, ControlError> {
        self.do_explain(name, client, port)
    }

    fn flows(&self, query: &FlowQuery) -> Result<(Vec<FlowView>, u64), ControlError> {
        self.do_flows(query)
    }

    fn info(&self) -> Result<InfoView, ControlError> {
        self.do_info()
    }

    fn first_flow(&self, name: &str, generation: u32) -> Result<Option<(u32, u64)>, ControlError> {
        self.do_first_flow(name, generation)
    }

    fn events_since(&self, since: u64) -> Option<Vec<ServiceEvent>> {
        self.events.since(since)
    }

    fn version(&self) -> tokio::sync::watch::Receiver<u64> {
        self.events.version()
    }

    fn vip(&self, name: &str) -> Result<(Vip, Protocol), ControlError> {
        let core = lock(&self.core);
        let vip = find(&core.services, name)?.spec.vip;
        Ok((vip, vip.protocol))
    }
}
