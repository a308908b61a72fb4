//! Random and mutated frames through all three programs, byte for byte against
//! a model in plain Rust. `SHIFTER_TEST_LONG=1`: 10 million frames.

mod change;
mod generate;
mod model;
mod parse;
mod tcp;

use std::{collections::BTreeSet, net::SocketAddr, time::Instant};

use shifter::{
    datapath::{
        BackendImage, Datapath as _, FlowFilter, Placement, ServiceImage, attach::Place,
        load::flow_sets, monotonic_ns,
    },
    model::{Affinity, CohortSpec, PoolName, Prefix, Protocol, cohort::Rule},
};
use shifter_common::abi::flow::FlowSet;
use shifter_tests::{
    need,
    need::scaled,
    packet::addr,
    scene::{Action, Scene, image, in_scene, neighbour},
};

use generate::{Corpus, Dice, Way};
use model::Model;
use parse::view;

/// Flows never expire in between: the model has no clock.
const FOR_EVER_S: u32 = 10_000_000;
const CAPACITY: u32 = 16_384;
/// Frames between two fresh tables; far fewer flows than there is room for.
const ROUND: usize = 8_192;
const SEED: u64 = 0x5147_f7e2;
/// Index of the interface towards the clients.
const OUT: u32 = 78;
const MTU: u32 = 1_200;

#[test]
fn every_frame_leaves_as_the_model_says() {
    need!();
    let frames = scaled(200_000, 10_000_000);
    in_scene(CAPACITY, [FOR_EVER_S; 8], move |scene| {
        let mut model = Model::default();
        let ways = furnish(scene, &mut model);
        let corpus = Corpus::new(&ways);
        let mut dice = Dice(SEED);
        let start = Instant::now();
        let mut refused = 0;
        let mut done = 0;
        while done < frames {
            change_weights(scene, &mut model, &mut dice);
            for _ in 0..ROUND.min(frames - done) {
                let frame = corpus.draw(&mut dice);
                refused += usize::from(!try_everywhere(scene, &mut model, &frame, done));
                done += 1;
            }
            compare_tables(scene, &model, done);
            clear(scene, &mut model);
        }
        compare_counters(scene, &model);
        assert_all_seen(&model);
        assert!(refused * 20 < frames, "the kernel took too few frames");
        let seconds = start.elapsed().as_secs_f64();
        println!("{frames} frames, {refused} of them too short for the kernel, {seconds:.1} s");
    });
}

/// One frame through all three programs; false: the kernel refuses to try it.
fn try_everywhere(scene: &mut Scene, model: &mut Model, frame: &[u8], number: usize) -> bool {
    if frame.len() < shortest(frame) {
        return false;
    }
    for place in [Place::Xdp, Place::TcIngress, Place::TcEgress] {
        let mut must = frame.to_vec();
        let action = model.run(place, &mut must);
        let (is_action, is) = scene.run(place, frame);
        assert!(
            (is_action, is) == (action, &must[..]),
            "frame {number} at {place:?}:\n   in {frame:02x?}\n   is {is_action:?} {is:02x?}\n must {action:?} {must:02x?}\n{:?}",
            view(frame)
        );
        let is_to_vip = view(frame).is_some_and(|view| model.is_vip(&view.destination));
        assert!(
            action != Action::Drop || is_to_vip,
            "frame {number} concerns no VIP and was dropped"
        );
    }
    true
}

/// What BPF_PROG_TEST_RUN asks for by EtherType.
fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    }
}

/// Services of every kind, some of which share a server.
fn furnish(scene: &Scene, model: &mut Model) -> Vec<Way> {
    let hop = scene.route_to_clients(OUT, MTU);
    scene.datapath.set_next_hops(&[hop]).unwrap();
    model.client_hop = Some(hop);
    let mut ways = Vec::new();
    for (family, (v4, host)) in [(true, "203.0.113."), (false, "2001:db8::")]
        .into_iter()
        .enumerate()
    {
        for (transport, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
            for kind in 0..5u16 {
                let number = 1 + kind + 5 * (2 * family as u16 + transport as u16);
                let vip = at(host, 10 + kind, 80, v4);
                let way = add(scene, model, number, kind, vip, protocol);
                ways.push(way);
            }
        }
    }
    model.index();
    ways
}

fn at(prefix: &str, last: u16, port: u16, v4: bool) -> SocketAddr {
    if v4 {
        addr(&format!("{prefix}{last}:{port}"))
    } else {
        addr(&format!("[{prefix}{last}]:{port}"))
    }
}

