//! Observed shares, silent backends, fragments, flows and explain.

use std::time::Duration;

use super::rig::{Rig, context, other, web};
use crate::{
    datapath::Placement,
    model::{Affinity, PoolName, Protocol, SplitMethod},
    reconcile::{
        Controller as _,
        controller::{ControlError, FlowQuery},
        reconciler::lock,
    },
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_observed_share_counts_new_flows_since_the_last_shift() {
    let rig = Rig::with_web();
    let chosen = |blue, green| {
        rig.datapath.with(|k| {
            let counters = k.pool_counters.entry(0).or_default();
            counters[0].new_flows += blue;
            counters[1].new_flows += green;
            counters[0].adopted_flows += 3;
        });
    };
    chosen(500, 0);
    rig.shift("5%").unwrap();
    let none = rig.reconciler.get("web").unwrap().observed;
    assert_eq!((none.total, none.interval), (0, None));
    chosen(95, 5);
    rig.clock.pass(2 * SECOND);
    let observed = rig.reconciler.get("web").unwrap().observed;
    assert_eq!(
        (observed.green, observed.total, observed.adopted),
        (5, 100, 3)
    );
    let (share, low, high) = observed.interval.unwrap();
    assert!(share == 0.05 && low < 0.05 && high > 0.05);
}

#[test]
fn what_changes_no_share_lets_the_window_go_on() {
    let rig = Rig::with_web();
    let total = || rig.reconciler.get("web").unwrap().observed.total;
    rig.shift_for("5%", 600 * SECOND);
    rig.datapath
        .with(|k| k.pool_counters.entry(0).or_default()[0].new_flows += 100);
    let publications = rig.datapath.with(|k| k.publications);
    rig.reconciler.confirm("web", &context()).unwrap();
    rig.reconciler.settle_again();
    let green = "10.0.1.1:8443".parse().unwrap();
    lock(&rig.facts.placements).insert(green, Placement::Host);
    rig.reconciler.refresh_placements();
    let mut spec = rig.reconciler.get("web").unwrap().spec;
    spec.green_pool[0].weight = 2;
    rig.apply(&[spec.clone()]).unwrap();
    assert_eq!(rig.datapath.with(|k| k.publications) - publications, 4);
    assert_eq!(total(), 100);
    spec.split = SplitMethod::Exact;
    rig.apply(&[spec]).unwrap();
    assert_eq!(total(), 0, "another split method");
}

#[test]
fn the_window_is_a_minute_at_most() {
    let rig = Rig::with_web();
    for _ in 0..180 {
        rig.clock.pass(SECOND);
        rig.datapath
            .with(|k| k.pool_counters.entry(0).or_default()[0].new_flows += 1);
        rig.reconciler.tick_observed();
    }
    let observed = rig.reconciler.get("web").unwrap().observed;
    assert_eq!((observed.window_s, observed.total), (60, 60));
}

#[test]
fn under_client_affinity_clients_are_counted() {
    let rig = Rig::new();
    let mut spec = web();
    spec.affinity = Affinity::Client(None);
    rig.apply(&[spec]).unwrap();
    rig.datapath.with(|k| {
        k.new_clients.insert(0, (2, 40));
        k.pool_counters.entry(0).or_default()[0].new_flows = 1_000;
    });
    let observed = rig.reconciler.get("web").unwrap().observed;
    assert_eq!((observed.green, observed.total), (2, 40));
}

#[test]
fn clients_of_all_services_are_counted_in_one_pass() {
    let rig = Rig::with_web();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let mut spec = other(name, 11 + i as u8);
        spec.affinity = Affinity::Client(None);
        rig.apply(&[spec]).unwrap();
    }
    let id = rig.service_id("b");
    rig.datapath.with(|k| k.new_clients.insert(id, (3, 7)));
    let views = rig.reconciler.list().unwrap();
    let counted: Vec<_> = views.iter().map(|v| v.observed.total).collect();
    assert_eq!(counted, [0, 7, 0, 0]);
    assert_eq!(rig.datapath.with(|k| k.client_passes), 1);
    rig.reconciler.get("web").unwrap();
    assert_eq!(rig.datapath.with(|k| k.client_passes), 1, "web is by flow");
}

