//! A reconciler with a fake packet path, host and clock.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    datapath::{FlowRow, Placement, fake::FakeDatapath},
    model::{
        PoolName, Protocol, ServiceSpec, Vip,
        file::{Format, parse_services},
    },
    network::TcpSockets,
    reconcile::{
        Clock, Controller as _, HostFacts, Reconciler, Settings, StartError,
        controller::{ControlError, Receipt, ShareOf, WeightChange, WriteContext},
        reconciler::lock,
    },
    store::{Audit, AuditQuery, Store},
};

/// Addresses in 203.0.113.0/24 and 2001:db8::/64 are local.
#[derive(Default)]
pub struct FakeFacts {
    pub translated: Mutex<HashSet<SocketAddr>>,
    /// Local no longer.
    pub lost: Mutex<HashSet<IpAddr>>,
    pub filter_problem: Mutex<Option<String>>,
    pub placements: Mutex<HashMap<SocketAddr, Placement>>,
    pub warnings: Mutex<HashMap<SocketAddr, String>>,
    /// By namespace; none: the dump fails.
    pub sockets: Mutex<HashMap<Option<i32>, TcpSockets>>,
    /// What was asked of `tcp_sockets`.
    pub asked: Mutex<Vec<(Option<i32>, HashSet<SocketAddr>)>>,
    /// Run once, in the middle of the next question that may run nft.
    pub gate: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    questions: AtomicU64,
    /// Sockets that were ended: (address, peer).
    pub ended: Mutex<Vec<(SocketAddr, SocketAddr)>>,
    /// RSTs that were sent: (from, to, sequence).
    pub resets: Mutex<Vec<(SocketAddr, SocketAddr, u32)>>,
}

impl FakeFacts {
    /// Questions so far that may run nft.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }

    fn pass_gate(&self) {
        self.questions.fetch_add(1, Ordering::Relaxed);
        let gate = lock(&self.gate).take();
        if let Some(gate) = gate {
            gate();
        }
    }
}

impl HostFacts for FakeFacts {
    fn is_local(&self, ip: IpAddr) -> bool {
        if lock(&self.lost).contains(&ip) {
            return false;
        }
        match ip {
            IpAddr::V4(ip) => ip.octets()[..3] == [203, 0, 113],
            IpAddr::V6(ip) => ip.segments()[..4] == [0x2001, 0xdb8, 0, 0],
        }
    }

    fn interface_for(&self, _ip: IpAddr) -> Option<String> {
        Some("eth0".into())
    }

    fn placement(&self, addr: SocketAddr) -> Placement {
        let placements = lock(&self.placements);
        let default = Placement::Kernel { netns: None };
        placements.get(&addr).copied().unwrap_or(default)
    }

    fn vip_is_translated(&self, vip: &Vip) -> bool {
        self.pass_gate();
        lock(&self.filter_problem).is_some() || lock(&self.translated).contains(&vip.addr)
    }

    fn filter_problem(&self, _anew: bool) -> Option<String> {
        lock(&self.filter_problem).clone()
    }

    fn backend_warnings(&self, addr: SocketAddr, protocol: Protocol) -> Vec<String> {
        self.pass_gate();
        let warnings = lock(&self.warnings);
        let warning = warnings.get(&addr);
        warning
            .map(|text| format!("{text} ({protocol})"))
            .into_iter()
            .collect()
    }

    fn tcp_sockets(&self, netns: Option<i32>, at: &HashSet<SocketAddr>) -> io::Result<TcpSockets> {
        self.pass_gate();
        lock(&self.asked).push((netns, at.clone()));
        let sockets = lock(&self.sockets);
        let sockets = sockets.get(&netns).cloned();
        sockets.ok_or_else(|| io::ErrorKind::Interrupted.into())
    }

