//! Health checks: real servers that fall ill in each way there is, and traffic
//! that follows.

mod load;
mod server;
mod tls_and_grpc;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use server::{Server, answers};
use shifter_tests::{
    agent::{Agent, METRICS, Settings, number},
    command::eventually,
    need,
    topology::{Family, Lab, Placement, Side},
};

/// What a change of health may take beside other load.
const SOON: Duration = Duration::from_secs(15);

/// The service `web`.
fn toml(lab: &Lab, blue: &[SocketAddr], green: &[SocketAddr], more: &str, health: &str) -> String {
    let list = |addrs: &[SocketAddr]| {
        let quoted: Vec<String> = addrs.iter().map(|addr| format!("\"{addr}\"")).collect();
        quoted.join(", ")
    };
    format!(
        "[[service]]\nname = \"web\"\nvip = \"{}/tcp\"\n{more}\
         [service.pools]\nblue = [{}]\ngreen = [{}]\n[service.health]\n{health}\n",
        lab.vip(Family::V4),
        list(blue),
        list(green)
    )
}

fn apply(agent: &Agent, text: &str) {
    let path = agent.services_file(text).unwrap();
    agent
        .done(&["apply", "-f", path.to_str().unwrap()])
        .unwrap();
}

/// A backend as `get backends` shows it.
fn backend(agent: &Agent, addr: SocketAddr) -> Value {
    let all = agent.json(&["get", "backends", "web"]).unwrap();
    let all = all["backends"].as_array().unwrap();
    let found = all
        .iter()
        .find(|backend| backend["address"] == addr.to_string());
    found.unwrap().clone()
}

fn health(agent: &Agent, addr: SocketAddr) -> String {
    backend(agent, addr)["health"].as_str().unwrap().to_owned()
}

fn reason(agent: &Agent, addr: SocketAddr) -> String {
    let reason = &backend(agent, addr)["checks"]["reason"];
    reason.as_str().unwrap_or_default().to_owned()
}

fn becomes(agent: &Agent, addr: SocketAddr, wanted: &str) {
    let is_there = eventually(SOON, || health(agent, addr) == wanted);
    assert!(is_there, "{addr} is not {wanted}: {}", backend(agent, addr));
}

/// It goes down for this reason.
fn falls(agent: &Agent, addr: SocketAddr, why: &str) {
    becomes(agent, addr, "down");
    let said = reason(agent, addr);
    assert!(said.contains(why), "{addr}: {said:?}, not {why:?}");
}

fn programmed(agent: &Agent) -> f64 {
    let service = agent.service("web").unwrap();
    service["weights"]["programmed_share"].as_f64().unwrap()
}