#[test]
fn what_stands_in_the_way_is_asked_for_the_services_protocol() {
    let rig = Rig::new();
    let addr = "10.0.0.1:8443".parse().unwrap();
    lock(&rig.facts.warnings).insert(addr, "dropped".into());
    let mut udp = other("udp", 11);
    udp.vip.protocol = Protocol::Udp;
    let receipts = rig.apply(&[web(), udp]).unwrap();
    for (receipt, protocol) in receipts.iter().zip(["tcp", "udp"]) {
        let warning = format!("backend 10.0.0.1:8443: dropped ({protocol})");
        assert!(receipt.warnings.contains(&warning), "{receipt:?}");
        let view = rig.reconciler.get(&receipt.service).unwrap();
        assert_eq!(view.backends[0].warnings, [format!("dropped ({protocol})")]);
        let listed = rig.reconciler.list().unwrap();
        let view = listed.iter().find(|v| v.spec.name == receipt.service);
        assert_eq!(
            view.unwrap().backends[0].warnings,
            [format!("dropped ({protocol})")]
        );
    }
}

#[test]
fn a_backend_that_gets_packets_and_sends_none_is_named() {
    let rig = Rig::with_web();
    let green = rig.backend("10.0.1.1:8443");
    let warnings = || {
        rig.reconciler.get("web").unwrap().backends[1]
            .warnings
            .clone()
    };
    let traffic = |forward, reply| {
        rig.datapath.with(|k| {
            let counters = k.backend_counters.entry(green).or_default();
            counters.forward_packets += forward;
            counters.reply_packets += reply;
        });
        rig.clock.pass(SECOND);
        rig.reconciler.tick_observed();
    };
    for _ in 0..5 {
        traffic(10, 9);
    }
    assert!(warnings().is_empty());
    for _ in 0..5 {
        traffic(2, 0);
    }
    assert_eq!(
        warnings(),
        [
            "10 packets were sent and no reply was seen through this host in the last 4s: its route to the clients must lead here"
        ]
    );
    traffic(2, 1);
    assert!(warnings().is_empty());
    for _ in 0..5 {
        traffic(2, 0);
    }
    assert_eq!(warnings().len(), 1);
    rig.clock.pass(61 * SECOND);
    assert!(
        warnings().is_empty(),
        "packets of a minute ago say nothing about now"
    );
}

#[test]
fn fragments_to_the_vip_are_warned_of() {
    let rig = Rig::with_web();
    rig.datapath
        .with(|k| k.pool_counters.entry(0).or_default()[0].fragments = 7);
    let view = rig.reconciler.get("web").unwrap();
    assert!(
        view.warnings[0].starts_with("7 fragments to the VIP"),
        "{:?}",
        view.warnings
    );
}

#[test]
fn the_first_flow_is_told_from_the_publication_on() {
    let rig = Rig::with_web();
    let receipt = rig.shift("5%").unwrap();
    let first = |generation| rig.reconciler.first_flow("web", generation).unwrap();
    assert_eq!(first(receipt.generation), None);
    let at_ns = crate::datapath::monotonic_ns() + 1_000_000;
    rig.datapath
        .with(|k| k.first_flows.insert(0, (receipt.generation, at_ns)));
    let (generation, after_ns) = first(receipt.generation).unwrap();
    assert_eq!(generation, receipt.generation);
    assert!(
        (1_000_000..10_000_000_000).contains(&after_ns),
        "{after_ns}"
    );
    assert_eq!(
        rig.reconciler.get("web").unwrap().first_flow,
        Some((generation, after_ns))
    );
    assert_eq!(first(receipt.generation + 1), None);
}

