//! Flows that are ended because somebody asked for it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::rig::{Rig, context, specs, web};
use crate::{
    datapath::{FlowRow, Placement},
    health::Watched as _,
    model::{CutRate, PoolName},
    network::TcpSockets,
    reconcile::{
        Controller as _,
        controller::{ControlError, DrainEnd, NamedBackends, Receipt},
        reconciler::lock,
    },
};

const BLUE: &str = "10.0.0.1:8443";
const SECOND: &str = "10.0.0.2:8443";
const GREEN: &str = "10.0.1.1:8443";

fn rate(per_second: u32) -> CutRate {
    CutRate::per_second(per_second).unwrap()
}

/// `web` with half of its new flows on green, and so many flows on each pool.
fn with_flows(count: u16) -> Rig {
    let rig = Rig::with_web();
    rig.shift("50%").unwrap();
    let flow = |pool, backend, port| FlowRow {
        idle_s: 1.0,
        ..rig.flow(pool, backend, &format!("192.0.2.1:{port}"))
    };
    let flows: Vec<FlowRow> = (1..=count)
        .flat_map(|n| {
            [
                flow(PoolName::Green, GREEN, 1_000 + n),
                flow(PoolName::Blue, BLUE, 2_000 + n),
            ]
        })
        .collect();
    rig.datapath.with(|kernel| kernel.flows = flows);
    rig
}

fn roll_back(rig: &Rig, per_second: u32) -> Result<Receipt, ControlError> {
    let cut = Some(rate(per_second));
    rig.reconciler.rollback("web", 0, cut, &context())
}

/// So much time in turns of 100 ms; what takes a RST has ended.
fn pass(rig: &Rig, ms: u64) {
    for _ in 0..ms / 100 {
        rig.clock.pass(Duration::from_millis(100));
        rig.reconciler.cut_flows();
        let sent = lock(&rig.facts.resets).clone();
        let told: BTreeSet<SocketAddr> = sent.iter().map(|(_, to, _)| *to).collect();
        rig.datapath
            .with(|kernel| kernel.flows.retain(|flow| !told.contains(&flow.client)));
    }
}

fn carried(rig: &Rig) -> [usize; 2] {
    [PoolName::Blue, PoolName::Green].map(|pool| {
        rig.datapath
            .with(|k| k.flows.iter().filter(|flow| flow.pool == pool).count())
    })
}

#[test]
fn a_rollback_with_a_cut_ends_the_candidates_flows_at_its_pace() {
    let rig = with_flows(30);
    let receipt = roll_back(&rig, 10).unwrap();
    assert_eq!(receipt.warnings, [""; 0]);
    assert_eq!(rig.green(), "0%", "the weight goes first");
    pass(&rig, 1_000);
    let [blue, green] = carried(&rig);
    assert_eq!(blue, 30);
    assert!((20..=22).contains(&green), "{green} left after 1 s at 10/s");
    let cut = &rig.reconciler.get("web").unwrap().cuts[0];
    assert_eq!((cut.cause, cut.pool), ("rollback", Some(PoolName::Green)));
    assert_eq!((cut.ended as usize, cut.left), (30 - green, Some(30)));
    pass(&rig, 6_000);
    assert_eq!(carried(&rig), [30, 0]);
    let view = rig.reconciler.get("web").unwrap();
    assert!(view.cuts.is_empty(), "{:?}", view.cuts);
    assert_eq!(view.ended_flows[0], ("rollback", 30));
    let record = &rig.audit()[0];
    assert_eq!(
        (record.actor.as_str(), record.action.as_str()),
        ("tester", "cut end")
    );
    assert_eq!(record.after, "30 flows of green ended, none is left");
}