/// A service: 0 to neighbours, 1 by the kernel's routes (sharing a server with
/// 0), 2 the VIP itself is live, 3 settling, 4 without a backend.
fn add(
    scene: &Scene,
    model: &mut Model,
    number: u16,
    kind: u16,
    vip: SocketAddr,
    protocol: Protocol,
) -> Way {
    let prefix = if vip.is_ipv4() {
        "10.8.0."
    } else {
        "2001:db8:8::"
    };
    let server = |last: u16| at(prefix, last, 8_080, vip.is_ipv4());
    let group = (number - 1) / 5 * 100 + 100;
    let vip_backend = 1_000 + number;
    let mut service = image(number, vip, protocol, vip_backend);
    let neighbours = Placement::NextHop(neighbour(OUT, 2, MTU));
    let routed = Placement::Kernel { netns: None };
    // Ids within the group, and how packets reach them.
    let mut pools: [Vec<(u16, Placement)>; 2] = match kind {
        0 => [vec![(1, neighbours), (2, routed)], vec![(3, neighbours)]],
        1 => [vec![(4, routed)], vec![(2, routed), (5, neighbours)]],
        3 => [vec![(1, neighbours)], vec![(4, routed)]],
        2 => [Vec::new(), vec![(3, neighbours)]],
        _ => Default::default(),
    };
    service.affinity = match kind {
        1 => Affinity::Client(Some(24)),
        3 => Affinity::Client(None),
        _ => Affinity::Flow,
    };
    service.live_has_vip = kind == 2;
    if kind == 3 {
        service.settle_until_ns = monotonic_ns() + 86_400_000_000_000;
    }
    put(scene, model, vip_backend, vip, protocol, Placement::Host);
    let mut backends = vec![vip];
    for (last, placement) in pools.iter().flatten() {
        put(
            scene,
            model,
            group + last,
            server(*last),
            protocol,
            *placement,
        );
        backends.push(server(*last));
    }
    let mut rings = pools.each_mut().map(|pool| {
        pool.iter()
            .map(|(last, _)| group + last)
            .collect::<Vec<_>>()
    });
    if kind == 2 {
        rings[0].push(vip_backend);
    }
    // Several slots each, as a Maglev ring has.
    let rings = rings.map(|ring| ring.repeat(3));
    scene.service(&service, &rings[0], &rings[1]);
    model.services.insert(number, (service, rings));
    Way {
        vip,
        backends,
        is_udp: protocol == Protocol::Udp,
    }
}

fn put(
    scene: &Scene,
    model: &mut Model,
    id: u16,
    addr: SocketAddr,
    protocol: Protocol,
    placement: Placement,
) {
    scene.backend(id, addr, protocol, placement);
    let backend = BackendImage {
        addr,
        protocol,
        placement,
        maint: false,
        down: false,
    };
    model.backends.insert(id, backend);
}

/// Other weights, cohorts, and other backends that are down.
fn change_weights(scene: &Scene, model: &mut Model, dice: &mut Dice) {
    for (service, _) in model.services.values_mut() {
        let cohorts = draw_cohorts(dice);
        let rules = rules(&cohorts, service.vip.addr.is_ipv4());
        scene.datapath.drop_cohorts(service.cohort_set);
        service.cohort_set = scene.datapath.write_cohorts(&rules).unwrap();
        service.cohorts_on = service.cohort_set != 0 && !dice.one_in(4);
        model.cohorts.insert(service.id, cohorts);
        service.threshold = [0, 1 << 31, 1 << 30, 1 << 32][dice.below(4)];
        service.generation += 1;
        scene
            .datapath
            .publish(service as &ServiceImage, None)
            .unwrap();
    }
    for (id, backend) in model.backends.iter_mut().filter(|(id, _)| **id < 1_000) {
        backend.down = dice.one_in(6);
        backend.maint = dice.one_in(8);
        scene.datapath.put_backend(*id, backend).unwrap();
    }
    scene.datapath.reclaim();
}

