//! What is wrong is refused with a message of its own that says what would be
//! right, and changes nothing.

use std::{fs, process::Output, time::Duration};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings, number},
    blocker::Blocker,
    command::eventually,
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement},
    traffic::{
        requests::Requests,
        server,
        storm::{Plan, Storm},
        syn::Counter,
    },
};

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn assert_says(what: &str, text: &str, fragments: &[&str]) {
    let lower = text.to_lowercase();
    for fragment in fragments {
        assert!(
            lower.contains(&fragment.to_lowercase()),
            "{what}: the message lacks {fragment:?}: {text}"
        );
    }
}

/// What must not change: each service's etag, generation and spec.
fn standing(agent: &Agent) -> Vec<Value> {
    let all = agent.json(&["get", "services"]).unwrap();
    let list = all.as_array().or_else(|| all["services"].as_array());
    list.unwrap()
        .iter()
        .map(|s| serde_json::json!([s["spec"], s["etag"], s["generation"]]))
        .collect()
}

#[test]
fn each_wrong_service_has_its_message_and_changes_nothing() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let good = Service::of(&lab, "tcp", Family::V4);
    agent.apply(std::slice::from_ref(&good)).unwrap();
    let before = standing(&agent);
    let text = to_toml(std::slice::from_ref(&good));
    let twice = to_toml(&[good.clone(), good.clone()]);
    let other_name = text.replace("\"tcp4\"", "\"other\"");
    let vip = good.vip.to_string();
    let cases: &[(&str, String, &[&str])] = &[
        (
            "a wrong key",
            text.replace("green = \"0%\"", "grren = \"0%\""),
            &["services.toml:", "grren", "green"],
        ),
        (
            "a wrong VIP",
            text.replace(&vip, "10.71.0.300:80"),
            &["services.toml:", "10.71.0.300", "203.0.113.10:443/tcp"],
        ),
        (
            "no protocol",
            text.replace("/tcp", ""),
            &["services.toml:", "/tcp"],
        ),
        (
            "a wrong backend",
            text.replace(":7001", ":99999"),
            &["services.toml:", "99999"],
        ),
        (
            "a wrong weight",
            text.replace("\"0%\"", "\"5\""),
            &["services.toml:", "5%", "1/3"],
        ),
        (
            "too much weight",
            text.replace("\"0%\"", "\"101%\""),
            &["101%", "100%"],
        ),
        (
            "a wrong affinity",
            text.replace("\"flow\"", "\"sticky\""),
            &["sticky", "client"],
        ),
        (
            "a wrong mode",
            text.replace("\"nat\"", "\"dsr\""),
            &["dsr", "nat"],
        ),
        ("a name twice", twice, &["name"]),
        (
            "a VIP twice",
            format!("{text}{other_name}"),
            &[&vip, "belongs to service"],
        ),
        (
            "a VIP of a stored service",
            other_name.clone(),
            &[&vip, "tcp4"],
        ),
        (
            "a VIP that is not local",
            other_name.replace(&vip, "10.99.0.1:80"),
            &["10.99.0.1", "ip addr add", "vip_routed"],
        ),
        (
            "a loopback backend",
            text.replace("10.71.0.1:7001", "127.0.0.1:7001"),
            &["127.0.0.1", "loopback", "bind"],
        ),
        (
            "another family",
            text.replace("10.71.0.1:7001", "[fd71::1]:7001"),
            &["family", "IPv4"],
        ),
        (
            "one backend in both pools",
            text.replace(":7002", ":7001"),
            &["blue", "green", "7001"],
        ),
        (
            "weight to an empty pool",
            text.replace("\"0%\"", "\"5%\"")
                .replace("green = [\"10.71.0.1:7002\"]", "green = []"),
            &["green", "no backend"],
        ),
        ("no service", "# nothing\n".to_owned(), &["[[service]]"]),
        ("no TOML", "[[service\n".to_owned(), &["services.toml:"]),
    ];
    for (what, text, fragments) in cases {
        let path = agent.services_file(text).unwrap();
        let output = agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap();
        let message = said(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {message}");
        assert_says(what, &message, fragments);
        assert_eq!(standing(&agent), before, "{what} changed something");
    }
}