#[test]
fn both_ends_of_a_remote_flow_are_told_in_the_others_name() {
    let rig = with_flows(1);
    roll_back(&rig, 100).unwrap();
    pass(&rig, 300);
    let (backend, client) = (GREEN.parse().unwrap(), "192.0.2.1:1001".parse().unwrap());
    let sent = lock(&rig.facts.resets).clone();
    assert_eq!(sent, [(client, backend, 1), (backend, client, 1)]);
}

#[test]
fn a_flow_of_a_socket_on_this_host_is_ended_by_the_kernel() {
    for netns in [None, Some(7)] {
        let rig = with_flows(2);
        let placement = match netns {
            None => Placement::Host,
            netns => Placement::Kernel { netns },
        };
        lock(&rig.facts.placements).insert(GREEN.parse().unwrap(), placement);
        rig.reconciler.refresh_placements();
        let mut sockets = TcpSockets::default();
        let (at, peer) = (GREEN.parse().unwrap(), "192.0.2.1:1001".parse().unwrap());
        sockets.add(at, peer);
        lock(&rig.facts.sockets).insert(netns, sockets);
        roll_back(&rig, 100).unwrap();
        pass(&rig, 300);
        assert_eq!(*lock(&rig.facts.ended), [(at, peer)]);
        // The other's socket is elsewhere: behind DNAT, it may be.
        let told: Vec<SocketAddr> = lock(&rig.facts.resets).iter().map(|r| r.1).collect();
        assert!(
            told.contains(&"192.0.2.1:1002".parse().unwrap()),
            "{told:?}"
        );
        assert_eq!(told.contains(&at), netns.is_some(), "{told:?}");
    }
}

#[test]
fn a_flow_that_goes_on_is_tried_again_and_counted_once() {
    let rig = with_flows(1);
    roll_back(&rig, 100).unwrap();
    for _ in 0..50 {
        rig.clock.pass(Duration::from_millis(100));
        rig.reconciler.cut_flows();
    }
    let sent = lock(&rig.facts.resets).len() / 2;
    assert!((2..=3).contains(&sent), "{sent} tries in 5 s");
    assert_eq!(rig.reconciler.get("web").unwrap().cuts[0].ended, 1);
}

#[test]
fn flows_chosen_after_the_rollback_are_left_alone() {
    let rig = with_flows(3);
    let generation = roll_back(&rig, 100).unwrap().generation;
    rig.datapath.with(|k| k.flows[0].generation = generation);
    pass(&rig, 3_000);
    assert_eq!(carried(&rig), [3, 1]);
}

#[test]
fn a_shift_stops_a_cut_and_so_does_the_end_of_its_service() {
    let rig = with_flows(30);
    roll_back(&rig, 10).unwrap();
    pass(&rig, 500);
    rig.shift("5%").unwrap();
    let before = carried(&rig);
    pass(&rig, 2_000);
    assert_eq!(carried(&rig), before);
    assert!(rig.reconciler.get("web").unwrap().cuts.is_empty());
    let record = &rig.audit()[0];
    assert!(
        record.after.ends_with("stopped: green is given new flows"),
        "{record:?}"
    );
}

#[test]
fn a_rollback_to_a_generation_that_shares_cuts_nothing_and_says_so() {
    let rig = with_flows(2);
    let shared = rig.reconciler.get("web").unwrap().generation;
    rig.shift("90%").unwrap();
    let cut = Some(rate(10));
    let receipt = rig
        .reconciler
        .rollback("web", shared, cut, &context())
        .unwrap();
    assert_eq!(
        receipt.warnings,
        ["no flow is ended: green is given new flows"]
    );
    assert_eq!(rig.green(), "50%");
    pass(&rig, 1_000);
    assert_eq!(carried(&rig), [2, 2]);
}