#[test]
fn flows_are_listed_with_names() {
    let rig = Rig::with_web();
    let flows = [
        rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000"),
        rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.2:1001"),
    ];
    rig.datapath.with(|k| k.flows.extend(flows));
    let query = |query: FlowQuery| rig.reconciler.flows(&query);
    let (all, matched) = query(FlowQuery::default()).unwrap();
    assert_eq!((all.len(), matched), (2, 2));
    assert_eq!(all[0].service, "web");
    assert_eq!(all[0].backend.to_string(), "10.0.0.1:8443");
    let (green, matched) = query(FlowQuery {
        backend: Some("10.0.1.1:8443".parse().unwrap()),
        ..FlowQuery::default()
    })
    .unwrap();
    assert_eq!((green.len(), matched), (1, 1));
    let (one, matched) = query(FlowQuery {
        limit: 1,
        ..FlowQuery::default()
    })
    .unwrap();
    assert_eq!((one.len(), matched), (1, 2));
    let unknown = FlowQuery {
        backend: Some("10.9.9.9:1".parse().unwrap()),
        ..FlowQuery::default()
    };
    assert!(matches!(query(unknown), Err(ControlError::Invalid(_))));
}

#[test]
fn explain_follows_the_packet_and_agrees_with_the_weight() {
    let rig = Rig::with_web();
    rig.shift("25%").unwrap();
    let mut green = 0;
    for port in 0..2_000 {
        let explained = rig
            .reconciler
            .explain("web", "192.0.2.1".parse().unwrap(), Some(10_000 + port))
            .unwrap();
        let expected = match explained.pool {
            PoolName::Blue => "10.0.0.1:8443",
            PoolName::Green => "10.0.1.1:8443",
        };
        assert_eq!(explained.backend.to_string(), expected);
        green += u32::from(explained.pool == PoolName::Green);
    }
    assert!((400..600).contains(&green), "{green}");
    let text = rig
        .reconciler
        .explain("web", "192.0.2.1".parse().unwrap(), None)
        .unwrap()
        .why
        .join("\n");
    for part in [
        "belongs to service",
        "settling",
        "depends on the client's port",
        "no cohort",
        "the ring of",
        "this host itself",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn explain_shows_a_pinned_flow_as_it_is() {
    let rig = Rig::with_web();
    let flow = rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1000");
    rig.datapath.with(|k| k.flows.push(flow));
    let explained = rig
        .reconciler
        .explain("web", "192.0.2.1".parse().unwrap(), Some(1000))
        .unwrap();
    assert!(explained.pinned && explained.pool == PoolName::Green);
    assert_eq!(explained.flow.unwrap().backend, explained.backend);
    assert!(explained.why[1].contains("stays on green"));
    let error = rig
        .reconciler
        .explain("web", "2001:db8::1".parse().unwrap(), None);
    assert!(matches!(error, Err(ControlError::Invalid(_))));
}

#[test]
fn explain_tells_of_a_passed_dead_man_and_of_an_empty_pool() {
    let rig = Rig::with_web();
    rig.shift_for("100%", SECOND);
    rig.clock.pass(2 * SECOND);
    let explain = || {
        rig.reconciler
            .explain("web", "192.0.2.1".parse().unwrap(), Some(1))
            .unwrap()
    };
    let explained = explain();
    assert_eq!(explained.pool, PoolName::Blue);
    assert!(
        explained
            .why
            .iter()
            .any(|w| w.contains("deadline has passed"))
    );
    let mut spec = web();
    spec.blue_pool[0].state = crate::model::BackendState::Drain;
    rig.apply(&[spec]).unwrap();
    let explained = explain();
    assert_eq!(explained.pool, PoolName::Green);
    assert!(
        explained
            .why
            .iter()
            .any(|w| w.contains("blue has no backend for new flows"))
    );
}

#[test]
fn a_full_table_is_loud() {
    let rig = Rig::with_web();
    let info = rig.reconciler.info().unwrap();
    assert!(info.warnings.is_empty());
    assert_eq!(info.table_memory_bytes, 128 << 20);
    assert_eq!(info.tag, "fake");
}
