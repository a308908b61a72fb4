//! Both CPUs on a table of two sets, with the agent sweeping and reading: what
//! the model check (shifter-common/tests/life) proves of steps, tried on the
//! real programs.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use shifter::{
    datapath::{
        Datapath as _, FlowFilter, FlowRow, Placement, attach::Place, kernel::KernelDatapath,
        trial::Trial,
    },
    model::{PoolName, Protocol, SplitMethod},
};
use shifter_common::abi::flow::{FlowEntry, FlowSet, STATE_CLAIMING, control_state, is_live};
use shifter_tests::{
    need,
    need::scaled,
    packet::{ACK, FIN, Packet, RST, SYN, addr},
    scene::{Scene, image, in_scene},
    traffic::frame::mix,
};

/// Two sets of 16 entries.
const CAPACITY: u32 = 16;
/// Everything but what is established goes after a second: see `abi::config`.
const TIMEOUTS_S: [u32; 8] = [1, 7_440, 1, 1, 1, 2, 432_000, 0];
/// Clients of each protocol.
const CLIENTS: u64 = 64;
/// So many of them are used in a round: more than there is room for, or so few
/// that others are idle until they expire.
const WINDOWS: [u64; 2] = [16, 2];
/// Rounds until that changes.
const PHASE: u64 = 15;
/// Proven TCP flows that nothing may touch.
const PROVEN: u16 = 6;
const ROUND: Duration = Duration::from_millis(100);

const TCP: u16 = 1;
const UDP: u16 = 2;

fn vip(service: u16) -> SocketAddr {
    addr(&format!("203.0.113.{service}:80"))
}

/// Backend id, of blue or green.
const fn backend_id(service: u16, green: bool) -> u16 {
    10 * service + green as u16
}

fn backend(id: u16) -> SocketAddr {
    addr(&format!("10.8.0.{id}:8080"))
}

/// The port of a client says which address it has.
fn client(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 9, high, low], 20_000 + number))
}

fn protected(number: u16) -> SocketAddr {
    client(1_000 + number)
}

/// One CPU's programs.
struct Cpu {
    ingress: Trial,
    egress: Trial,
    number: usize,
    chance: u64,
    packets: u64,
}

impl Cpu {
    fn new(datapath: &KernelDatapath, number: usize, place: Place) -> Self {
        Self {
            ingress: datapath.trial(place).unwrap(),
            egress: datapath.trial(Place::TcEgress).unwrap(),
            number,
            chance: number as u64,
            packets: 0,
        }
    }

    fn pin(&self) {
        // SAFETY: an all-zero set is valid, and the call reads as much as it is told.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(self.number, &mut set);
            let failed = libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        }
    }

    fn draw(&mut self, of: u64) -> u64 {
        self.chance = mix(self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.chance % of
    }

    fn give(&mut self, packet: &Packet) {
        self.ingress.run(&packet.frame()).unwrap();
        self.packets += 1;
    }

    fn answer(&mut self, packet: &Packet) {
        self.egress.run(&packet.frame()).unwrap();
        self.packets += 1;
    }

    fn handshake(&mut self, from: SocketAddr, server: SocketAddr) {
        let to = vip(TCP);
        self.give(&Packet::tcp(from, to, SYN));
        self.answer(&Packet::tcp(server, from, SYN | ACK).seq(5_000, 1_001));
        self.give(&Packet::tcp(from, to, ACK).seq(1_001, 5_001));
    }

    /// One packet or a few of a flow that the other CPU is at as well.
    fn act(&mut self, round: u64) {
        let phase = round / PHASE;
        let first = phase * 16 + round % PHASE * (1 - phase % 2);
        let number = (first + self.draw(WINDOWS[phase as usize % 2])) % CLIENTS;
        let from = client(number as u16);
        let server = |service, green| backend(backend_id(service, green));
        let green = self.draw(2) == 1;
        let (to, tcp) = (vip(TCP), server(TCP, green));
        match self.draw(10) {
            0..3 => self.give(&Packet::tcp(from, to, SYN)),
            3 => self.handshake(from, tcp),
            4 => {
                self.give(&Packet::tcp(from, to, FIN | ACK).seq(1_001, 5_001));
                self.answer(&Packet::tcp(tcp, from, FIN | ACK).seq(5_001, 1_002));
            }
            5 => self.answer(&Packet::tcp(tcp, from, RST | ACK).seq(5_001, 1_001)),
            6..8 => self.give(&Packet::udp(from, vip(UDP))),
            8 => self.answer(&Packet::udp(server(UDP, green), from)),
            _ => self.disturb(),
        }
    }

    /// Packets to a flow that has to stay: its own, and forged ones.
    fn disturb(&mut self) {
        let from = protected(self.draw(u64::from(PROVEN)) as u16);
        let to = vip(TCP);
        let numbers = self.draw(1 << 20) as u32 + 100_000;
        match self.draw(4) {
            0 => self.give(&Packet::tcp(from, to, ACK).seq(1_001, 5_001)),
            1 => self.give(&Packet::tcp(from, to, RST).seq(numbers, 0)),
            2 => self.give(&Packet::tcp(from, to, SYN).seq(numbers, 0)),
            _ => self.give(&Packet::tcp(from, to, ACK).seq(numbers, numbers)),
        }
    }
}

