//! The reconciler as the API's controller.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
    sync::{Condvar, Mutex, PoisonError},
};

use super::{
    controller::{
        AuditQuery, Change, ControlError, Controller, DrainEnd, EventQuery, Events, Explanation,
        FlowQuery, FlowView, InfoView, NamedBackends, Receipt, Recorded, ReportFormat,
        RolloutCommand, RolloutFigures, RolloutView, ServiceEvent, ServiceView, StartRollout,
        WeightChange, WriteContext,
    },
    entry::hash_text,
    reconciler::{Reconciler, lock},
    write::find,
};
use crate::model::{CutRate, Protocol, ServiceSpec, Vip, file};

/// Answers that are remembered for a request that comes again…
const REMEMBERED: usize = 256;
/// …as long as they have no more receipts than this between them. The latest
/// answer is remembered whatever its size.
const REMEMBERED_RECEIPTS: usize = 16_384;

/// What a write answers: the changes are of an apply.
type Answer = (Vec<Receipt>, Vec<Change>);

/// Answers to the latest requests that had an id.
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
    answers: VecDeque<(String, Answer)>,
    /// Receipts of all of them.
    receipts: usize,
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
    fn begin(&self, key: String) -> Result<Answer, Running<'_>> {
        let mut requests = lock(&self.requests);
        #[cfg(test)]
        {
            requests.begun += 1;
        }
        loop {
            let known = |(k, answer): &(String, Answer)| (*k == key).then(|| answer.clone());
            if let Some(answer) = requests.answers.iter().find_map(known) {
                return Ok(answer);
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
    fn answer(&self, answer: &Answer) {
        let mut requests = lock(&self.answered.requests);
        requests.receipts += answer.0.len();
        let remembered = (self.key.clone(), answer.clone());
        requests.answers.push_back(remembered);
        while requests.answers.len() > REMEMBERED
            || requests.receipts > REMEMBERED_RECEIPTS && requests.answers.len() > 1
        {
            if let Some((_, (receipts, _))) = requests.answers.pop_front() {
                requests.receipts -= receipts.len();
            }
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
        let write = || write().map(|receipt| (vec![receipt], Vec::new()));
        let (receipts, _) = self.once_of_all(|| format!("{verb} {name}"), context, write)?;
        let receipt = receipts.into_iter().next();
        receipt.ok_or_else(|| ControlError::Internal(format!("{verb} {name} had no receipt")))
    }

    /// The same for what has several receipts; `what` is requested.
    fn once_of_all(
        &self,
        what: impl FnOnce() -> String,
        context: &WriteContext,
        write: impl FnOnce() -> Result<Answer, ControlError>,
    ) -> Result<Answer, ControlError> {
        if context.request_id.is_empty() || context.validate_only {
            return write();
        }
        let key = format!("{} {}", what(), context.request_id);
        let running = match self.answered.begin(key) {
            Ok(answer) => return Ok(answer),
            Err(running) => running,
        };
        let answer = write()?;
        running.answer(&answer);
        Ok(answer)
    }

    /// The same for what answers with a rollout: one that comes again is shown it as
    /// it is then.
    fn once_shown(
        &self,
        what: impl FnOnce() -> String,
        name: &str,
        context: &WriteContext,
        write: impl FnOnce() -> Result<RolloutView, ControlError>,
    ) -> Result<RolloutView, ControlError> {
        let mut shown = None;
        self.once_of_all(what, context, || {
            shown = Some(write()?);
            Ok((Vec::new(), Vec::new()))
        })?;
        match shown {
            Some(view) => Ok(view),
            None => self.do_get_rollout(name, 0),
        }
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
        // Other services under an id that was used are another request.
        let what = || {
            let texts: Vec<String> = specs.iter().map(file::spec_to_json).collect();
            format!("apply {:016x}", hash_text(&texts.join("\n")))
        };
        self.once_of_all(what, context, || self.do_apply(specs, context))
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
        cut: Option<CutRate>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.once("rollback", name, context, || {
            self.do_rollback(name, to, cut, context)
        })
    }

    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.once("promote", name, context, || self.do_promote(name, context))
    }

    fn start_rollout(
        &self,
        start: &StartRollout,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        // Another description under an id that was used is another request.
        let what = || {
            let spec = hash_text(start.spec.as_deref().unwrap_or_default());
            format!("rollout start {} {spec:016x}", start.service)
        };
        self.once_shown(what, &start.service, context, || {
            self.do_start_rollout(start, context)
        })
    }

    fn command_rollout(
        &self,
        name: &str,
        command: RolloutCommand,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        let what = || format!("rollout {command:?} {name}");
        self.once_shown(what, name, context, || {
            self.do_command_rollout(name, command, context)
        })
    }

    fn rollout(&self, name: &str, id: u64) -> Result<RolloutView, ControlError> {
        self.do_get_rollout(name, id)
    }

    fn rollouts(&self, name: &str, limit: u32) -> Result<Vec<RolloutView>, ControlError> {
        self.do_list_rollouts(name, limit)
    }

    fn rollout_report(
        &self,
        name: &str,
        id: u64,
        format: ReportFormat,
    ) -> Result<(u64, String), ControlError> {
        self.do_rollout_report(name, id, format)
    }

    fn rollout_figures(&self) -> Result<RolloutFigures, ControlError> {
        let core = lock(&self.core);
        let figures = core.store.rollout_figures();
        figures.map_err(|error| ControlError::Internal(error.to_string()))
    }

    fn freeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError> {
        self.do_freeze(name, context)
    }

    fn unfreeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError> {
        self.do_unfreeze(name, context)
    }

    fn drain(
        &self,
        named: &NamedBackends,
        drain: Option<DrainEnd>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.once("drain", &named.service, context, || {
            self.do_drain(named, drain, context)
        })
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

    fn audit(&self, query: &AuditQuery) -> Result<Vec<Recorded>, ControlError> {
        let core = lock(&self.core);
        let records = core.store.audit(query);
        records.map_err(|error| ControlError::Internal(error.to_string()))
    }

    fn events(&self, query: &EventQuery) -> Result<Events, ControlError> {
        self.do_events(query)
    }

    fn events_stored(&self) -> tokio::sync::watch::Receiver<u64> {
        self.event_queue.stored()
    }

    fn store_problem(&self) -> Option<String> {
        lock(&self.core).store.problem().map(str::to_owned)
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
