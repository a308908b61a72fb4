//! Cohorts: whose new flows get a pool whatever the weight, and whose do not.

use std::{net::SocketAddr, time::Instant};

use shifter::{
    datapath::{
        Datapath as _, DatapathError, DeadManImage, Placement, ServiceImage, attach::Place,
        boot_ns, trial::test_run,
    },
    model::{CohortSpec, PoolName, Prefix, Protocol, cohort, cohort::Rule},
};
use shifter_common::abi::cohort::{MAX_COHORT_ELEMENTS, MAX_COHORT_PREFIXES};
use shifter_tests::{
    need,
    packet::{ACK, Packet, SYN, addr},
    scene::{Action, Scene},
};

use crate::{
    INGRESS, check,
    flows::{flows, give},
    row,
    world::*,
};

/// Backend id of green.
const GREEN: u16 = 90;

fn rule(prefix: &str, pool: Option<PoolName>) -> Rule {
    Rule {
        prefix: prefix.parse().unwrap(),
        pool,
        cohort: 0,
    }
}

fn green_of(case: &Case) -> SocketAddr {
    let port = case.backend.port();
    if case.vip.is_ipv4() {
        SocketAddr::new(addr("10.8.0.99:1").ip(), port)
    } else {
        SocketAddr::new(addr("[2001:db8:8::99]:1").ip(), port)
    }
}

/// The service with a backend in green, no weight on it, and these cohorts.
fn with_cohorts(scene: &Scene, id: u16, case: &Case, rules: &[Rule]) -> ServiceImage {
    let protocol = if case.is_udp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let routed = Placement::Kernel { netns: None };
    scene.backend(GREEN, green_of(case), protocol, routed);
    let mut image = service(id);
    image.generation = 2;
    image.cohort_set = scene.datapath.write_cohorts(rules).unwrap();
    image.cohorts_on = true;
    scene.service(&image, &[backend_id(id)], &[GREEN]);
    image
}

/// A client of the case at another address.
fn from(case: &Case, client: &str) -> Case {
    Case {
        client: SocketAddr::new(client.parse().unwrap(), case.client.port()),
        ..*case
    }
}

#[test]
fn a_cohort_sees_green_at_weight_0_and_nobody_else_does() {
    need!();
    let v4 = [
        ("10.9.0.0/16", None),
        ("10.9.7.0/24", Some(PoolName::Blue)),
        ("10.9.7.7/32", None),
        ("192.0.2.0/24", Some(PoolName::Green)),
    ];
    let v6 = [
        ("2001:db8:9::/48", None),
        ("2001:db8:9:7::/64", Some(PoolName::Blue)),
        ("2001:db8:9:7::7/128", None),
        ("2001:db8:a::/48", Some(PoolName::Green)),
    ];
    // Client, whether it gets green, and why.
    let clients4 = [
        ("10.9.1.2", true, "in the short prefix"),
        ("10.9.7.1", false, "in the longer one that forces blue"),
        ("10.9.7.7", true, "in the longest"),
        ("192.0.2.255", true, "in a prefix of its own"),
        ("10.10.0.1", false, "beside the prefixes"),
        ("192.0.3.0", false, "right behind one"),
    ];
    let clients6 = [
        ("2001:db8:9:1::1", true, "in the short prefix"),
        (
            "2001:db8:9:7::1",
            false,
            "in the longer one that forces blue",
        ),
        ("2001:db8:9:7::7", true, "in the longest"),
        ("2001:db8:a:ffff::", true, "in a prefix of its own"),
        ("2001:db8:b::1", false, "beside the prefixes"),
        (
            "2001:db8:8:ffff:ffff:ffff:ffff:ffff",
            false,
            "right before one",
        ),
    ];
    for (id, case) in [
        (5, routed_tcp4()),
        (6, routed_tcp6()),
        (7, routed_udp4()),
        (8, routed_udp6()),
    ] {
        world(move |scene| {
            let (rules, clients) = if case.vip.is_ipv4() {
                (v4, clients4)
            } else {
                (v6, clients6)
            };
            let rules = rules.map(|(prefix, pool)| rule(prefix, pool));
            with_cohorts(scene, id, &case, &rules);
            let rows = clients.map(|(client, is_green, why)| {
                let case = from(&case, client);
                let to = if is_green {
                    green_of(&case)
                } else {
                    case.backend
                };
                let packet = opening(&case);
                let out = packet.clone().to(to).frame();
                row(
                    why,
                    INGRESS,
                    packet.frame(),
                    "forward_kernel",
                    Action::Pass,
                    out,
                )
            });
            check(scene, &rows);
            let [blue, green] = scene.datapath.pool_counters(id).unwrap();
            // Two of no cohort, one that a cohort gave to blue.
            assert_eq!((blue.new_flows, blue.cohort_flows), (2, 1));
            assert_eq!((green.new_flows, green.cohort_flows), (0, 3));
            let forced = flows(scene).iter().filter(|row| row.cohort).count();
            assert_eq!(forced, 4);
            assert!(flows(scene).iter().all(|row| !row.adopted));
            let window = [(id, 3_600)].into();
            let clients = scene.datapath.new_clients(&window);
            assert_eq!(clients[&id], (0, 2), "observed shares leave cohorts out");
        });
    }
}

