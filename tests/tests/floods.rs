//! Floods, each of at least 16 times the table's capacity: nobody who holds a
//! proven flow is moved, reset or forgotten, half of them idle all the while.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
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
    evidence, need,
    need::{long, scaled},
    topology::{Family, Lab, Placement},
    traffic::{
        flood::{Gun, Kind, Sent},
        hold::{Held, Lost, ask_all, ask_until},
        poll, server,
    },
};

/// Flows that the table is made for; it has twice as many entries.
const CAPACITY: u64 = 16_384;
/// The same where every flow is a real connection, which takes descriptors.
const FEW: u64 = 8_192;
/// Proven flows that a flood is to leave alone.
const HELD: u32 = 10_000;
/// How old the agent's counts of the table may be, and a little.
const COUNTS_AGE: Duration = Duration::from_millis(1_200);
/// New honest connections after each flood.
const HONEST: u32 = 100;

/// A host under attack, and the flows on it.
struct Scenario<'lab> {
    lab: &'lab Lab,
    agent: Agent<'lab>,
    gun: Gun,
    held: Vec<Held>,
    hook: &'static str,
}

/// One flood at a time: each takes every CPU, and half of the descriptors that a
/// process may have.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lab(placement: Placement) -> (Lab, [Process; 2]) {
    poll::raise_file_limit();
    let lab = Lab::new(placement).unwrap();
    let servers = server::start_both(&lab).unwrap();
    (lab, servers)
}

impl<'lab> Scenario<'lab> {
    fn start(lab: &'lab Lab, hook: &'static str, capacity: u64) -> Self {
        let agent = Agent::start(lab, Settings::hook(hook).with_capacity(capacity)).unwrap();
        let services: Vec<_> = shifter_tests::mover::Service::all_four(lab)
            .into_iter()
            .map(|service| service.with_green("50%"))
            .collect();
        agent.apply(&services).unwrap();
        let host = lab.host_addr(Family::V4, 0).ip();
        let gun = Gun::new(&lab.client, "c0", host).unwrap();
        let mut scenario = Self {
            lab,
            agent,
            gun,
            held: Vec::new(),
            hook,
        };
        // No more than the table is made for: beyond that a flow may be refused.
        let held = HELD.min((capacity - capacity / 32) as u32);
        scenario.held = scenario.connect(held, |i, to| {
            Held::tcp(i, to, None, Duration::from_secs(10))
        });
        scenario
    }

    /// So many flows, half of each family, all of which must stand.
    fn connect(
        &self,
        count: u32,
        one: impl Fn(u32, SocketAddr) -> std::io::Result<Held> + Send + Sync,
    ) -> Vec<Held> {
        let vips = Family::BOTH.map(|family| self.lab.vip(family));
        self.lab.client.run(|| {
            (0..count)
                .map(|i| {
                    one(i, vips[i as usize % 2])
                        .unwrap_or_else(|error| panic!("honest flow {i} of {count}: {error}"))
                })
                .collect()
        })
    }

    /// Tuples of the held flows, IPv4.
    fn tuples(&self) -> Vec<SocketAddrV4> {
        let local = |held: &Held| held.local().unwrap();
        self.held.iter().filter_map(local).collect()
    }

    /// Sum of a metric over its samples whose labels hold `label`.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let page = evidence::get(&self.lab.host, METRICS, "/metrics").unwrap();
        page.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    fn verdicts(&self, reason: &str) -> u64 {
        let label = format!("hook=\"{}\",reason=\"{reason}\"", self.hook);
        self.metric("shifter_verdict_packets_total", &label)
    }

    fn evicted(&self, state: &str) -> u64 {
        self.metric("shifter_flow_table_evicted_total", state)
    }

