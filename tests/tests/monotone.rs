//! With affinity `client` a raised weight moves clients to green only, and a
//! lowered one gives back the earlier owners.

use shifter_tests::{
    agent::Settings,
    mover::{Mover, Service},
    need,
    need::scaled,
    stat,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests, server},
};

/// Who answers each of the first `clients` clients.
fn owners(lab: &Lab, family: Family, clients: u16) -> Vec<u8> {
    let vip = lab.vip(family);
    lab.client.run(|| {
        (0..clients)
            .map(|i| {
                let source = requests::client_address(vip, i + 1);
                let first = requests::ask(vip, Some(source)).unwrap();
                let second = requests::ask(vip, Some(source)).unwrap();
                assert_eq!(
                    first, second,
                    "client {source} has one owner for all its flows"
                );
                first
            })
            .collect()
    })
}

fn monotone(hook: &'static str, family: Family) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let mut service = Service::of(&lab, "tcp", family);
    service.affinity = "client";
    service.seed = Some("000102030405060708090a0b0c0d0e0f".to_owned());
    mover.apply(std::slice::from_ref(&service)).unwrap();
    let clients = scaled(1_000, 10_000);
    let (blue, green) = (Side::Blue.identity(), Side::Green.identity());
    let mut seen: Vec<(f64, Vec<u8>)> = vec![(0.0, vec![blue; usize::from(clients)])];
    for weight in [5u8, 25, 10, 100, 5] {
        mover.shift(&service.name, &format!("{weight}%")).unwrap();
        let share = f64::from(weight) / 100.0;
        let now = owners(&lab, family, clients);
        let on_green = now.iter().filter(|owner| **owner == green).count() as u64;
        let what = format!("{hook}, {family:?}, {weight}%");
        stat::assert_share(
            &what,
            on_green,
            u64::from(clients),
            share,
            stat::FIXED_SEEDS,
        );
        for (earlier, owners) in &seen {
            for (i, (before, after)) in owners.iter().zip(&now).enumerate() {
                let left_green = share >= *earlier && *before == green && *after != green;
                let left_blue = share <= *earlier && *before == blue && *after != blue;
                assert!(
                    !left_green && !left_blue,
                    "{what}: client {i} went from {before} at {earlier} to {after} at {share}"
                );
            }
        }
        seen.push((share, now));
    }
}

#[test]
fn no_client_leaves_green_while_the_weight_rises_under_tc() {
    need!();
    monotone("tc", Family::V4);
}

#[test]
fn no_client_leaves_green_while_the_weight_rises_under_xdp() {
    need!();
    monotone("xdp", Family::V6);
}
