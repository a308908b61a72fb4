//! A host under attack, the flows that are held on it, and honest clients.

use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, METRICS, Settings},
    command::{Process, eventually},
    evidence,
    mover::Service,
    need::scaled,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        flood::{Gun, Kind, Sent},
        hold::{Held, Lost, ask_all, ask_until},
        honest::{self, Opened},
        poll, server,
    },
};

/// Flows that the table is made for; it has twice as many entries.
pub const CAPACITY: u64 = 65_536;
/// The same where a flood shall have little room, or none of it matters.
pub const SMALL: u64 = 16_384;
/// Proven flows that a flood is to leave alone.
pub const HELD: u32 = 10_000;
/// How old the agent's counts of the table may be, and a little.
pub const COUNTS_AGE: Duration = Duration::from_millis(1_200);
/// Flows that may find no place at first where a table is filled up to its capacity:
/// 1 in 50,000 does (docs/bench.md, "Packets").
const WITHOUT_PLACE: u32 = 2;
/// New connections that are served before a flood is over, at least.
const IN_TIME: u64 = 5;
/// New honest connections after each flood.
const HONEST: u32 = 100;
/// Servers answer every SYN by a cookie. One that goes over to them in the middle
/// of a flood answers the first and the second SYN of one handshake by different
/// numbers, and resets the client that takes the one for the other.
const COOKIES: (&str, &str) = ("ipv4/tcp_syncookies", "2");
/// How long a flood lasts at least.
const AT_LEAST: Duration = Duration::from_secs(3);
/// New honest connections a second during each flood.
const HONEST_RATE: u32 = 100;

/// A host under attack, and the flows on it.
pub struct Scenario<'lab> {
    pub lab: &'lab Lab,
    pub agent: Agent<'lab>,
    pub gun: Gun,
    pub held: Vec<Held>,
    pub hook: &'static str,
    capacity: u64,
}

/// What a flood does to honest clients who come while it lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is room, so every one of them is served.
    Enough,
    /// The flood may leave none.
    None,
}

/// One flood at a time: each takes every CPU, and half of the descriptors that a
/// process may have.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn lab(placement: Placement) -> (Lab, [Process; 2]) {
    poll::raise_file_limit();
    let lab = Lab::new(placement).unwrap();
    for side in [Side::Blue, Side::Green] {
        let (key, value) = COOKIES;
        lab.server_ns(side).sysctl(key, value).unwrap();
    }
    let servers = server::start_both(&lab).unwrap();
    (lab, servers)
}

/// TCP and UDP over both families, half of each on green.
pub fn services(lab: &Lab) -> Vec<Service> {
    Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect()
}

impl<'lab> Scenario<'lab> {
    pub fn start(lab: &'lab Lab, hook: &'static str, capacity: u64, services: &[Service]) -> Self {
        let agent = Agent::start(lab, Settings::hook(hook).with_capacity(capacity)).unwrap();
        agent.apply(services).unwrap();
        let host = lab.host_addr(Family::V4, 0).ip();
        let gun = Gun::new(&lab.client, "c0", host).unwrap();
        let mut scenario = Self {
            lab,
            agent,
            gun,
            held: Vec::new(),
            hook,
            capacity,
        };
        // No more than the table is made for: beyond that a flow may be refused.
        let held = HELD.min((capacity - capacity / 32) as u32);
        let without_place = if held < HELD { WITHOUT_PLACE } else { 0 };
        scenario.held = scenario.connect_but(without_place, held, |i, to| {
            Held::tcp(i, to, None, Duration::from_secs(10))
        });
        scenario
    }

    /// So many flows, half of each family, all of which must stand.
    pub fn connect(
        &self,
        count: u32,
        one: impl Fn(u32, SocketAddr) -> std::io::Result<Held> + Send + Sync,
    ) -> Vec<Held> {
        self.connect_but(0, count, one)
    }

