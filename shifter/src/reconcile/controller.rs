//! What the API can ask of the agent, in the words of the model.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use shifter_common::abi::{BackendCounters, PoolCounters};

use super::dropped::Drops;
use crate::{
    datapath::{Census, DatapathError, FlowRow, HookStatus, LimitUse, VerdictCount},
    model::{
        BackendSpec, CutRate, PoolName, Protocol, ServiceSpec, Vip, Weight, breaker::Breaker,
        signals::PoolSignals,
    },
};

pub use super::rollouts::RolloutView;
pub use super::standing::Standing;
pub use crate::store::{Audit, AuditQuery, Event, EventQuery, Events, Recorded, RolloutFigures};

/// Who asks, since when, and under which conditions.
#[derive(Clone, Debug)]
pub struct WriteContext {
    /// When the request arrived; receipts count from here.
    pub arrived: Instant,
    /// Whom the socket says it is: "uid 0 pid 4242".
    pub actor: String,
    pub reason: String,
    pub request_id: String,
    /// Refuse with [`ControlError::Conflict`] unless the service has this etag.
    pub etag: Option<String>,
    /// Go ahead where connections would be cut.
    pub force: bool,
    /// Check and plan; change nothing.
    pub validate_only: bool,
}

/// Answer to a write.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Receipt {
    pub service: String,
    pub generation: u32,
    pub etag: String,
    /// Share of the hash space whose owner changed, in `[0, 1]`.
    pub moved_share: f64,
    /// Share of green that is programmed now.
    pub green_share: f64,
    /// From arrival to publication in the kernel.
    pub programmed_ns: u64,
    /// From arrival to the answer, commit included.
    pub total_ns: u64,
    pub unchanged: bool,
    pub warnings: Vec<String>,
}

/// What an apply or plan changes in one service.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    pub service: String,
    /// "create", "update" or "unchanged".
    pub action: &'static str,
    /// One line each: `green: 5% -> 10%`.
    pub details: Vec<String>,
    pub moved_share: f64,
    pub flows_that_stay: u64,
    pub warnings: Vec<String>,
}

/// Which pool's share a weight names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareOf {
    Green(Weight),
    Blue(Weight),
    /// The pool that is not live.
    Candidate(Weight),
}

/// A change of one service's weight.
#[derive(Clone, PartialEq, Debug)]
pub struct WeightChange {
    pub service: String,
    pub share: ShareOf,
    /// Arms the dead-man.
    pub revert_after: Option<Duration>,
    /// Puts cohorts in force or suspends them; `None`: as they are.
    pub cohorts: Option<bool>,
}

/// A rollout that shall begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartRollout {
    pub service: String,
    /// JSON, as `[service.rollout]`; `None`: as the service describes it.
    pub spec: Option<String>,
}

/// What a rollout under way can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RolloutCommand {
    Pause,
    Resume,
    /// Leave the step that it is in.
    Advance,
    /// Run the hook of its step again, which failed.
    Retry,
    /// Everything to the candidate at once, which becomes live.
    Promote,
    Abort,
}

/// How a report is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportFormat {
    Json,
    Markdown,
    Html,
    /// What was measured, window by window, to be judged again: JSON lines.
    Recording,
}

/// Backends to be drained, or to be offered new flows again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedBackends {
    pub service: String,
    /// `None`: of both pools.
    pub pool: Option<PoolName>,
    /// `None`: all.
    pub backend: Option<SocketAddr>,
}

/// How backends are drained.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct DrainEnd {
    /// Flows that are left so many seconds later are ended, at this pace.
    pub cut: Option<(f64, CutRate)>,
}

/// Flows that somebody has asked to be ended.
#[derive(Clone, PartialEq, Debug)]
pub struct CutView {
    /// "rollback" or "drain".
    pub cause: &'static str,
    pub pool: Option<PoolName>,
    pub backend: Option<SocketAddr>,
    pub rate: CutRate,
    pub ended: u64,
    /// At the last look; `None` before the first.
    pub left: Option<u64>,
    /// Until the deadline of a drain.
    pub begins_in_s: f64,
    pub actor: String,
    pub reason: String,
}

/// Observed share of new affinity keys.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Observed {
    pub window_s: u32,
    pub green: u64,
    pub total: u64,
    /// `(share, low, high)`: 95% Wilson interval; `None` without data.
    pub interval: Option<(f64, f64, f64)>,
    pub adopted: u64,
    pub unpinned: u64,
    /// New flows whose pool a cohort forced.
    pub cohort: u64,
}