#[test]
fn a_cut_goes_on_after_a_restart_where_it_was() {
    let mut rig = with_flows(30);
    roll_back(&rig, 10).unwrap();
    pass(&rig, 1_000);
    let [_, before] = carried(&rig);
    rig.restart();
    pass(&rig, 1_000);
    assert!(carried(&rig)[1] < before);
    // The count is stored now and then.
    let cut = rig.reconciler.get("web").unwrap().cuts[0].clone();
    let gone = 30 - carried(&rig)[1] as u64;
    assert!((1..=gone).contains(&cut.ended), "{cut:?}, {gone} are gone");
    pass(&rig, 6_000);
    assert_eq!(carried(&rig), [30, 0]);
    rig.restart();
    assert!(rig.reconciler.get("web").unwrap().cuts.is_empty());
}

#[test]
fn a_drain_ends_what_is_left_at_its_deadline_unless_it_is_undone() {
    let rig = Rig::new();
    let mut spec = web();
    spec.blue_pool.push(crate::model::BackendSpec {
        addr: "10.0.0.2:8443".parse().unwrap(),
        ..spec.blue_pool[0]
    });
    rig.apply(&[spec]).unwrap();
    let flow = FlowRow {
        idle_s: 1.0,
        ..rig.flow(PoolName::Blue, BLUE, "192.0.2.1:1000")
    };
    rig.datapath.with(|k| k.flows.push(flow));
    let named = NamedBackends {
        service: "web".into(),
        pool: Some(PoolName::Blue),
        backend: Some(BLUE.parse().unwrap()),
    };
    let end = Some(DrainEnd {
        cut: Some((60.0, rate(100))),
    });
    let drain = |end| rig.reconciler.drain(&named, end, &context()).unwrap();
    drain(end);
    pass(&rig, 50_000);
    assert_eq!(carried(&rig), [1, 0], "there is time yet");
    drain(None);
    pass(&rig, 30_000);
    assert_eq!(carried(&rig), [1, 0], "undrained");
    drain(end);
    assert!(rig.reconciler.get("web").unwrap().cuts[0].begins_in_s > 59.0);
    pass(&rig, 62_000);
    assert_eq!(carried(&rig), [0, 0]);
    let too_long = DrainEnd {
        cut: Some((f64::INFINITY, rate(1))),
    };
    assert!(
        rig.reconciler
            .drain(&named, Some(too_long), &context())
            .is_err()
    );
}