#[test]
fn each_wrong_command_has_its_message_and_exit_code() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    agent.apply(&[service]).unwrap();
    let before = standing(&agent);
    let nowhere = format!("unix://{}/none.sock", lab.dir().display());
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["shift", "tcp4", "--green", "5"], 64, &["5%"]),
        (&["shift", "nope", "--green", "5%"], 1, &["nope", "tcp4"]),
        (&["shift", "tcp4"], 64, &["--green", "--candidate"]),
        (
            &["shift", "tcp4", "--green", "5%", "--blue", "5%"],
            64,
            &["--green", "--blue"],
        ),
        (
            &["apply", "-f", "/nonexistent.toml"],
            1,
            &["/nonexistent.toml"],
        ),
        (
            &["rollback", "tcp4", "--to", "4000000000"],
            1,
            &["4000000000"],
        ),
        (&["frobnicate"], 64, &["frobnicate"]),
        (
            &["--endpoint", &nowhere, "status"],
            8,
            &["none.sock", "shifter agent"],
        ),
    ];
    for (args, code, fragments) in cases {
        let output = agent.cli(args).unwrap();
        let message = said(&output);
        let what = args.join(" ");
        assert_eq!(output.status.code(), Some(*code), "{what}: {message}");
        assert_says(&what, &message, fragments);
        assert_eq!(standing(&agent), before, "{what} changed something");
    }
    let stale = agent
        .cli(&["shift", "tcp4", "--green", "5%", "--if-match", "stale"])
        .unwrap();
    assert_eq!(stale.status.code(), Some(3), "{}", said(&stale));
}

/// Writes an agent's file with one thing replaced and starts it, which must fail.
fn refused_start(lab: &Lab, from: &str, to: &str) -> String {
    // A first agent writes the file and shows that it is right as it is.
    let agent = Agent::start(lab, Settings::hook("tc")).unwrap();
    let config = agent.config();
    drop(agent);
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{text}");
    let wrong = lab.dir().join("wrong.toml");
    fs::write(&wrong, text.replace(from, to)).unwrap();
    start_agent(lab, &wrong, &[])
}

/// Runs an agent that has to end by itself; what it said.
fn start_agent(lab: &Lab, config: &std::path::Path, before: &[&str]) -> String {
    let binary = shifter_tests::agent::binary().unwrap();
    let mut words: Vec<std::ffi::OsString> = before.iter().map(Into::into).collect();
    words.push(binary.into());
    let mut command = lab.host.command_with_sys(&words[0]);
    command.args(&words[1..]).args(["agent", "--config"]);
    command.arg(config).env("SHIFTER_BPFFS", lab.bpffs());
    let log = lab.dir().join("refused.log");
    let mut process = shifter_tests::command::Process::start(command, log).unwrap();
    let status = process.wait(Duration::from_secs(20));
    let text = process.output();
    assert!(
        status.is_some_and(|status| !status.success()),
        "the agent was to refuse: {status:?} {text}"
    );
    text
}

#[test]
fn each_wrong_agent_file_has_its_message() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let cases: &[(&str, &str, &[&str])] = &[
        ("[\"h0\"]", "[\"nope0\"]", &["nope0", "interface"]),
        ("interfaces", "interfacs", &["wrong.toml:", "interfacs"]),
        (
            "\"tc\"",
            "\"netfilter\"",
            &["netfilter", "auto", "xdp", "tc"],
        ),
        (
            "flow_capacity = 65536",
            "flow_capacity = 3",
            &["flow_capacity", "3"],
        ),
    ];
    for (from, to, fragments) in cases {
        let text = refused_start(&lab, from, to);
        assert_says(to, &text, fragments);
    }
}

