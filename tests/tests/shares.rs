//! A hundred thousand new flows at each weight, counted where they arrive.

use std::{cell::Cell, net::SocketAddr};

use shifter_tests::{
    agent::Settings,
    mover::{Mover, Service},
    need,
    need::scaled,
    stat::{self, FIXED_SEEDS, FRESH_SEEDS},
    topology::{Family, Lab, Placement, Side},
    traffic::syn::{self, Counter, Sender, fresh_seed},
};

const WEIGHTS: [(&str, f64); 4] = [
    ("0.05%", 0.0005),
    ("5%", 0.05),
    ("1/3", 1.0 / 3.0),
    ("50%", 0.5),
];
const FLOWS: u32 = 100_000;
/// SYNs a second: what one core forwards beside sending.
const RATE: u32 = 60_000;

struct Bench<'a> {
    vip: SocketAddr,
    sender: Sender,
    counters: [Counter<'a>; 2],
    batch: Cell<u16>,
}

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab, family: Family) -> Self {
        let next_hop = lab.host_addr(family, 0).ip();
        let counters = Side::BOTH.map(|side| {
            let port = lab.listen(side, family).port();
            Counter::start(lab.server_ns(side), port).unwrap()
        });
        Self {
            vip: lab.vip(family),
            sender: Sender::new(&lab.client, "c0", next_hop).unwrap(),
            counters,
            batch: Cell::new(0),
        }
    }

    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|i| self.counters[i].count().unwrap())
    }

    /// Sends flows that were never there before; how many reached blue and green.
    fn send(&self, flows: u32, seed: u64) -> [u64; 2] {
        let before = self.counts();
        let tuples = syn::tuples(
            self.vip,
            flows,
            self.batch.replace(self.batch.get() + 1),
            seed,
        );
        self.sender.send(self.vip, &tuples, RATE).unwrap();
        // The last packets are handled within a scheduling period.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let after = self.counts();
        let came = [0, 1].map(|i| after[i] - before[i]);
        let total = came[0] + came[1];
        assert!(
            total >= u64::from(flows) * 95 / 100,
            "{total} of {flows} new flows arrived at a server"
        );
        came
    }
}

fn shares(hook: &'static str, affinity: &'static str, family: Family) {
    let lab = Lab::new(Placement::Container).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook).with_capacity(262_144)).unwrap();
    let bench = Bench::new(&lab, family);
    let mut service = Service::of(&lab, "tcp", family);
    service.affinity = affinity;
    let fixed = [
        "000102030405060708090a0b0c0d0e0f",
        "5eed5eed5eed5eed5eed5eed5eed5eed",
    ];
    for (round, seed) in (1..).zip(&fixed[..scaled(1, 2)]) {
        service.seed = Some((*seed).to_owned());
        for (weight, share) in WEIGHTS {
            mover.apply(&[service.clone().with_green(weight)]).unwrap();
            let [blue, green] = bench.send(FLOWS, round);
            let what = format!("{hook}, {affinity}, {family:?}, {weight}, seed {seed}");
            println!("{what}: {green} of {}", blue + green);
            stat::assert_share(&what, green, blue + green, share, FIXED_SEEDS);
        }
    }
    for (weight, share) in WEIGHTS {
        service.seed = Some(format!("{:016x}{:016x}", fresh_seed(), fresh_seed()));
        mover.apply(&[service.clone().with_green(weight)]).unwrap();
        let [blue, green] = bench.send(FLOWS, fresh_seed());
        let what = format!("{hook}, {affinity}, {family:?}, {weight}, fresh seeds");
        println!("{what}: {green} of {}", blue + green);
        stat::assert_share(&what, green, blue + green, share, FRESH_SEEDS);
    }
    mover.shift(&service.name, "0%").unwrap();
    let [_, green] = bench.send(scaled(20_000, FLOWS), fresh_seed());
    assert_eq!(green, 0, "{hook}, {affinity}: at 0% nothing goes to green");
    mover.shift(&service.name, "100%").unwrap();
    let [blue, _] = bench.send(scaled(20_000, FLOWS), fresh_seed());
    assert_eq!(blue, 0, "{hook}, {affinity}: at 100% nothing stays on blue");
}

#[test]
fn new_flows_are_shared_by_weight_under_tc() {
    need!();
    shares("tc", "flow", Family::V4);
}

#[test]
fn new_flows_are_shared_by_weight_under_xdp() {
    need!();
    shares("xdp", "flow", Family::V6);
}

#[test]
fn clients_are_shared_by_weight_under_tc() {
    need!();
    shares("tc", "client", Family::V6);
}

#[test]
fn clients_are_shared_by_weight_under_xdp() {
    need!();
    shares("xdp", "client", Family::V4);
}
