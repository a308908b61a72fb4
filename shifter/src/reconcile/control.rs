//! The reconciler as the API's controller.

use std::net::IpAddr;

use super::{
    controller::{
        Change, ControlError, Controller, Explanation, FlowQuery, FlowView, InfoView, Receipt,
        ServiceEvent, ServiceView, WeightChange, WriteContext,
    },
    reconciler::{Reconciler, find, lock},
};
use crate::model::{Protocol, ServiceSpec, Vip};

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
        self.do_delete(name, context)
    }

    fn set_weight(
        &self,
        change: &WeightChange,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.do_set_weight(change, context)
    }

    fn confirm(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.do_confirm(name, context)
    }

    fn rollback(
        &self,
        name: &str,
        to: u32,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError> {
        self.do_rollback(name, to, context)
    }

    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError> {
        self.do_promote(name, context)
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