#[test]
fn an_agent_without_capabilities_says_which_it_lacks() {
    need!("setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let config = agent.config();
    drop(agent);
    let drop_all = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let text = start_agent(&lab, &config, &drop_all);
    assert_says("no capabilities", &text, &["CAP_"]);
}

#[test]
fn a_busy_xdp_slot_is_named_and_auto_takes_tc_aloud() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let blocker = Blocker::attach(&lab.host, "h0").unwrap();
    let error = Agent::start(&lab, Settings::hook("xdp")).unwrap_err();
    assert_says("a busy slot", &format!("{error:#}"), &["h0", "xdp", "hook"]);
    let agent = Agent::start(&lab, Settings::hook("auto")).unwrap();
    let status = agent.json(&["status"]).unwrap();
    let interface = &status["interfaces"][0];
    assert_eq!(interface["hook"], "tc", "{status}");
    assert!(
        interface["why"].as_str().is_some_and(|why| !why.is_empty()),
        "{status}"
    );
    drop(blocker);
}

#[test]
fn a_full_table_is_loud_and_cuts_nobody() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc").with_capacity(1_024)).unwrap();
    let services = Family::BOTH.map(|family| Service::of(&lab, "tcp", family).with_green("50%"));
    agent.apply(&services).unwrap();
    let storm = Storm::start(
        &lab.client,
        Plan {
            tcp_to: Family::BOTH.map(|family| lab.vip(family)).to_vec(),
            udp_to: Vec::new(),
            tcp_flows: 3_000,
            udp_flows: 0,
            rate: 2,
        },
    )
    .unwrap();
    assert!(storm.wait_for(1_024, Duration::from_secs(10)), "{storm:?}");
    let loud = eventually(Duration::from_secs(15), || {
        let status = agent.json(&["status"]).unwrap();
        let loud = status["loud"].to_string().to_lowercase();
        loud.contains("table") && loud.contains("flow_capacity")
    });
    assert!(loud, "{}", agent.done(&["status"]).unwrap());
    let logged = eventually(Duration::from_secs(10), || {
        let log = agent.log();
        log.contains("loud: packets are dropped at tc: table_full")
    });
    assert!(logged, "{}", agent.log());
    let report = storm.finish().unwrap();
    assert!(
        report.tcp_opened >= 1_024 && report.tcp_never_opened > 0,
        "{report:?}"
    );
    let cut = report.tcp_resets + report.tcp_unanswered + report.moved + report.wrong_bytes;
    assert_eq!(cut, 0, "flows that have their place keep it: {report:?}");
}

#[test]
fn a_full_limit_is_named_and_changes_nothing() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let status = agent.json(&["status"]).unwrap();
    let limit = status["limits"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|limit| limit["name"] == "services")
        .map(|limit| number(&limit["limit"]))
        .unwrap();
    let base = Service::of(&lab, "tcp", Family::V4);
    let services: Vec<Service> = (0..=limit as u16)
        .map(|i| {
            let mut service = base.clone();
            service.name = format!("s{i}");
            service.vip.set_port(10_000 + i);
            service
        })
        .collect();
    let path = agent.services_file(&to_toml(&services)).unwrap();
    let output = agent
        .cli(&["--timeout", "60s", "apply", "-f", path.to_str().unwrap()])
        .unwrap();
    let message = said(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_says("a full limit", &message, &["services", &limit.to_string()]);
    assert!(
        standing(&agent).is_empty(),
        "nothing of the file is in force"
    );
}

#[test]
fn a_silent_backend_is_named_with_what_its_route_must_be() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let side = shifter_tests::topology::Side::Blue;
    let backend = lab.listen(side, Family::V4);
    let _swallow = Counter::start(lab.server_ns(side), backend.port()).unwrap();
    let _requests = Requests::start(&lab.client, &[service.vip], 20, 100).unwrap();
    let mut text = String::new();
    let named = eventually(Duration::from_secs(20), || {
        text = agent.json(&["get", "backends"]).unwrap().to_string();
        text.contains("route to the clients must lead here")
    });
    assert!(named, "{text}");
    let logged = eventually(Duration::from_secs(5), || {
        agent.log().contains("route to the clients must lead here")
    });
    assert!(logged, "{}", agent.log());
}