fn all() -> FlowFilter {
    FlowFilter {
        limit: usize::MAX,
        ..FlowFilter::default()
    }
}

/// Why a row cannot be what one packet wrote.
fn torn(row: &FlowRow) -> Option<String> {
    let IpAddr::V4(ip) = row.client.ip() else {
        return Some(format!("no such family: {row:?}"));
    };
    let [_, _, high, low] = ip.octets();
    let is_client = row.client == client(u16::from_be_bytes([high, low]));
    let is_tcp = row.protocol == Protocol::Tcp;
    let is_service = row.service == if is_tcp { TCP } else { UDP };
    let is_green = row.pool == PoolName::Green;
    let is_backend = row.backend == backend_id(row.service, is_green);
    (!(is_client && is_service && is_backend)).then(|| format!("{row:?}"))
}

/// Who serves each of the flows that have to stay.
fn pins(datapath: &KernelDatapath) -> BTreeMap<SocketAddr, (u16, bool)> {
    let (rows, _) = datapath.flows(&all());
    let is_protected = |row: &FlowRow| (0..PROVEN).any(|i| protected(i) == row.client);
    rows.iter()
        .filter(|row| is_protected(row))
        .map(|row| (row.client, (row.backend, row.proven)))
        .collect()
}

/// What must hold while nobody writes.
fn check(scene: &Scene, before: &BTreeMap<SocketAddr, (u16, bool)>) {
    let (rows, _) = scene.datapath.flows(&all());
    let mut seen = HashSet::new();
    for row in &rows {
        assert_eq!(torn(row), None, "a torn entry");
        assert!(
            seen.insert((row.service, row.client)),
            "a double pin: {row:?}"
        );
    }
    assert_eq!(&pins(&scene.datapath), before, "a pin was lost");
    let sets = shifter::datapath::load::flow_sets(CAPACITY);
    let map = scene.map::<FlowSet>("FLOWS", sets);
    for entry in (0..sets).flat_map(|set| map.read(set)) {
        let state = control_state(entry.control);
        assert_ne!(state, STATE_CLAIMING, "a leaked claim: {entry:?}");
    }
}

fn services(scene: &Scene) {
    for (id, protocol) in [(TCP, Protocol::Tcp), (UDP, Protocol::Udp)] {
        let kernel = Placement::Kernel { netns: None };
        scene.backend(100 + id, vip(id), protocol, Placement::Host);
        for green in [false, true] {
            let of = backend_id(id, green);
            scene.backend(of, backend(of), protocol, kernel);
        }
        let mut image = image(id, vip(id), protocol, 100 + id);
        // Two packets of one flow are likely to choose differently.
        image.split = SplitMethod::Exact;
        image.threshold = 1 << 31;
        let [blue, green] = [false, true].map(|green| backend_id(id, green));
        scene.service(&image, &[blue], &[green]);
    }
}

