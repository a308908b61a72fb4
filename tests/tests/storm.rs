//! Thousands of busy flows while the weight changes all the time.

use std::{
    thread,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::Settings,
    mover::{Mover, Service},
    need,
    need::scaled,
    rpc::Rpc,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server, storm::Storm},
};

const TCP_FLOWS: u32 = 2_000;
const UDP_FLOWS: u32 = 500;
const CHANGES_PER_SECOND: u32 = 100;

/// Changes the weights of the services in turn; how often.
fn change_weights(mover: &mut Mover<'_>, services: &[Service], time: Duration) -> u32 {
    let mut rpc = mover.agent().map(|agent| Rpc::connect(agent).unwrap());
    let start = Instant::now();
    for i in 0.. {
        if start.elapsed() >= time {
            return i;
        }
        let service = &services[i as usize % services.len()].name;
        let weight = format!("{}%", i * 37 % 101);
        match &mut rpc {
            Some(rpc) => drop(rpc.set_weight(service, &weight).unwrap()),
            None => mover.shift(service, &weight).unwrap(),
        }
        let due = start + Duration::from_secs(1) * (i + 1) / CHANGES_PER_SECOND;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    0
}

fn storm(placement: Placement, hook: &'static str) {
    let what = format!("{placement:?} under {hook}");
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let services: Vec<Service> = Service::all_four(&lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    mover.apply(&services).unwrap();
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let storm = Storm::answered(&lab, TCP_FLOWS, UDP_FLOWS, 4).unwrap();
    let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
    let time = scaled(Duration::from_secs(6), Duration::from_secs(30));
    let changes = change_weights(&mut mover, &services, time);
    let tally = requests.finish().unwrap();
    let report = storm.finish().unwrap();
    println!(
        "{what}: {changes} changes in {time:?}, {} new connections, {report:?}",
        tally.answered
    );
    report.assert_untouched(&what);
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    for by in [&report.tcp_by_identity, &report.udp_by_identity] {
        assert_eq!(
            by.len(),
            2,
            "{what}: half of the flows go to green: {report:?}"
        );
    }
    assert!(
        Mover::is_stand_in() || changes >= time.as_secs() as u32 * CHANGES_PER_SECOND / 2,
        "{what}: {changes} changes in {time:?} are too few to show anything"
    );
}

#[test]
fn no_flow_to_a_container_is_touched_by_weight_changes_under_tc() {
    need!();
    storm(Placement::Container, "tc");
}

#[test]
fn no_flow_to_a_container_is_touched_by_weight_changes_under_xdp() {
    need!();
    storm(Placement::Container, "xdp");
}

#[test]
fn no_flow_to_another_host_is_touched_by_weight_changes_under_tc() {
    need!();
    storm(Placement::RemoteOther, "tc");
}

#[test]
fn no_flow_to_another_host_is_touched_by_weight_changes_under_xdp() {
    need!();
    storm(Placement::RemoteOther, "xdp");
}

#[test]
fn no_flow_on_this_host_is_touched_by_weight_changes_under_tc() {
    need!();
    storm(Placement::Vip, "tc");
}

#[test]
fn no_flow_on_this_host_is_touched_by_weight_changes_under_xdp() {
    need!();
    storm(Placement::Vip, "xdp");
}