/// The dead-man as it stands.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DeadManView {
    pub safe_share: f64,
    pub remaining_s: f64,
    pub passed: bool,
}

/// One backend of a pool as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct BackendView {
    pub id: u16,
    pub pool: PoolName,
    pub spec: BackendSpec,
    /// "up", "down" or "unknown".
    pub health: &'static str,
    /// What its checks say; `None` where it is not checked.
    pub checks: Option<Standing>,
    /// "host", "vip", "kernel" or "next-hop".
    pub placement: &'static str,
    pub live_flows: u64,
    pub counters: BackendCounters,
    pub warnings: Vec<String>,
}

/// A service as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceView {
    pub spec: ServiceSpec,
    pub etag: String,
    pub generation: u32,
    /// What the kernel acts on now, the dead-man included; share of green.
    pub programmed_share: f64,
    pub observed: Observed,
    /// Live flows, `[blue, green]`.
    pub carried: [u64; 2],
    /// Those of them without a packet for two hours, `[blue, green]`.
    pub idle: [u64; 2],
    pub dead_man: Option<DeadManView>,
    pub backends: Vec<BackendView>,
    /// `(generation, ns after it was programmed)`.
    pub first_flow: Option<(u32, u64)>,
    /// "vip", "single", "hash" or "refused".
    pub adoption: &'static str,
    pub counters: [PoolCounters; 2],
    /// What the kernel has seen of how the pools do, `[blue, green]`.
    pub signals: [PoolSignals; 2],
    pub breaker: Option<BreakerView>,
    /// "on" or "suspended", the dead-man included; "" without cohorts.
    pub cohorts: &'static str,
    pub warnings: Vec<String>,
    pub cuts: Vec<CutView>,
    /// Flows ended on request by this agent: "rollback", "drain" and "down".
    pub ended_flows: [(&'static str, u64); 3],
}

/// A breaker as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct BreakerView {
    pub breaker: Breaker,
    /// Attempts on the candidate in the present window.
    pub attempts: u64,
    /// Failures among them.
    pub failures: u64,
    /// Since it tripped, if nobody has given the candidate flows since.
    pub tripped_ago_s: Option<f64>,
    /// The same in words.
    pub warning: Option<String>,
}

/// Which pool and backend a client gets, and why.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    pub pool: PoolName,
    pub backend: SocketAddr,
    pub pinned: bool,
    pub flow: Option<FlowView>,
    /// The cohort that forces the pool of a new flow.
    pub cohort: Option<String>,
    pub why: Vec<String>,
}

/// A flow with names in place of ids.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowView {
    pub service: String,
    pub backend: SocketAddr,
    pub row: FlowRow,
}

/// Which flows to list.
#[derive(Clone, Debug, Default)]
pub struct FlowQuery {
    pub service: Option<String>,
    pub pool: Option<PoolName>,
    pub backend: Option<SocketAddr>,
    pub client: Option<IpAddr>,
    /// Leave out those in "closing" and "reset".
    pub open_only: bool,
    pub limit: usize,
}

/// The agent as it stands.
#[derive(Clone, Debug)]
pub struct InfoView {
    pub tag: String,
    pub uptime_s: f64,
    pub hooks: Vec<HookStatus>,
    pub limits: Vec<LimitUse>,
    pub census: Census,
    pub flow_capacity: u64,
    pub table_memory_bytes: u64,
    pub verdicts: Vec<VerdictCount>,
    /// Packets dropped within the last minute.
    pub dropped_lately: Drops,
    pub warnings: Vec<String>,
    pub state_dir: String,
}

/// A change of a service, for watchers.
#[derive(Clone, Debug)]
pub struct ServiceEvent {
    /// Rises by one with every event of this agent; unique over restarts.
    pub version: u64,
    pub service: String,
    pub deleted: bool,
}

/// Why a request was not carried out. Each kind has one gRPC code, one
/// ErrorInfo reason and one exit code; each text says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// INVALID_ARGUMENT.
    #[error("{0}")]
    Invalid(String),
    /// NOT_FOUND.
    #[error("there is no service {name:?}; there are: {known}")]
    NotFound { name: String, known: String },
    /// FAILED_PRECONDITION: the host is not as the request needs it.
    #[error("{0}")]
    Precondition(String),
    /// ABORTED: the etag is stale.
    #[error(
        "service {service:?} has changed since (etag is {is}, request says {asked}): read it again and repeat"
    )]
    Conflict {
        service: String,
        is: String,
        asked: String,
    },
    /// RESOURCE_EXHAUSTED.
    #[error("{0}")]
    Exhausted(String),
    /// INTERNAL.
    #[error("{0}")]
    Internal(String),
    /// FAILED_PRECONDITION: the service refuses every write but a rollback.
    #[error("{0}")]
    Frozen(String),
}

