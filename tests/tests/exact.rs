//! `split = "exact"`: green's share of new flows is off by less than one flow a CPU.

use std::{thread, time::Duration};

use shifter_tests::{
    agent::{Agent, Settings},
    mover::Service,
    need,
    need::scaled,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        server,
        storm::{Plan, Storm},
        syn::{self, Counter, Sender},
    },
};

/// Weights in the order they are set, and the flows sent under each: none, all,
/// shares that no count of flows hits, and changes after a few flows only.
const PHASES: [(&str, f64, u32); 10] = [
    ("0.05%", 0.0005, 3_000),
    ("0%", 0.0, 500),
    ("1/3", 1.0 / 3.0, 4_000),
    ("33.3333%", 0.333_333, 7),
    ("100%", 1.0, 501),
    ("7%", 0.07, 2_999),
    ("0.05%", 0.0005, 13),
    ("50%", 0.5, 4_001),
    ("99.99%", 0.9999, 2_000),
    ("5%", 0.05, 5_000),
];

/// SYNs a second: a rate at which none is lost before it is counted.
const RATE: u32 = 20_000;

fn cpus() -> f64 {
    thread::available_parallelism().unwrap().get() as f64
}

fn counted(hook: &'static str, family: Family) {
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = Agent::start(&lab, Settings::hook(hook).with_capacity(262_144)).unwrap();
    let counters = Side::BOTH.map(|side| {
        let port = lab.listen(side, family).port();
        Counter::start(lab.server_ns(side), port).unwrap()
    });
    let sender = Sender::new(&lab.client, "c0", lab.host_addr(family, 0).ip()).unwrap();
    let mut service = Service::of(&lab, "tcp", family);
    service.split = "exact";
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let vip = lab.vip(family);
    let (mut wanted, mut sent) = (0.0, 0u64);
    let mut batch = 0;
    for _ in 0..scaled(1, 5) {
        for (weight, share, flows) in PHASES {
            agent.shift(&service.name, weight).unwrap();
            let before = agent.new_flows(&service.name).unwrap();
            batch += 1;
            let tuples = syn::tuples(vip, flows, batch, 7);
            sender.send(vip, &tuples, RATE).unwrap();
            thread::sleep(Duration::from_millis(100));
            let after = agent.new_flows(&service.name).unwrap();
            let new: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
            assert_eq!(
                new,
                u64::from(flows),
                "{hook} {weight}: each is chosen once"
            );
            sent += new;
            wanted += share * new as f64;
            let off = (after[1] as f64 - wanted).abs();
            println!(
                "{hook} {weight}: green {} of {sent}, off by {off:.4}",
                after[1]
            );
            assert!(off < cpus(), "{hook} {weight}: green is off by {off} flows");
        }
    }
    // What the kernel counted is what arrived, but for what a full queue lost.
    let chosen = agent.new_flows(&service.name).unwrap();
    for (counter, chosen) in counters.iter().zip(chosen) {
        let arrived = counter.count().unwrap();
        assert!(
            arrived <= chosen && arrived * 100 >= chosen * 95,
            "{arrived} of {chosen} arrived"
        );
    }
}

#[test]
fn counted_flows_are_off_by_less_than_one_a_cpu_under_tc() {
    need!();
    counted("tc", Family::V4);
}

#[test]
fn counted_flows_are_off_by_less_than_one_a_cpu_under_xdp() {
    need!();
    counted("xdp", Family::V6);
}

#[test]
fn a_change_of_the_split_moves_no_flow() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let mut service = Service::of(&lab, "tcp", Family::V4).with_green("50%");
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let plan = Plan {
        tcp_to: vec![lab.vip(Family::V4)],
        udp_to: Vec::new(),
        tcp_flows: 200,
        udp_flows: 0,
        rate: 10,
    };
    let storm = Storm::start(&lab.client, plan).unwrap();
    assert!(storm.wait_for(200, Duration::from_secs(20)));
    for split in ["exact", "hash", "exact", "hash", "exact"] {
        service.split = split;
        agent.apply(std::slice::from_ref(&service)).unwrap();
        assert_eq!(
            agent.service(&service.name).unwrap()["spec"]["split"],
            split
        );
        thread::sleep(Duration::from_millis(300));
    }
    storm.finish().unwrap().assert_untouched("a changed split");
}
