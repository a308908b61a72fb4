//! Thousands of busy flows while the weight changes all the time.

use std::time::{Duration, Instant};

use shifter_tests::{
    agent::Settings,
    mover::{Mover, Service},
    need,
    need::scaled,
    topology::{Family, Lab, Placement},
    traffic::{
        server,
        storm::{Plan, Storm},
    },
};

fn storm(placement: Placement, hook: &'static str) {
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let services: Vec<Service> = Service::all_four(&lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    mover.apply(&services).unwrap();
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let (tcp_flows, udp_flows) = scaled((1_000, 250), (2_000, 500));
    let storm = Storm::start(
        &lab.client,
        Plan {
            tcp_to: vips.to_vec(),
            udp_to: vips.to_vec(),
            tcp_flows,
            udp_flows,
            rate: 4,
        },
    )
    .unwrap();
    assert!(
        storm.wait_for(u64::from(tcp_flows + udp_flows), Duration::from_secs(20)),
        "not all flows are answered: {:?}",
        storm.progress()
    );
    let end = Instant::now() + scaled(Duration::from_secs(6), Duration::from_secs(30));
    let mut changes = 0u32;
    while Instant::now() < end {
        let service = &services[changes as usize % 4].name;
        mover
            .shift(service, &format!("{}%", changes * 37 % 101))
            .unwrap();
        changes += 1;
        std::thread::sleep(Duration::from_millis(8));
    }
    let report = storm.finish().unwrap();
    println!("{placement:?} {hook}: {changes} changes, {report:?}");
    report.assert_untouched(&format!("{placement:?} under {hook}"));
    for by in [&report.tcp_by_identity, &report.udp_by_identity] {
        assert_eq!(by.len(), 2, "half of the flows go to green: {report:?}");
    }
}

#[test]
fn no_flow_of_a_storm_is_touched_by_weight_changes_under_tc() {
    need!();
    storm(Placement::Container, "tc");
}