#[test]
fn two_cpus_on_two_sets_tear_double_and_lose_nothing() {
    need!();
    in_scene(CAPACITY, TIMEOUTS_S, |scene| {
        assert_eq!(shifter::datapath::load::flow_sets(CAPACITY), 2);
        services(scene);
        let datapath = &scene.datapath;
        let mut cpus = [Place::Xdp, Place::TcIngress]
            .into_iter()
            .enumerate()
            .map(|(number, place)| Cpu::new(datapath, number, place))
            .collect::<Vec<_>>();
        for number in 0..PROVEN {
            // Whichever it was given to, one of the two answers is its own.
            for green in [false, true] {
                cpus[0].handshake(protected(number), backend(backend_id(TCP, green)));
            }
        }
        let before = pins(datapath);
        assert_eq!(before.len(), usize::from(PROVEN));
        assert!(before.values().all(|(_, proven)| *proven), "{before:?}");
        let end = Instant::now() + scaled(Duration::from_secs(6), Duration::from_secs(60));
        let (swept, read) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut rounds = 0;
        while Instant::now() < end {
            contend(&scene.datapath, &mut cpus, rounds, [&swept, &read]);
            check(scene, &before);
            rounds += 1;
        }
        let packets: u64 = cpus.iter().map(|cpu| cpu.packets).sum();
        let evicted: u64 = scene.datapath.census().evicted.values().sum();
        let (swept, read) = (swept.into_inner(), read.into_inner());
        println!(
            "CONTENTION: {packets} packets from two CPUs on 32 entries in {rounds} rounds, \
             {evicted} evicted, {swept} swept, {read} entries read, \
             0 torn, 0 double, 0 lost of {PROVEN}, 0 claims leaked"
        );
        assert!(
            packets > 50_000 && evicted > 1_000 && swept > 3,
            "too little happened"
        );
    });
}

/// A round: both CPUs at once, and the agent beside them.
fn contend(datapath: &KernelDatapath, cpus: &mut [Cpu], round: u64, counts: [&AtomicU64; 2]) {
    let stop = AtomicBool::new(false);
    let [swept, read] = counts;
    thread::scope(|scope| {
        for cpu in cpus {
            let stop = &stop;
            scope.spawn(move || {
                cpu.pin();
                while !stop.load(Relaxed) {
                    cpu.act(round);
                }
            });
        }
        let end = Instant::now() + ROUND;
        while Instant::now() < end {
            swept.fetch_add(datapath.sweep(), Relaxed);
            let (rows, _) = datapath.flows(&all());
            read.fetch_add(rows.len() as u64, Relaxed);
            let torn = rows.iter().find_map(torn);
            if torn.is_some() {
                stop.store(true, Relaxed);
            }
            assert_eq!(torn, None, "the agent read a torn entry");
        }
        stop.store(true, Relaxed);
    });
}

/// The only live entry; with `rest_s` it was last seen so long ago from now on.
fn only_entry(scene: &Scene, rest_s: u64) -> FlowEntry {
    let sets = shifter::datapath::load::flow_sets(CAPACITY);
    let map = scene.map::<FlowSet>("FLOWS", sets);
    let mut found = None;
    for set in 0..sets {
        let mut entries: [FlowEntry; 16] = map.read(set);
        for entry in &mut entries {
            let rest = ((rest_s * 1_000_000_000) >> 24) as u32;
            entry.last_seen = entry.last_seen.wrapping_sub(rest);
            if is_live(control_state(entry.control)) {
                assert!(found.replace(*entry).is_none(), "one flow, one entry");
            }
        }
        map.write(set, entries);
    }
    found.expect("the flow has its entry")
}

#[test]
fn a_packet_after_a_rest_renews_the_word_that_the_sweeper_compares() {
    need!();
    in_scene(CAPACITY, TIMEOUTS_S, |scene| {
        services(scene);
        let mut cpu = Cpu::new(&scene.datapath, 0, Place::TcIngress);
        let from = protected(0);
        for green in [false, true] {
            cpu.handshake(from, backend(backend_id(TCP, green)));
        }
        let ack = Packet::tcp(from, vip(TCP), ACK).seq(1_001, 5_001);
        // Long enough for the clock to tick.
        thread::sleep(Duration::from_millis(100));
        let before = only_entry(scene, 0);
        cpu.give(&ack);
        let after = only_entry(scene, 60);
        assert_eq!(after.control, before.control, "a busy flow's word stays");
        assert!(after.last_seen != before.last_seen);
        cpu.give(&ack);
        let rested = only_entry(scene, 0);
        assert_ne!(rested.control, before.control, "it was idle for a minute");
        let is_same = |mask| rested.control & mask == before.control & mask;
        assert!(is_same(0x0000_ffff_ffff_ffff), "only the stamp is new");
    });
}