#[test]
fn the_candidate_is_the_pool_that_is_not_live() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let mut image = with_cohorts(scene, 5, &case, &[rule("10.9.0.0/16", None)]);
        image.live = PoolName::Green;
        image.threshold = 1 << 32;
        image.generation = 3;
        scene.datapath.publish(&image, None).unwrap();
        give(scene, &opening(&case));
        assert_eq!(flows(scene)[0].pool, PoolName::Blue);
    });
}

#[test]
fn cohorts_move_no_flow_that_is_pinned_and_take_over_none_in_mid_stream() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        give(scene, &opening(&case));
        with_cohorts(scene, 5, &case, &[rule("10.9.0.0/16", None)]);
        give(scene, &opening(&case));
        assert_eq!(flows(scene)[0].pool, PoolName::Blue, "pinned before");
        let other = from(&case, "10.9.0.8");
        give(scene, &Packet::tcp(other.client, other.vip, ACK));
        let rows = flows(scene);
        let row = rows.iter().find(|row| row.client == other.client).unwrap();
        assert_eq!(
            (row.pool, row.adopted, row.cohort),
            (PoolName::Blue, true, false)
        );
    });
}

#[test]
fn a_dead_backend_beats_the_cohort() {
    need!();
    for (maint, down) in [(true, false), (false, true)] {
        world(move |scene| {
            let case = routed_tcp4();
            with_cohorts(scene, 5, &case, &[rule("10.9.0.0/16", None)]);
            let image = shifter::datapath::BackendImage {
                addr: green_of(&case),
                protocol: Protocol::Tcp,
                placement: Placement::Kernel { netns: None },
                maint,
                down,
            };
            scene.datapath.put_backend(GREEN, &image).unwrap();
            assert_eq!(give(scene, &opening(&case)), "forward_kernel");
            assert_eq!(flows(scene)[0].pool, PoolName::Blue);
        });
    }
}

#[test]
fn suspended_cohorts_and_those_past_the_deadline_force_nothing() {
    need!();
    for is_suspended in [true, false] {
        world(move |scene| {
            let case = routed_tcp4();
            let mut image = with_cohorts(scene, 5, &case, &[rule("10.9.0.0/16", None)]);
            image.generation = 3;
            image.cohorts_on = !is_suspended;
            image.dead_man = (!is_suspended).then(|| DeadManImage {
                safe_threshold: 0,
                deadline_ns: boot_ns() - 1,
            });
            scene.datapath.publish(&image, None).unwrap();
            give(scene, &opening(&case));
            let row = &flows(scene)[0];
            assert_eq!((row.pool, row.cohort), (PoolName::Blue, false));
        });
    }
}

#[test]
fn the_exact_split_counts_no_flow_of_a_cohort() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let mut image = with_cohorts(scene, 5, &case, &[rule("10.9.1.0/24", None)]);
        image.split = shifter::model::SplitMethod::Exact;
        image.threshold = 1 << 31;
        image.generation = 3;
        scene.datapath.publish(&image, None).unwrap();
        for number in 0..20 {
            give(scene, &opening(&from(&case, &format!("10.9.0.{number}"))));
            give(scene, &opening(&from(&case, &format!("10.9.1.{number}"))));
        }
        let [blue, green] = scene.datapath.pool_counters(5).unwrap();
        assert_eq!((blue.new_flows, green.new_flows), (10, 10));
        assert_eq!((blue.cohort_flows, green.cohort_flows), (0, 20));
    });
}

/// The next of a stream of numbers (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[test]
fn the_kernel_finds_the_prefix_that_the_model_finds() {
    need!();
    for (id, case) in [(7, routed_udp4()), (8, routed_udp6())] {
        world(move |scene| {
            let mut state = 0xc0_4027 + u64::from(id);
            // Addresses that differ in few bits meet prefixes of every length.
            let address = |state: &mut u64| {
                let noise = next(state) & next(state);
                if case.vip.is_ipv4() {
                    std::net::Ipv4Addr::from_bits(0x0a09_0000 ^ (noise as u32 & 0x0fff_ffff)).into()
                } else {
                    let wide = u128::from(noise) << 32 | u128::from(next(state) & next(state));
                    std::net::IpAddr::V6((0x2001_0db8_u128 << 96 ^ wide).into())
                }
            };
            let mut pools = [Vec::new(), Vec::new()];
            for number in 0..600 {
                let addr: std::net::IpAddr = address(&mut state);
                let width = if addr.is_ipv4() { 33 } else { 129 };
                let prefix = Prefix::cut(addr, 8 + (next(&mut state) % (width - 8)) as u8).unwrap();
                pools[number % 2].push(prefix);
            }
            let [mut blue, mut green] = pools;
            blue.sort_unstable();
            blue.dedup();
            green.retain(|prefix| blue.binary_search(prefix).is_err());
            green.sort_unstable();
            green.dedup();
            let cohorts =
                [(PoolName::Blue, blue), (PoolName::Green, green)].map(|(pool, prefixes)| {
                    CohortSpec {
                        name: pool.to_string(),
                        pool: Some(pool),
                        prefixes: prefixes.into(),
                    }
                });
            let rules: Vec<Rule> = cohorts
                .iter()
                .flat_map(|cohort| {
                    cohort.prefixes.iter().map(|prefix| Rule {
                        prefix: *prefix,
                        pool: cohort.pool,
                        cohort: 0,
                    })
                })
                .collect();
            with_cohorts(scene, id, &case, &rules);
            let mut met = 0;
            for _ in 0..600 {
                let case = Case {
                    client: SocketAddr::new(address(&mut state), 40_000),
                    ..case
                };
                give(scene, &opening(&case));
                let row = scene
                    .datapath
                    .find_flow(id, case.client, Protocol::Udp)
                    .unwrap();
                let must = cohort::longest(&cohorts, case.client.ip());
                let pool = must.and_then(|(cohort, _)| cohort.pool);
                assert_eq!(
                    (row.pool, row.cohort),
                    (pool.unwrap_or(PoolName::Blue), must.is_some()),
                    "{}: {must:?}",
                    case.client
                );
                met += usize::from(must.is_some());
            }
            assert!((60..=600).contains(&met), "{met} clients met a prefix");
        });
    }
}