    /// As [`Self::connect`]; a few whose SYN is not answered, because they find no
    /// place in the table, may come again from another port.
    fn connect_but(
        &self,
        may_lack: u32,
        count: u32,
        one: impl Fn(u32, SocketAddr) -> std::io::Result<Held> + Send + Sync,
    ) -> Vec<Held> {
        let vips = Family::BOTH.map(|family| self.lab.vip(family));
        let mut without_place = 0;
        self.lab.client.run(|| {
            (0..count)
                .map(|i| {
                    let to = vips[i as usize % 2];
                    let again = |error: std::io::Error| {
                        without_place += 1;
                        if without_place > may_lack || error.kind() != ErrorKind::TimedOut {
                            return Err(error);
                        }
                        println!("flow {i} of {count} found no place");
                        one(i, to)
                    };
                    one(i, to).or_else(again).unwrap_or_else(|error| {
                        let evidence = evidence::of(self.lab);
                        panic!("honest flow {i} of {count}: {error}\n{evidence}")
                    })
                })
                .collect()
        })
    }

    /// UDP flows that were answered, held with the idle ones from now on. A new
    /// choice would give every one of them to blue, so that a lost pin is seen.
    pub fn hold_udp(&mut self, count: u32) {
        let lasting = self.connect(count, Held::udp);
        self.held.extend(lasting);
        for service in ["udp4", "udp6"] {
            self.agent.shift(service, "0%").unwrap();
        }
    }

    /// Tuples of the held flows, IPv4, of UDP or of TCP.
    pub fn tuples(&self, is_udp: bool) -> Vec<SocketAddrV4> {
        let held = self.held.iter().filter(|held| held.is_udp() == is_udp);
        held.filter_map(|held| held.local().unwrap()).collect()
    }