    fn is_loud(&self, what: &str) -> bool {
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

    /// Runs a flood while every other held flow is busy, then asks all of them,
    /// opens honest new flows, and prints what came of it.
    fn endure(&mut self, what: &str, flood: impl FnOnce(&Gun) -> Sent) -> Sent {
        let seen = |this: &Self| this.metric("shifter_verdict_packets_total", this.hook);
        let proven = self.metric("shifter_flow_table_flows", "\"proven\"");
        let (seen_before, evicted_before) = (seen(self), self.evicted(""));
        let (busy, idle) = self.held.split_at_mut(HELD as usize / 2);
        let stop = AtomicBool::new(false);
        let (sent, mut lost, ended) = thread::scope(|scope| {
            let busy = scope.spawn(|| ask_until(busy, &stop));
            let sent = flood(&self.gun);
            stop.store(true, Relaxed);
            let ended = Instant::now();
            (sent, busy.join().unwrap(), ended)
        });
        add(&mut lost, ask_all(idle));
        thread::sleep(COUNTS_AGE.saturating_sub(ended.elapsed()));
        let arrived = seen(self) - seen_before;
        let evicted = self.evicted("") - evicted_before;
        let mut text = String::new();
        let _ = write!(
            text,
            "FLOOD {} {what}: {} packets, {:.0} a second, {proven} proven entries at risk, \
             {evicted} unproven gave way, {} asked, {} moved, {} cut",
            self.hook,
            sent.packets,
            sent.rate(),
            lost.asked,
            lost.moved,
            lost.cut
        );
        println!("{text}");
        assert!(
            lost.is_nothing(),
            "{text}: {lost:?}\n{}",
            evidence::of(self.lab)
        );
        assert!(
            arrived * 10 >= sent.packets * 9,
            "{text}: only {arrived} packets came to the hook"
        );
        assert!(
            self.metric("shifter_flow_table_flows", "\"proven\"") >= u64::from(HELD),
            "{text}: proven flows are forgotten"
        );
        for state in ["established", "udp_answered"] {
            assert_eq!(self.evicted(state), 0, "{text}: {state}");
        }
        let new = self.connect(HONEST, |i, to| {
            Held::tcp(i, to, None, Duration::from_secs(10))
        });
        assert_eq!(new.len(), HONEST as usize);
        sent
    }

    /// A flood of one kind from strangers, or aimed at the held flows.
    fn flood(&mut self, kind: Kind, is_aimed: bool) {
        let aims = if is_aimed { self.tuples() } else { Vec::new() };
        let to = self.lab.vip(Family::V4);
        let aimed = if is_aimed { " at proven flows" } else { "" };
        let packets = scaled(16, 64) * CAPACITY;
        let before = (self.evicted(""), self.verdicts("unpinned"));
        let sent = self.endure(&format!("{kind:?}{aimed}"), |gun| {
            gun.fire(kind, to, &aims, packets).unwrap()
        });
        let evicted = self.evicted("") - before.0;
        match (kind, is_aimed) {
            // A RST makes no entry.
            (Kind::Rst, false) => {
                let unpinned = self.verdicts("unpinned") - before.1;
                assert!(unpinned * 5 >= sent.packets * 4, "{unpinned} are counted");
            }
            // These meet entries that are there.
            (_, true) => assert!(evicted < sent.packets / 100, "{evicted} made room"),
            _ => {
                assert!(evicted > sent.packets / 4, "{evicted} are counted as shed");
                assert!(self.is_loud("the flow table is under pressure"));
            }
        }
    }
}

fn add(sum: &mut Lost, more: Lost) {
    sum.asked += more.asked;
    sum.moved += more.moved;
    sum.cut += more.cut;
    sum.errors.extend(more.errors);
}

/// Kinds of TCP floods, and whether they are aimed at the flows that are held.
const FLOODS: [(Kind, bool); 10] = [
    (Kind::Syn, false),
    (Kind::Ack, false),
    (Kind::Pair, false),
    (Kind::Rst, false),
    (Kind::SynData, false),
    (Kind::Fin, false),
    (Kind::Rst, true),
    (Kind::Syn, true),
    (Kind::Fin, true),
    (Kind::Ack, true),
];

/// The short form runs every other flood under each hook.
fn tcp_floods(placement: Placement, hook: &'static str, first: usize) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, CAPACITY);
    let every = if long() { 1 } else { 2 };
    let first = if long() { 0 } else { first };
    for (kind, is_aimed) in FLOODS.into_iter().skip(first).step_by(every) {
        scenario.flood(kind, is_aimed);
    }
}

#[test]
fn no_flood_of_segments_touches_a_proven_flow_under_tc() {
    need!();
    let _turn = turn();
    tcp_floods(Placement::Container, "tc", 0);
}

#[test]
fn no_flood_of_segments_touches_a_proven_flow_under_xdp() {
    need!();
    let _turn = turn();
    tcp_floods(Placement::RemoteOther, "xdp", 1);
}

/// Handshakes from addresses of their own until the table is full of proven flows.
fn fill(scenario: &mut Scenario) -> (Vec<Held>, Sent) {
    const REFUSALS: u32 = 20;
    const REFUSED: Duration = Duration::from_millis(200);
    let to = scenario.lab.vip(Family::V4);
    let (mut more, mut refused, mut tried) = (Vec::new(), 0, 0);
    let start = Instant::now();
    scenario.lab.client.run(|| {
        while refused < REFUSALS {
            let source = u32::from(Ipv4Addr::new(10, 82, 0, 1)) + tried % 60_000;
            let source = IpAddr::from(Ipv4Addr::from(source));
            tried += 1;
            match Held::tcp(tried, to, Some(source), REFUSED) {
                Ok(held) => more.push(held),
                Err(_) => refused += 1,
            }
        }
    });
    let sent = Sent {
        packets: u64::from(tried),
        took: start.elapsed(),
    };
    (more, sent)
}

fn full_table(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, FEW);
    let (mut more, sent) = fill(&mut scenario);
    let all = (more.len() + scenario.held.len()) as u64;
    assert!(all > FEW, "{all} flows in a table for {FEW}");
    assert!(scenario.verdicts("table_full") >= 20, "refused and counted");
    assert!(scenario.is_loud("table_full"));
    let mut lost = ask_all(&mut scenario.held);
    add(&mut lost, ask_all(&mut more));
    println!(
        "FLOOD {hook} handshakes: {} connections, {:.0} a second, {all} proven entries at risk, \
         0 gave way, {} asked, {} moved, {} cut",
        sent.packets,
        sent.rate(),
        lost.asked,
        lost.moved,
        lost.cut
    );
    assert!(lost.is_nothing(), "{lost:?}\n{}", evidence::of(&lab));
    assert_eq!(scenario.evicted("established"), 0);
    // Room comes back with flows that end.
    more.truncate(more.len() / 2);
    let back = eventually(Duration::from_secs(20), || {
        let to = lab.vip(Family::V4);
        let open = |i| Held::tcp(i, to, None, Duration::from_millis(500)).is_ok();
        lab.client.run(|| (0..20).all(open))
    });
    assert!(back, "new flows find the room of those that ended");
}

#[test]
fn a_table_full_of_proven_flows_refuses_new_ones_and_harms_none() {
    need!();
    let _turn = turn();
    full_table(Placement::Container, "tc");
    if long() {
        full_table(Placement::RemoteOther, "xdp");
    }
}

/// UDP flows that were answered and have lasted, beside the TCP flows.
fn udp_flood(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, CAPACITY);
    let lasting = scenario.connect(scaled(1_000, 4_000), Held::udp);
    let at_risk = lasting.len();
    // Idle until the floods are over; asked with the rest of the idle half.
    scenario.held.extend(lasting);
    scenario.flood(Kind::Udp, false);
    println!("FLOOD {hook} Udp: {at_risk} answered UDP flows were among those asked");
    // The other way round: no flood of segments touches them either.
    scenario.flood(Kind::Syn, false);
}

#[test]
fn a_udp_flood_touches_no_tcp_pin_and_no_answered_udp_flow() {
    need!();
    let _turn = turn();
    udp_flood(Placement::RemoteOther, "xdp");
    if long() {
        udp_flood(Placement::Container, "tc");
    }
}