    fn end_sockets(
        &self,
        netns: Option<i32>,
        pairs: &[(SocketAddr, SocketAddr)],
    ) -> io::Result<Vec<bool>> {
        let sockets = lock(&self.sockets);
        let there = sockets.get(&netns).ok_or(io::ErrorKind::NotFound)?;
        let ended = pairs.iter().map(|(at, peer)| {
            let is_there = there.has(*at, *peer);
            if is_there {
                lock(&self.ended).push((*at, *peer));
            }
            is_there
        });
        Ok(ended.collect())
    }

    fn send_reset(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        sequence: u32,
        _acknowledged: u32,
    ) -> io::Result<()> {
        lock(&self.resets).push((from, to, sequence));
        Ok(())
    }
}

/// A clock that stands still until it is moved.
pub struct FakeClock {
    ns: AtomicU64,
    unix_ms: AtomicI64,
}

impl Default for FakeClock {
    fn default() -> Self {
        Self {
            ns: AtomicU64::new(1_000_000_000_000),
            unix_ms: AtomicI64::new(1_800_000_000_000),
        }
    }
}

impl FakeClock {
    pub fn pass(&self, duration: Duration) {
        self.ns
            .fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
        self.unix_ms
            .fetch_add(duration.as_millis() as i64, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall(&self, by_ms: i64) {
        self.unix_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// The other clocks begin again; the wall clock goes on.
    pub fn reboot(&self, down: Duration) {
        self.ns.store(5_000_000_000, Ordering::Relaxed);
        self.unix_ms
            .fetch_add(down.as_millis() as i64, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn monotonic_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }

    fn boot_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }

    fn unix_ms(&self) -> i64 {
        self.unix_ms.load(Ordering::Relaxed)
    }
}

/// All of it; the state directory goes with it.
pub struct Rig {
    pub datapath: Arc<FakeDatapath>,
    pub facts: Arc<FakeFacts>,
    pub clock: Arc<FakeClock>,
    pub reconciler: Arc<Reconciler>,
    dir: std::path::PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn start(
    datapath: &Arc<FakeDatapath>,
    facts: &Arc<FakeFacts>,
    clock: &Arc<FakeClock>,
    dir: &std::path::Path,
    settings: Settings,
) -> Result<Arc<Reconciler>, StartError> {
    Reconciler::start_with_clock(
        datapath.clone(),
        facts.clone(),
        Store::open_or_refuse(dir).unwrap(),
        settings,
        clock.clone(),
    )
}

impl Rig {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("shifter-rec-{}-{number}", std::process::id()));
        let (datapath, facts, clock) = Default::default();
        let reconciler = start(&datapath, &facts, &clock, &dir, Settings::default()).unwrap();
        Self {
            datapath,
            facts,
            clock,
            reconciler,
            dir,
        }
    }

    /// With the service `web`: blue 10.0.0.1, green 10.0.1.1, good split.
    pub fn with_web() -> Self {
        let rig = Self::new();
        rig.apply(&[web()]).unwrap();
        rig
    }

    /// The agent dies and starts again.
    pub fn restart(&mut self) {
        self.restart_with(Settings::default());
    }

    /// As [`Rig::restart`], with other settings.
    pub fn restart_with(&mut self, settings: Settings) {
        let (datapath, facts) = (&self.datapath, &self.facts);
        self.reconciler = start(datapath, facts, &self.clock, &self.dir, settings).unwrap();
    }

    /// Why a start fails, after a reboot.
    pub fn refused_after_reboot(&self) -> String {
        let (datapath, settings) = (Arc::default(), Settings::default());
        let started = start(&datapath, &self.facts, &self.clock, &self.dir, settings);
        started.err().unwrap().to_string()
    }

    /// The store is damaged while the agent is down.
    pub fn damage_store(&self) {
        std::fs::write(self.dir.join(crate::store::STORE_FILE), "no database").unwrap();
    }

    pub fn state_dir(&self) -> std::path::PathBuf {
        self.dir.clone()
    }

    /// The state directory is lost while the agent is down.
    pub fn lose_store(&self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }

    /// The host reboots: the kernel is empty.
    pub fn reboot(&mut self, down: Duration) {
        self.datapath = Arc::default();
        self.clock.reboot(down);
        self.restart();
    }

    pub fn apply(&self, specs: &[ServiceSpec]) -> Result<Vec<Receipt>, ControlError> {
        self.reconciler
            .apply(specs, &context())
            .map(|(receipts, _)| receipts)
    }

    pub fn shift(&self, green: &str) -> Result<Receipt, ControlError> {
        self.reconciler.set_weight(&to_green(green), &context())
    }

    pub fn shift_for(&self, green: &str, after: Duration) -> Receipt {
        let change = WeightChange {
            revert_after: Some(after),
            ..to_green(green)
        };
        self.reconciler.set_weight(&change, &context()).unwrap()
    }

    pub fn rollback(&self, to: u32) -> Result<Receipt, ControlError> {
        self.reconciler.rollback("web", to, None, &context())
    }

    pub fn green(&self) -> String {
        self.reconciler.get("web").unwrap().spec.green.to_string()
    }

    pub fn live(&self) -> PoolName {
        self.reconciler.get("web").unwrap().spec.live
    }

    pub fn disk_full(&self, full: bool) {
        lock(&self.reconciler.core)
            .store
            .set_read_only(full)
            .unwrap();
    }

    /// Id of a TCP backend.
    pub fn backend(&self, addr: &str) -> u16 {
        let core = lock(&self.reconciler.core);
        let id = core.backends.id(addr.parse().unwrap(), Protocol::Tcp);
        id.unwrap_or_else(|| panic!("{addr} has no id"))
    }

    pub fn service_id(&self, name: &str) -> u16 {
        lock(&self.reconciler.core).services[name].id
    }

    pub fn flow(&self, pool: PoolName, backend: &str, client: &str) -> FlowRow {
        FlowRow {
            service: self.service_id("web"),
            client: client.parse().unwrap(),
            protocol: Protocol::Tcp,
            pool,
            backend: self.backend(backend),
            state: "established",
            proven: true,
            adopted: false,
            cohort: false,
            generation: 1,
            age_s: 1.0,
            idle_s: 0.0,
            bytes: 0,
        }
    }

    pub fn actions(&self) -> Vec<String> {
        let records = self.audit().into_iter();
        records
            .map(|a| format!("{} {}", a.actor, a.action))
            .collect()
    }

    /// Newest first.
    pub fn audit(&self) -> Vec<Audit> {
        let query = AuditQuery {
            limit: 100,
            ..AuditQuery::default()
        };
        let core = lock(&self.reconciler.core);
        let records = core.store.audit(&query).unwrap();
        records.into_iter().map(|record| record.audit).collect()
    }
}

pub fn context() -> WriteContext {
    WriteContext {
        arrived: Instant::now(),
        actor: "tester".into(),
        reason: String::new(),
        request_id: String::new(),
        etag: None,
        force: false,
        validate_only: false,
    }
}

pub fn to_green(green: &str) -> WeightChange {
    WeightChange {
        service: "web".into(),
        share: ShareOf::Green(green.parse().unwrap()),
        revert_after: None,
        cohorts: None,
    }
}

pub fn specs(text: &str) -> Vec<ServiceSpec> {
    parse_services(text, "test", Format::Toml).unwrap()
}

pub fn web() -> ServiceSpec {
    specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         seed = \"000102030405060708090a0b0c0d0e0f\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n",
    )
    .remove(0)
}

/// `web` under another name and VIP, with the same backends.
pub fn other(name: &str, last: u8) -> ServiceSpec {
    let mut spec = web();
    spec.name = name.into();
    spec.vip.addr = SocketAddr::from(([203, 0, 113, last], 443));
    spec
}