    /// Sum of a metric over its samples whose labels hold `label`.
    pub fn metric(&self, name: &str, label: &str) -> u64 {
        let page = evidence::get(&self.lab.host, METRICS, "/metrics").unwrap();
        page.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    pub fn verdicts(&self, reason: &str) -> u64 {
        let label = format!("hook=\"{}\",reason=\"{reason}\"", self.hook);
        self.metric("shifter_verdict_packets_total", &label)
    }

    pub fn evicted(&self, state: &str) -> u64 {
        self.metric("shifter_flow_table_evicted_total", state)
    }

    pub fn proven(&self) -> u64 {
        self.metric("shifter_flow_table_flows", "\"proven\"")
    }

    pub fn is_loud(&self, what: &str) -> bool {
        let said = eventually(Duration::from_secs(15), || {
            let status = self.agent.json(&["status"]).unwrap();
            status["loud"].to_string().contains(what)
        });
        said && eventually(Duration::from_secs(15), || {
            self.agent
                .log()
                .lines()
                .any(|line| line.contains("loud:") && line.contains(what))
        })
    }

    /// Runs a flood while every other held flow is busy and new connections are
    /// opened, then asks all that are held, opens more, and prints what came of it.
    pub fn endure(&mut self, what: &str, room: Room, flood: impl FnOnce(&Gun) -> Sent) -> Sent {
        let seen = |this: &Self| this.metric("shifter_verdict_packets_total", this.hook);
        let proven = self.proven();
        let (seen_before, evicted_before) = (seen(self), self.evicted(""));
        let (sent, lost, opened, ended) = self.flood_beside_honest(flood);
        thread::sleep(COUNTS_AGE.saturating_sub(ended.elapsed()));
        let arrived = seen(self) - seen_before;
        let evicted = self.evicted("") - evicted_before;
        let lasts = self.unproven_lasts(&sent, evicted, proven);
        let text = format!(
            "FLOOD {} {what}: {} packets, {:.0} a second, {proven} proven entries at risk, \
             {evicted} unproven gave way (each after {} ms at the soonest), {} asked, {} moved, \
             {} cut; {opened}",
            self.hook,
            sent.packets,
            sent.rate(),
            lasts.as_millis(),
            lost.asked,
            lost.moved,
            lost.cut
        );
        println!("{text}");
        let evidence = || evidence::of(self.lab);
        assert!(lost.is_nothing(), "{text}: {lost:?}\n{}", evidence());
        assert!(
            arrived * 10 >= sent.packets * 9,
            "{text}: only {arrived} packets came to the hook"
        );
        assert!(
            self.proven() >= u64::from(HELD),
            "{text}: proven flows are forgotten"
        );
        for state in ["established", "udp_answered"] {
            assert_eq!(self.evicted(state), 0, "{text}: {state}");
        }
        if room == Room::Enough {
            let is_clean = opened.is_clean();
            assert!(is_clean, "{text}: {opened:?}\n{}", evidence());
            assert!(opened.in_time >= IN_TIME, "{text}: few were served");
            let new = self.connect(HONEST, |i, to| {
                Held::tcp(i, to, None, Duration::from_secs(10))
            });
            assert_eq!(new.len(), HONEST as usize);
        }
        sent
    }

    /// What was sent, what of the held flows was lost, how new ones fared, and
    /// when the flood was over.
    fn flood_beside_honest(
        &mut self,
        flood: impl FnOnce(&Gun) -> Sent,
    ) -> (Sent, Lost, Opened, Instant) {
        let Self { lab, gun, held, .. } = self;
        let (busy, idle) = held.split_at_mut(HELD as usize / 2);
        let vips = Family::BOTH.map(|family| lab.vip(family));
        let stop = AtomicBool::new(false);
        let stop = &stop;
        let (sent, mut lost, opened, ended) = thread::scope(|scope| {
            let busy = scope.spawn(move || ask_until(busy, stop));
            let client = &lab.client;
            let open = move || client.run(|| honest::open_until(&vips, HONEST_RATE, stop));
            let opened = scope.spawn(open);
            let sent = flood(gun);
            stop.store(true, Relaxed);
            let ended = Instant::now();
            (sent, busy.join().unwrap(), opened.join().unwrap(), ended)
        });
        add(&mut lost, ask_all(idle));
        (sent, lost, opened, ended)
    }

    /// Frames of one flood.
    pub fn packets(&self) -> u64 {
        scaled(16, 32) * self.capacity
    }

    /// How long an entry that is not proven outlasts a flood before which so
    /// many gave way: half the time in which all of them do (`slow.rs`).
    fn unproven_lasts(&self, sent: &Sent, evicted: u64, proven: u64) -> Duration {
        let room = 2 * self.capacity - proven;
        sent.took.mul_f64(room as f64 / 2.0 / evicted.max(1) as f64)
    }

    /// A flood of one kind from strangers, or aimed at the held flows.
    pub fn flood(&mut self, kind: Kind, is_aimed: bool) {
        let aims = if is_aimed {
            self.tuples(false)
        } else {
            Vec::new()
        };
        let to = self.lab.vip(Family::V4);
        let aimed = if is_aimed { " at proven flows" } else { "" };
        let packets = self.packets();
        let before = (self.evicted(""), self.verdicts("unpinned"));
        let sent = self.endure(&format!("{kind:?}{aimed}"), Room::Enough, |gun| {
            fire(gun, kind, to, &aims, packets)
        });
        let evicted = self.evicted("") - before.0;
        match (kind, is_aimed) {
            // A RST makes no entry.
            (Kind::Rst, false) => {
                let unpinned = self.verdicts("unpinned") - before.1;
                assert!(unpinned * 5 >= sent.packets * 4, "{unpinned} are counted");
            }
            // These meet entries that are there; honest ones come and go.
            (_, true) => assert!(evicted < sent.packets / 20, "{evicted} made room"),
            _ => {
                assert!(evicted > sent.packets / 4, "{evicted} are counted as shed");
                assert!(self.is_loud("the flow table is under pressure"));
            }
        }
    }
}

/// A flood of so many frames at least, and of [`AT_LEAST`], so that honest
/// clients meet it.
pub fn fire(gun: &Gun, kind: Kind, to: SocketAddr, aims: &[SocketAddrV4], packets: u64) -> Sent {
    let mut all = Sent::default();
    while all.packets < packets || all.took < AT_LEAST {
        let sent = gun.fire(kind, to, aims, packets / 4).unwrap();
        all.packets += sent.packets;
        all.took += sent.took;
    }
    all
}

pub fn add(sum: &mut Lost, more: Lost) {
    sum.asked += more.asked;
    sum.moved += more.moved;
    sum.cut += more.cut;
    sum.errors.extend(more.errors);
}
