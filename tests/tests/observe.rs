//! A real Prometheus scrapes a running agent.

use std::time::Duration;

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, METRICS, Settings, number},
    command::{eventually, run_with_input},
    evidence::get,
    mover::Service,
    need,
    prometheus::{self, PROMETHEUS},
    topology::{Family, Lab, Placement},
    traffic::{
        requests::Requests,
        server,
        storm::{Plan, Storm},
    },
};

/// The value of an instant query with one result.
fn query(lab: &Lab, expression: &str) -> Option<f64> {
    let encoded: String = expression
        .bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect();
    let body = get(
        &lab.host,
        PROMETHEUS,
        &format!("/api/v1/query?query={encoded}"),
    )
    .ok()?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    let result = answer["data"]["result"].as_array()?;
    match result.as_slice() {
        [one] => one["value"][1].as_str()?.parse().ok(),
        _ => None,
    }
}

fn assert_value(lab: &Lab, expression: &str, right: impl Fn(f64) -> bool) {
    let mut last = None;
    let came = eventually(Duration::from_secs(15), || {
        last = query(lab, expression);
        last.is_some_and(&right)
    });
    assert!(came, "{expression} is {last:?}");
}

#[test]
fn prometheus_sees_what_the_command_line_says() {
    need!("prometheus", "promtool");
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let services: Vec<Service> = Service::all_four(&lab)
        .into_iter()
        .map(|service| service.with_green("25%"))
        .collect();
    agent.apply(&services).unwrap();
    let prometheus = prometheus::start(&lab, "shifter", METRICS).unwrap();
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let storm = Storm::start(
        &lab.client,
        Plan {
            tcp_to: vips.to_vec(),
            udp_to: vips.to_vec(),
            tcp_flows: 100,
            udp_flows: 20,
            rate: 5,
        },
    )
    .unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 400).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let made = requests.finish().unwrap().answered as f64 + 50.0;

    assert_value(&lab, "up", |up| up == 1.0);
    let of = |name: &str| format!("sum({name}{{service=\"tcp4\"}})");
    let near = |right: f64| move |value: f64| (value - right).abs() < 1e-9;
    assert_value(&lab, &of("shifter_weight_configured_ratio"), near(0.25));
    assert_value(&lab, &of("shifter_weight_programmed_ratio"), near(0.25));
    assert_value(&lab, &of("shifter_weight_observed_ratio"), |share| {
        (0.1..0.4).contains(&share)
    });
    assert_value(&lab, &of("shifter_weight_carried_ratio"), |share| {
        (0.0..=1.0).contains(&share)
    });
    assert_value(&lab, &of("shifter_pool_new_flows_total"), near(made));
    let counted: u64 = agent.new_flows("tcp4").unwrap().iter().sum();
    assert_eq!(counted as f64, made, "the command line counts the same");
    assert_value(&lab, "shifter_flow_table_capacity_flows", near(65_536.0));
    assert_value(&lab, "sum(shifter_flow_table_flows)", |flows| {
        flows >= 120.0
    });
    let used = "shifter_limit_used{limit=\"flow_capacity\"}";
    assert_value(&lab, used, |flows| flows >= 120.0);
    let status = agent.json(&["status"]).unwrap();
    let limits = status["limits"].as_array().unwrap();
    let flows = limits.iter().find(|limit| limit["name"] == "flow_capacity");
    assert!(number(&flows.unwrap()["used"]) >= 120, "{status}");
    assert_value(&lab, "sum(shifter_verdict_packets_total)", |n| n > made);
    assert_value(&lab, "sum(shifter_writes_total)", |n| n >= 1.0);
    assert_value(&lab, "sum(shifter_write_programmed_seconds_count)", |n| {
        n >= 1.0
    });
    assert_value(&lab, "count(shifter_build_info)", near(1.0));
    storm.finish().unwrap().assert_untouched("a scraped agent");

    let page = get(&lab.host, METRICS, "/metrics").unwrap();
    let check = run_with_input(
        std::process::Command::new("promtool").args(["check", "metrics"]),
        &page,
    )
    .unwrap();
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.trim().is_empty(), "promtool: {said}");
    drop(prometheus);
}

#[test]
fn the_four_numbers_of_a_weight_are_shown() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4).with_green("1/3");
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let requests = Requests::start(&lab.client, &[service.vip], 2, 400).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let tally = requests.finish().unwrap();
    let mut shown = Value::Null;
    let right = eventually(Duration::from_secs(5), || {
        shown = agent.service("tcp4").unwrap();
        number(&shown["weights"]["observed"]["total"]) == tally.answered
    });
    assert!(right, "{} requests, shown: {shown}", tally.answered);
    let weights = &shown["weights"];
    assert_eq!(weights["configured"], "1/3");
    let programmed = weights["programmed_share"].as_f64().unwrap();
    assert!((programmed - 1.0 / 3.0).abs() < 1e-6, "{shown}");
    let observed = &weights["observed"];
    assert_eq!(
        number(&observed["green"]),
        tally.by_identity.get(&2).copied().unwrap_or(0),
        "{shown}"
    );
    let (low, high) = (observed["low"].as_f64(), observed["high"].as_f64());
    assert!(low < observed["share"].as_f64() && observed["share"].as_f64() < high);
    let table = agent.done(&["get", "services"]).unwrap();
    assert!(table.contains("1/3"), "{table}");
}