impl From<DatapathError> for ControlError {
    fn from(error: DatapathError) -> Self {
        match error {
            DatapathError::Full { .. } => Self::Exhausted(error.to_string()),
            DatapathError::Refused(text) => Self::Precondition(text),
            DatapathError::Kernel { .. } => Self::Internal(error.to_string()),
        }
    }
}

/// The agent, as the API sees it. Calls take at most some ms, but for those
/// that read the flow table whole.
pub trait Controller: Send + Sync + 'static {
    fn list(&self) -> Result<Vec<ServiceView>, ControlError>;
    fn get(&self, name: &str) -> Result<ServiceView, ControlError>;
    /// All or nothing.
    fn apply(
        &self,
        specs: &[ServiceSpec],
        context: &WriteContext,
    ) -> Result<(Vec<Receipt>, Vec<Change>), ControlError>;
    fn plan(&self, specs: &[ServiceSpec]) -> Result<Vec<Change>, ControlError>;
    fn plan_weight(&self, change: &WeightChange) -> Result<Change, ControlError>;
    fn delete(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError>;
    fn set_weight(
        &self,
        change: &WeightChange,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError>;
    fn confirm(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError>;
    /// `to` 0: the good split. `cut`: flows that the candidate still carries then are
    /// ended at this pace.
    fn rollback(
        &self,
        name: &str,
        to: u32,
        cut: Option<CutRate>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError>;
    fn promote(&self, name: &str, context: &WriteContext) -> Result<Receipt, ControlError>;
    /// Begins a rollout, or says what it would be where it only validates.
    fn start_rollout(
        &self,
        start: &StartRollout,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError>;
    fn command_rollout(
        &self,
        name: &str,
        command: RolloutCommand,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError>;
    /// The newest rollout of a service where `id` is 0.
    fn rollout(&self, name: &str, id: u64) -> Result<RolloutView, ControlError>;
    /// Newest first; of all services where the name is empty.
    fn rollouts(&self, name: &str, limit: u32) -> Result<Vec<RolloutView>, ControlError>;
    /// The number and the report of a rollout that is over, the newest where `id` is 0.
    fn rollout_report(
        &self,
        name: &str,
        id: u64,
        format: ReportFormat,
    ) -> Result<(u64, String), ControlError>;
    /// Figures over all rollouts that are over.
    fn rollout_figures(&self) -> Result<RolloutFigures, ControlError>;
    /// `*` stands for all services.
    fn freeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError>;
    fn unfreeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError>;
    /// Takes backends out of the choice of new flows, or, with `None`, puts them back.
    fn drain(
        &self,
        named: &NamedBackends,
        drain: Option<DrainEnd>,
        context: &WriteContext,
    ) -> Result<Receipt, ControlError>;
    fn explain(
        &self,
        name: &str,
        client: IpAddr,
        port: Option<u16>,
    ) -> Result<Explanation, ControlError>;
    /// Flows, and the number of all that match.
    fn flows(&self, query: &FlowQuery) -> Result<(Vec<FlowView>, u64), ControlError>;
    fn info(&self) -> Result<InfoView, ControlError>;
    /// Audit records, newest first.
    fn audit(&self, query: &AuditQuery) -> Result<Vec<Recorded>, ControlError>;
    /// Events in their order.
    fn events(&self, query: &EventQuery) -> Result<Events, ControlError>;
    /// Changes whenever there may be new ones.
    fn events_stored(&self) -> tokio::sync::watch::Receiver<u64>;
    /// What keeps writes from being stored, if anything does.
    fn store_problem(&self) -> Option<String>;
    /// `(generation, ns)` once a flow was chosen under `generation` or a later one.
    fn first_flow(&self, name: &str, generation: u32) -> Result<Option<(u32, u64)>, ControlError>;

    /// Events with a version above `since`, oldest first; `None` when some of
    /// them are no longer kept, so that the watcher must start anew.
    fn events_since(&self, since: u64) -> Option<Vec<ServiceEvent>>;
    /// Newest version, to wait for the next.
    fn version(&self) -> tokio::sync::watch::Receiver<u64>;
    /// VIP and protocol of a service, cheaply.
    fn vip(&self, name: &str) -> Result<(Vip, Protocol), ControlError>;
}