/// So many /32s, beginning at an address.
fn many(first: u32, count: u32) -> Vec<Rule> {
    (first..first + count)
        .map(|bits| Rule {
            prefix: Prefix::cut(std::net::Ipv4Addr::from_bits(bits).into(), 32).unwrap(),
            pool: None,
            cohort: 0,
        })
        .collect()
}

#[test]
fn a_full_trie_says_so_and_leaves_nothing_behind() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let mut image = with_cohorts(scene, 5, &case, &many(0x0a09_0000, 10));
        let all = many(0x0b00_0000, MAX_COHORT_PREFIXES - 10);
        let first = scene.datapath.write_cohorts(&all).unwrap();
        let second = scene.datapath.write_cohorts(&all).unwrap();
        let full = scene.datapath.write_cohorts(&many(0x0c00_0000, 100));
        let Err(error @ DatapathError::Full { .. }) = full else {
            panic!("{full:?}");
        };
        let limit = MAX_COHORT_ELEMENTS.to_string();
        assert!(error.to_string().contains(&limit), "{error}");
        // What is in force is as it was.
        give(scene, &opening(&from(&case, "10.9.0.9")));
        assert!(flows(scene)[0].cohort);
        scene.datapath.drop_cohorts(first);
        scene.datapath.drop_cohorts(second);
        // One that a service names stays, whoever gives it up.
        scene.datapath.drop_cohorts(image.cohort_set);
        scene.datapath.reclaim();
        assert_eq!(scene.datapath.cohort_rules(first).len(), 0);
        assert_eq!(scene.datapath.cohort_rules(image.cohort_set).len(), 10);
        give(scene, &opening(&from(&case, "10.9.0.8")));
        assert!(flows(scene).iter().all(|row| row.cohort));
        // Room again, all of it, and the one given up goes with its service's next record.
        let again = [0, 1].map(|_| scene.datapath.write_cohorts(&all).unwrap());
        (image.cohort_set, image.cohorts_on, image.generation) = (0, false, 3);
        scene.datapath.publish(&image, None).unwrap();
        for set in again {
            scene.datapath.drop_cohorts(set);
        }
        scene.datapath.reclaim();
        let used = scene.datapath.limits();
        let used = used
            .iter()
            .find(|limit| limit.name == "cohort_prefixes")
            .unwrap();
        assert_eq!(used.used, 0);
    });
}

/// Figures for docs/cohorts.md: a new flow that no pool takes, so that each
/// packet is chosen anew, without and with cohorts.
#[test]
fn the_price_of_cohorts_is_told() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let mut image = service(5);
        let frame = Packet::tcp(case.client, case.vip, SYN).frame();
        for count in [0, 2, 1_000, 10_000, 60_000] {
            image.generation += 1;
            let rules = many(0x0a09_0000, count);
            let begin = Instant::now();
            let set = scene.datapath.write_cohorts(&rules).unwrap();
            let wrote = begin.elapsed();
            (image.cohort_set, image.cohorts_on) = (set, count > 0);
            scene.service(&image, &[], &[]);
            let mut times: Vec<u32> = (0..9)
                .map(|_| {
                    let ran = test_run(scene.program(Place::Xdp), &frame, &mut [], 20_000);
                    ran.unwrap().packet_ns
                })
                .collect();
            times.sort_unstable();
            println!(
                "{count} prefixes: written in {wrote:?}, {} ns a packet (median of 9)",
                times[4]
            );
            let begin = Instant::now();
            (image.cohort_set, image.cohorts_on) = (0, false);
            image.generation += 1;
            scene.service(&image, &[], &[]);
            scene.datapath.drop_cohorts(set);
            scene.datapath.reclaim();
            println!("   taken out in {:?}", begin.elapsed());
        }
    });
}