/// Cohorts around the clients that frames come from, or none.
fn draw_cohorts(dice: &mut Dice) -> Vec<CohortSpec> {
    const LENGTHS: [(&str, u8, &str, u8); 5] = [
        ("10.9.0.1", 32, "2001:db8:9::1", 128),
        ("10.9.0.1", 31, "2001:db8:9::1", 64),
        ("10.9.0.1", 16, "2001:db8:9::1", 48),
        ("10.99.0.1", 9, "2001:db8:99::1", 33),
        ("10.9.0.1", 0, "2001:db8:9::1", 0),
    ];
    let mut cohorts =
        [None, Some(PoolName::Blue), Some(PoolName::Green)].map(|pool| (pool, Vec::new()));
    for (v4, bits4, v6, bits6) in LENGTHS {
        let into = dice.below(6);
        if let Some((_, prefixes)) = cohorts.get_mut(into) {
            prefixes.push(Prefix::cut(v4.parse().unwrap(), bits4).unwrap());
            prefixes.push(Prefix::cut(v6.parse().unwrap(), bits6).unwrap());
        }
    }
    cohorts
        .into_iter()
        .map(|(pool, prefixes)| CohortSpec {
            name: "c".into(),
            pool,
            prefixes: prefixes.into(),
        })
        .collect()
}

/// What the kernel is told of them.
fn rules(cohorts: &[CohortSpec], is_ipv4: bool) -> Vec<Rule> {
    let all = cohorts.iter().flat_map(|cohort| {
        cohort.prefixes.iter().map(|prefix| Rule {
            prefix: *prefix,
            pool: cohort.pool,
            cohort: 0,
        })
    });
    all.filter(|rule| rule.prefix.addr().is_ipv4() == is_ipv4)
        .collect()
}

/// Every flow, its state and its bytes, and every verdict so far.
fn compare_tables(scene: &Scene, model: &Model, done: usize) {
    let filter = FlowFilter {
        limit: usize::MAX,
        ..FlowFilter::default()
    };
    let (rows, _) = scene.datapath.flows(&filter);
    let is: BTreeSet<String> = rows
        .iter()
        .map(|row| {
            format!(
                "{} {} {:?} {} {} {} {} {} {} {}",
                row.service,
                row.client,
                row.protocol,
                row.pool,
                row.backend,
                row.state,
                row.adopted,
                row.cohort,
                row.generation,
                row.bytes
            )
        })
        .collect();
    let must: BTreeSet<String> = model.rows().collect();
    let extra: Vec<_> = is.difference(&must).take(5).collect();
    let missing: Vec<_> = must.difference(&is).take(5).collect();
    assert!(
        extra.is_empty() && missing.is_empty(),
        "after {done} frames the table has {extra:#?} and lacks {missing:#?}"
    );
    let wrong: Vec<_> = scene
        .datapath
        .verdicts()
        .unwrap()
        .into_iter()
        .map(|count| {
            let must = model.verdicts.get(&(count.hook, count.reason));
            (count, must.copied().unwrap_or(0))
        })
        .filter(|(count, must)| count.packets != *must)
        .collect();
    assert!(wrong.is_empty(), "after {done} frames: {wrong:#?}");
}

/// The frames led everywhere that they can lead without a full table.
fn assert_all_seen(model: &Model) {
    const INGRESS: &[&str] = &[
        "not_ours",
        "no_flow",
        "unparsed",
        "fragment",
        "forward_redirect",
        "forward_kernel",
        "forward_vip",
        "reply_redirect",
        "reply_kernel",
        "icmp_forward",
        "icmp_reply",
        "too_big",
        "unpinned",
        "tuple_clash",
        "no_backend",
        "ttl_expired",
    ];
    const EGRESS: &[&str] = &["reply_egress", "reply_vip", "icmp_reply", "no_flow"];
    for (hook, verdicts) in [("xdp", INGRESS), ("tc", INGRESS), ("egress", EGRESS)] {
        for verdict in verdicts {
            let seen = model.verdicts.get(&(hook, *verdict)).copied();
            assert!(seen.unwrap_or(0) >= 50, "{verdict} at {hook}: {seen:?}");
        }
    }
}

fn compare_counters(scene: &Scene, model: &Model) {
    let forced: u64 = model.counters.values().map(|c| c.cohort_flows).sum();
    assert!(forced >= 50, "only {forced} flows were forced by a cohort");
    for service in model.services.keys() {
        let is = scene.datapath.pool_counters(*service).unwrap();
        for (pool, is) in is.into_iter().enumerate() {
            let must = model.counters.get(&(*service, pool));
            let must = must.copied().unwrap_or_default();
            assert_eq!(is, must, "service {service}, pool {pool}");
        }
    }
}

/// An empty table on both sides.
fn clear(scene: &Scene, model: &mut Model) {
    let sets = flow_sets(CAPACITY);
    let map = scene.map::<FlowSet>("FLOWS", sets);
    // SAFETY: all zero is a free entry.
    let empty: FlowSet = unsafe { std::mem::zeroed() };
    for set in 0..sets {
        map.write(set, empty);
    }
    model.clear();
}