fn metrics(lab: &Lab) -> String {
    lab.host.run(|| {
        let mut stream = TcpStream::connect(METRICS).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

const HTTP: &str = "type = \"http\"\npath = \"/healthz\"\nhost = \"shop.example\"\n\
    headers = { X-Probe = \"shifter\" }\nbody_contains = \"is well\"\n\
    interval = \"300ms\"\ntimeout = \"250ms\"\nrise = 2\nfall = 2";

#[test]
fn each_way_of_being_ill_takes_a_backend_out_and_says_why() {
    need!("nginx", "nft");
    let lab = Lab::new(Placement::Container).unwrap();
    let mut ill = Server::start(&lab, Side::Blue, 7_101);
    let well = Server::start(&lab, Side::Blue, 7_102);
    let green = Server::start(&lab, Side::Green, 7_201);
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let blue = [ill.addr, well.addr];
    apply(&agent, &toml(&lab, &blue, &[green.addr], "", HTTP));
    for addr in [ill.addr, well.addr, green.addr] {
        becomes(&agent, addr, "up");
    }
    let etag = agent.service("web").unwrap()["etag"].clone();
    assert_eq!(answers(&lab, 30).len(), 2, "both of blue");
    let only_well = |why: &str| {
        falls(&agent, ill.addr, why);
        assert_eq!(answers(&lab, 20), [well.name.as_str()], "{why}");
    };
    ill.mark("sick", true);
    only_well("status 500, wanted 200-299");
    ill.mark("sick", false);
    becomes(&agent, ill.addr, "up");
    ill.mark("other", true);
    only_well("the body does not contain \"is well\"");
    ill.mark("other", false);
    becomes(&agent, ill.addr, "up");
    ill.signal(libc::SIGSTOP);
    only_well("no answer within 250ms");
    ill.signal(libc::SIGCONT);
    becomes(&agent, ill.addr, "up");
    ill.kill();
    falls(&agent, ill.addr, "connection refused");
    assert_eq!(answers(&lab, 20), [well.name.as_str()]);
    ill.run("");
    becomes(&agent, ill.addr, "up");
    let hole = format!(
        "add table inet hole; add chain inet hole in {{ type filter hook input priority 0; }}; add rule inet hole in tcp dport {} drop",
        ill.addr.port()
    );
    ill.ns.nft(&hole).unwrap();
    falls(&agent, ill.addr, "no connection within 250ms");
    assert_eq!(answers(&lab, 20), [well.name.as_str()]);
    ill.ns.nft("delete table inet hole").unwrap();
    becomes(&agent, ill.addr, "up");
    assert_eq!(answers(&lab, 30).len(), 2, "both are back");
    let service = agent.service("web").unwrap();
    assert_eq!(service["etag"], etag, "no desired state was written");
    let down = agent.log().matches("down: ").count();
    assert!(
        (5..=7).contains(&down),
        "a line for each transition:\n{}",
        agent.log()
    );
    let metrics = metrics(&lab);
    for reason in ["answer", "timeout", "refused"] {
        let sample = format!("backend=\"{}\",reason=\"{reason}\"", ill.addr);
        assert!(metrics.contains(&sample), "{reason}: {metrics}");
    }
    // A body that comes too slowly is an answer that comes too late.
    let slow = HTTP
        .replace("/healthz", "/slow")
        .replace("is well", "never");
    apply(&agent, &toml(&lab, &blue, &[green.addr], "", &slow));
    falls(&agent, well.addr, "no answer within 250ms");
}

#[test]
fn checks_are_no_traffic_and_two_hundred_backends_are_checked_under_tc() {
    need!("nginx");
    two_hundred("tc");
}

#[test]
fn checks_are_no_traffic_and_two_hundred_backends_are_checked_under_xdp() {
    need!("nginx");
    two_hundred("xdp");
}

/// Half of them answer, a quarter refuses, and a quarter says nothing.
fn two_hundred(hook: &'static str) {
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let mut blue = Server::new(&lab, Side::Blue, 7_300);
    let ports: String = (7_301..7_400)
        .map(|port| format!("; listen {port}"))
        .collect();
    blue.run(&ports);
    let addrs: Vec<SocketAddr> = (7_300..7_500)
        .map(|port| Lab::at_port(blue.addr, port))
        .collect();
    let hole = "add table inet hole; add chain inet hole in { type filter hook input priority 0; }; add rule inet hole in tcp dport 7450-7499 drop";
    blue.ns.nft(hole).unwrap();
    let agent = Agent::start(&lab, Settings::hook(hook)).unwrap();
    let tcp = "type = \"tcp\"\ninterval = \"1s\"\ntimeout = \"900ms\"\nfall = 2";
    apply(&agent, &toml(&lab, &addrs, &[], "", tcp));
    let count = |word: &str| {
        let all = agent.json(&["get", "backends", "web"]).unwrap();
        let all = all["backends"].as_array().unwrap().clone();
        all.iter()
            .filter(|backend| backend["health"] == word)
            .count()
    };
    let began = Instant::now();
    let known = eventually(SOON, || count("up") == 100 && count("down") == 100);
    assert!(known, "{} up, {} down", count("up"), count("down"));
    println!(
        "{hook}: 200 backends were known after {:?}",
        began.elapsed()
    );
    // The last of them are out of the ring a moment after their last check.
    thread::sleep(Duration::from_secs(1));
    let service = agent.service("web").unwrap();
    let generation = number(&service["generation"]);
    assert!(
        generation < 30,
        "100 backends went in {generation} generations"
    );
    thread::sleep(Duration::from_secs(3));
    assert_eq!((count("up"), count("down")), (100, 100));
    let after = agent.service("web").unwrap();
    assert_eq!(
        number(&after["generation"]),
        generation,
        "nothing changes any more"
    );
    assert_eq!(agent.new_flows("web").unwrap(), [0, 0]);
    let flows = agent.json(&["get", "flows"]).unwrap();
    assert_eq!(flows["flows"].as_array().map_or(0, Vec::len), 0, "{flows}");
    let backend = backend(&agent, addrs[0]);
    for counter in ["forward_packets", "reply_packets", "new_flows"] {
        assert_eq!(number(&backend[counter]), 0, "{counter}: {backend}");
    }
    assert!(number(&backend["checks"]["passed"]) >= 3, "{backend}");
    assert!(answers(&lab, 20).len() == 1);
}
