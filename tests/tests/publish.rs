//! How long changes take, as their receipts say.

use std::time::{Duration, Instant};

use shifter_tests::{
    agent::{Agent, Settings, number},
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement},
    traffic::{requests, server},
};

/// Median of the times from a request's arrival to its programming, in ns.
fn median_programmed_ns(agent: &Agent, service: &str) -> u64 {
    let mut times: Vec<u64> = (0..101)
        .map(|i| {
            let weight = format!("{}%", i % 100 + 1);
            let answer = agent.json(&["shift", service, "--green", &weight]).unwrap();
            let receipt = if answer["programmed_ns"].is_null() {
                &answer["receipt"]
            } else {
                &answer
            };
            let time = number(&receipt["programmed_ns"]);
            assert!(time > 0, "a receipt says how long it took: {answer}");
            time
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_weight_is_programmed_within_a_millisecond_among_one_and_among_5000_services() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let base = Service::of(&lab, "tcp", Family::V4);
    agent.apply(std::slice::from_ref(&base)).unwrap();
    let alone = median_programmed_ns(&agent, "tcp4");

    let many: Vec<Service> = (0..5_000u16)
        .map(|i| {
            let mut service = base.clone();
            service.name = format!("s{i}");
            service.vip.set_port(10_000 + i);
            service.blue[0].set_port(20_000 + i);
            service.green[0].set_port(30_000 + i);
            service
        })
        .collect();
    let path = agent.services_file(&to_toml(&many)).unwrap();
    let start = Instant::now();
    let path = path.to_str().unwrap();
    agent
        .done(&["--timeout", "60s", "apply", "-f", path])
        .unwrap();
    let applied = start.elapsed();
    let among = median_programmed_ns(&agent, "s4321");
    println!("one: {alone} ns; 5,000 applied in {applied:?}; among them: {among} ns");
    assert!(
        applied < Duration::from_secs(10),
        "5,000 services took {applied:?}"
    );
    for (what, median) in [("one", alone), ("one of 5,000", among)] {
        assert!(median <= 1_000_000, "{what}: {median} ns at the median");
    }
    let answered = lab.client.run(|| requests::ask(base.vip, None)).unwrap();
    assert!([1, 2].contains(&answered), "the first service still works");
}