#[test]
fn the_flows_of_a_backend_that_is_down_end_where_the_service_says_so() {
    for (on_down, left) in [("", 1), ("on_down = \"cut\"\n", 0)] {
        let rig = Rig::new();
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
             pools = {{ blue = [\"{BLUE}\", \"10.0.0.2:8443\"], green = [\"{GREEN}\"] }}\n\
             [service.health]\ntype = \"tcp\"\n{on_down}"
        );
        rig.apply(&specs(&text)).unwrap();
        let row = |backend, client| FlowRow {
            idle_s: 1.0,
            ..rig.flow(PoolName::Blue, backend, client)
        };
        let flows = [
            row(BLUE, "192.0.2.1:1000"),
            row("10.0.0.2:8443", "192.0.2.1:1001"),
        ];
        rig.datapath.with(|k| k.flows.extend(flows));
        pass(&rig, 500);
        assert_eq!(carried(&rig), [2, 0]);
        assert!(
            rig.reconciler
                .settle("web", &BTreeSet::from([BLUE.parse().unwrap()]))
        );
        pass(&rig, 2_000);
        assert_eq!(carried(&rig), [1 + left, 0], "{on_down}");
        // Where all are down, it may be the check that is wrong.
        let all = [BLUE, "10.0.0.2:8443", GREEN].map(|addr| addr.parse().unwrap());
        assert!(rig.reconciler.settle("web", &BTreeSet::from(all)));
        pass(&rig, 2_000);
        assert_eq!(carried(&rig), [1 + left, 0], "{on_down}");
    }
}

/// `web` with two backends in blue, so many flows on each, and words on its checks.
fn with_two_in_blue(count: u16, health: &str) -> Rig {
    let rig = Rig::new();
    let text = format!(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = {{ blue = [\"{BLUE}\", \"{SECOND}\"], green = [\"{GREEN}\"] }}\n{health}"
    );
    rig.apply(&specs(&text)).unwrap();
    for (backend, base) in [(BLUE, 1_000), (SECOND, 2_000)] {
        for n in 0..count {
            let flow = FlowRow {
                idle_s: 1.0,
                ..rig.flow(PoolName::Blue, backend, &format!("192.0.2.1:{}", base + n))
            };
            rig.datapath.with(|k| k.flows.push(flow));
        }
    }
    rig
}

fn carried_from(rig: &Rig, ports: std::ops::Range<u16>) -> usize {
    let is_of = |flow: &&FlowRow| ports.contains(&flow.client.port());
    rig.datapath.with(|k| k.flows.iter().filter(is_of).count())
}

#[test]
fn flows_of_one_that_is_undrained_are_left_alone_from_then_on() {
    let rig = with_two_in_blue(30, "");
    let named = |backend: Option<&str>| NamedBackends {
        service: "web".into(),
        pool: Some(PoolName::Blue),
        backend: backend.map(|addr| addr.parse().unwrap()),
    };
    let end = Some(DrainEnd {
        cut: Some((0.0, rate(10))),
    });
    rig.reconciler.drain(&named(None), end, &context()).unwrap();
    pass(&rig, 500);
    let one = named(Some(BLUE));
    rig.reconciler.drain(&one, None, &context()).unwrap();
    let before = carried_from(&rig, 1_000..2_000);
    assert!(before > 20, "{before}");
    pass(&rig, 8_000);
    assert_eq!(carried_from(&rig, 1_000..2_000), before);
    assert_eq!(carried_from(&rig, 2_000..3_000), 0);
}

#[test]
fn flows_of_one_that_drains_are_not_ended_for_its_checks() {
    let rig = with_two_in_blue(2, "[service.health]\ntype = \"tcp\"\non_down = \"cut\"\n");
    let named = NamedBackends {
        service: "web".into(),
        pool: Some(PoolName::Blue),
        backend: Some(BLUE.parse().unwrap()),
    };
    let keep = Some(DrainEnd::default());
    rig.reconciler.drain(&named, keep, &context()).unwrap();
    let down = BTreeSet::from([BLUE.parse().unwrap()]);
    assert!(rig.reconciler.settle("web", &down));
    pass(&rig, 3_000);
    assert_eq!(carried(&rig), [4, 0]);
}

#[test]
fn the_flows_of_the_only_pool_that_is_up_are_not_ended() {
    let rig = with_two_in_blue(0, "[service.health]\ntype = \"tcp\"\n");
    rig.shift("50%").unwrap();
    let flow = rig.flow(PoolName::Green, GREEN, "192.0.2.1:1000");
    rig.datapath.with(|k| k.flows.push(flow));
    let down = [BLUE, SECOND].map(|addr| addr.parse().unwrap());
    assert!(rig.reconciler.settle("web", &BTreeSet::from(down)));
    let receipt = roll_back(&rig, 100).unwrap();
    assert_eq!(
        receipt.warnings,
        ["no flow is ended: green has the new flows of blue, which has no backend for them"]
    );
    pass(&rig, 2_000);
    assert_eq!(carried(&rig), [0, 1]);
}

#[test]
fn a_udp_flow_in_use_is_released() {
    let rig = with_flows(0);
    let flow = FlowRow {
        protocol: crate::model::Protocol::Udp,
        idle_s: 0.0,
        ..rig.flow(PoolName::Green, GREEN, "192.0.2.1:1000")
    };
    rig.datapath.with(|k| k.flows.push(flow));
    roll_back(&rig, 100).unwrap();
    pass(&rig, 300);
    assert_eq!(carried(&rig), [0, 0]);
    assert_eq!(rig.reconciler.get("web").unwrap().ended_flows[0].1, 1);
}
