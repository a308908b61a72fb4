//! What the kernel really runs on the interfaces: shown, put back when it was
//! taken off by hand, left off when `shifter detach` did it, and taken off
//! where the configuration no longer wants it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, METRICS, Settings, number},
    blocker::Blocker,
    command::{eventually, run},
    mover::Service,
    need,
    topology::{Family, Lab, Placement},
    traffic::{
        requests, server,
        storm::{Plan, Storm},
    },
};

const SOON: Duration = Duration::from_secs(10);

fn start<'lab>(lab: &'lab Lab, settings: Settings) -> Agent<'lab> {
    let agent = Agent::start(lab, settings).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

/// One interface as `status` shows it.
fn interface(agent: &Agent, name: &str) -> Option<Value> {
    let status = agent.json(&["status"]).unwrap();
    let all = status["interfaces"].as_array().unwrap().clone();
    all.into_iter().find(|interface| interface["name"] == name)
}

/// `[ingress, egress]`: "ours", "other" or "absent"; empty where nothing is known.
fn states(agent: &Agent, name: &str) -> Vec<String> {
    let shown = interface(agent, name).unwrap_or_default();
    let programs = shown["programs"].as_array().cloned().unwrap_or_default();
    let states = programs.iter().map(|program| program["state"].as_str());
    states.map(|s| s.unwrap().to_owned()).collect()
}

fn is_whole(agent: &Agent, name: &str) -> bool {
    states(agent, name) == ["ours", "ours"]
}

fn loud(agent: &Agent) -> String {
    let status = agent.json(&["status"]).unwrap();
    status["loud"].to_string()
}

/// Flows chosen so far, by either service of TCP.
fn chosen(agent: &Agent) -> u64 {
    agent.new_flows("tcp4").unwrap().iter().sum()
}

fn ask(lab: &Lab) -> bool {
    let vip = lab.vip(Family::V4);
    lab.client.run(|| requests::ask(vip, None)).is_ok()
}

/// Takes a link off as somebody would who knows nothing of shifter.
fn take_link_off(lab: &Lab, agent: &Agent, place: &str) {
    let index = number(&interface(agent, "h0").unwrap()["index"]);
    let pin = lab.bpffs().join(format!("shifter/links/{index}-{place}"));
    let mut command = Command::new("bpftool");
    command.args(["link", "detach", "pinned"]).arg(pin);
    run(&mut command).unwrap();
}

fn put_back(hook: &'static str, place: &str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook(hook));
    assert!(is_whole(&agent, "h0"), "{:?}", interface(&agent, "h0"));
    for place in [place, "egress"] {
        take_link_off(&lab, &agent, place);
        let said = eventually(SOON, || agent.log().contains("putting it back"));
        assert!(said, "{place} is missed: {}", agent.log());
        let whole = eventually(SOON, || is_whole(&agent, "h0"));
        assert!(whole, "{place}: {:?}", interface(&agent, "h0"));
        let before = chosen(&agent);
        assert!(ask(&lab), "served after {place} came back");
        assert!(eventually(SOON, || chosen(&agent) > before));
    }
}

#[test]
fn programs_that_were_taken_off_by_hand_are_put_back_under_tc() {
    need!("bpftool");
    put_back("tc", "ingress");
}

#[test]
fn programs_that_were_taken_off_by_hand_are_put_back_under_xdp() {
    need!("bpftool");
    put_back("xdp", "xdp");
}

fn tc(lab: &Lab, arguments: &str) {
    let mut command = lab.host.command("tc");
    run(command.args(arguments.split(' '))).unwrap();
}

fn shown(lab: &Lab, direction: &str) -> String {
    let mut command = lab.host.command("tc");
    let output = run(command.args(["filter", "show", "dev", "h0", direction])).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn filters_of_others_in_clsact_stay_and_ours_are_put_back_beside_them() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    tc(&lab, "qdisc add dev h0 clsact");
    // It matches nothing; priority and handle are those that a first filter gets.
    let foreign = "pref 1 handle 1 bpf bytecode 1,6_0_0_0 flowid 1:1";
    let add = format!("filter add dev h0 ingress protocol all {foreign}");
    let mut command = lab.host.command("tc");
    command.args(add.split(' ').map(|word| word.replace('_', " ")));
    run(&mut command).unwrap();
    let mut agent = start(&lab, Settings::hook("tc").with_clsact());
    let theirs = |text: &str| text.lines().filter(|l| l.contains("bytecode")).count();
    let ours = |text: &str| text.lines().filter(|l| l.contains("shifter_")).count();
    let before = shown(&lab, "ingress");
    assert_eq!((theirs(&before), ours(&before)), (1, 1), "{before}");
    assert!(is_whole(&agent, "h0"), "{:?}", interface(&agent, "h0"));

    tc(&lab, "filter del dev h0 egress");
    let back = eventually(SOON, || ours(&shown(&lab, "egress")) == 1);
    assert!(back, "{}", agent.log());
    assert!(eventually(SOON, || is_whole(&agent, "h0")));
    tc(&lab, "qdisc del dev h0 clsact");
    let back = eventually(SOON, || ours(&shown(&lab, "ingress")) == 1);
    assert!(back && ask(&lab), "{}", agent.log());

    // The handle is ours by now.
    let again = add.replace("handle 1 ", "");
    let mut command = lab.host.command("tc");
    command.args(again.split(' ').map(|word| word.replace('_', " ")));
    run(&mut command).unwrap();
    agent.stop();
    let said = agent.done(&["detach", "--force"]).unwrap();
    assert!(said.contains("2 programs taken off"), "{said}");
    let after = shown(&lab, "ingress");
    assert_eq!((theirs(&after), ours(&after)), (1, 0), "{after}");
}

#[test]
fn a_program_that_is_not_ours_is_loud_in_status_metrics_and_log() {
    need!("bpftool");
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = start(&lab, Settings::hook("xdp"));
    agent.signal(libc::SIGSTOP);
    let index = lab.host.run(|| {
        let name = std::ffi::CString::new("h0").unwrap();
        // SAFETY: a C string that outlives the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    });
    let pin = lab.bpffs().join(format!("shifter/links/{index}-xdp"));
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(pin))
    .unwrap();
    let stranger = Blocker::attach(&lab.host, "h0").unwrap();
    agent.signal(libc::SIGCONT);

    let seen = eventually(SOON, || states(&agent, "h0") == ["other", "ours"]);
    assert!(seen, "{:?}", interface(&agent, "h0"));
    assert_eq!(interface(&agent, "h0").unwrap()["tag"], "");
    let said = loud(&agent);
    assert!(
        said.contains("interface h0") && said.contains("did not load"),
        "{said}"
    );
    let table = agent.done(&["status"]).unwrap();
    assert!(table.contains("NOT OURS"), "{table}");
    let metric = "shifter_interface_program_in_force{interface=\"h0\",direction=\"ingress\"} 0";
    let page = metrics(&lab);
    assert!(page.contains(metric), "{page}");
    assert!(eventually(SOON, || agent
        .log()
        .contains("loud: interface h0")));

    drop(stranger);
    assert!(
        eventually(SOON, || is_whole(&agent, "h0")),
        "{}",
        agent.log()
    );
    let over = eventually(Duration::from_secs(25), || {
        agent.log().contains("over: interface h0")
    });
    assert!(over, "{}", agent.log());
}

fn metrics(lab: &Lab) -> String {
    lab.host.run(|| {
        let mut stream = TcpStream::connect(METRICS).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {METRICS}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

#[test]
fn a_failed_attach_is_tried_again_until_it_works() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("xdp"));
    agent.signal(libc::SIGSTOP);
    lab.host.ip(&["link del h0".to_owned()]).unwrap();
    lab.rewire_front().unwrap();
    let in_the_way = Blocker::attach(&lab.host, "h0").unwrap();
    agent.signal(libc::SIGCONT);
    let failed = eventually(SOON, || loud(&agent).contains("it is tried again"));
    assert!(failed, "{}", agent.log());
    drop(in_the_way);
    let whole = eventually(Duration::from_secs(20), || is_whole(&agent, "h0"));
    assert!(whole, "{}", agent.log());
    let before = chosen(&agent);
    assert!(eventually(SOON, || ask(&lab) && chosen(&agent) > before));
}

#[test]
fn what_the_operator_detached_stays_off_until_the_agent_starts_anew() {
    need!();
    let lab = Lab::new(Placement::Vip).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    // Links that were adopted, not made, must go as well.
    agent.stop();
    agent.restart().unwrap();
    assert!(is_whole(&agent, "h0"));
    let said = agent.done(&["detach", "h0", "--force"]).unwrap();
    assert!(said.contains("2 programs taken off"), "{said}");
    let seen = eventually(SOON, || loud(&agent).contains("was detached"));
    assert!(seen, "{}", agent.log());
    let before = chosen(&agent);
    lab.host
        .ip(&["link set h0 down".to_owned(), "link set h0 up".to_owned()])
        .unwrap();
    thread::sleep(Duration::from_secs(3));
    assert!(eventually(SOON, || ask(&lab)));
    assert_eq!(chosen(&agent), before, "nothing is shifted any more");
    assert_ne!(states(&agent, "h0"), ["ours", "ours"]);

    agent.stop();
    agent.restart().unwrap();
    assert!(is_whole(&agent, "h0"), "the configuration names it");
    assert!(!loud(&agent).contains("was detached"));
}

/// Whether an interface's links are pinned: `[ingress, egress]`.
fn is_on(lab: &Lab, name: &str) -> [bool; 2] {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a C string that outlives the call.
    let index = lab
        .host
        .run(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
    let links = lab.bpffs().join("shifter/links");
    ["ingress", "egress"].map(|place| links.join(format!("{index}-{place}")).exists())
}

/// TCP flows under way, agent on the interfaces `all`, then restarted on those
/// that are left.
fn with_one_interface_less<'lab>(
    lab: &'lab Lab,
    all: Vec<&'static str>,
    left: Vec<&'static str>,
) -> (Agent<'lab>, Storm) {
    let mut settings = Settings::hook("tc");
    settings.interfaces = all;
    let mut agent = start(lab, settings.clone());
    let storm = Storm::start(
        &lab.client,
        Plan {
            tcp_to: vec![lab.vip(Family::V4)],
            udp_to: Vec::new(),
            tcp_flows: 20,
            udp_flows: 0,
            rate: 5,
        },
    )
    .unwrap();
    assert!(storm.wait_for(20, SOON));
    agent.stop();
    settings.interfaces = left;
    agent.configure(&settings).unwrap();
    agent.restart().unwrap();
    (agent, storm)
}

/// The programs stay while the storm blows, loudly, and go after it.
fn goes_when_no_flow_is_left(lab: &Lab, agent: &Agent, storm: Storm, name: &str) {
    let said = loud(agent);
    let remedy = format!("`shifter detach {name} --force`");
    assert!(
        said.contains(&format!("interface {name} is not in")) && said.contains(&remedy),
        "{said}"
    );
    let refused = agent.cli(&["detach", name]).unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("cannot be told"), "{why}");
    thread::sleep(Duration::from_secs(6));
    assert_eq!(is_on(lab, name), [true; 2], "flows may need {name}");
    storm
        .finish()
        .unwrap()
        .assert_untouched(&format!("{name} is not configured any more"));
    let off = eventually(Duration::from_secs(20), || is_on(lab, name) == [false; 2]);
    assert!(off, "{} {}", loud(agent), agent.log());
    let quiet = eventually(SOON, || !loud(agent).contains(&format!("interface {name}")));
    assert!(quiet, "{}", loud(agent));
    let said = agent.done(&["detach", name]).unwrap();
    assert!(said.contains("0 programs taken off"), "{said}");
}

#[test]
fn an_interface_that_is_not_configured_any_more_keeps_its_programs_while_flows_may_need_them() {
    need!();
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    for (left, gone) in [("h0", "h1"), ("h1", "h0")] {
        let (agent, storm) = with_one_interface_less(&lab, vec!["h0", "h1"], vec![left]);
        goes_when_no_flow_is_left(&lab, &agent, storm, gone);
        assert!(is_whole(&agent, left));
    }
}

/// A second link, by which the client's packets come while answers leave by h0.
fn ingress_apart(lab: &Lab) {
    let far = lab.client.name();
    lab.host
        .ip(&[
            format!("link add h2 type veth peer name c2 netns {far}"),
            "addr add 10.76.0.1/24 dev h2".to_owned(),
            "link set h2 up".to_owned(),
        ])
        .unwrap();
    lab.client
        .ip(&[
            "addr add 10.76.0.2/24 dev c2".to_owned(),
            "link set c2 up".to_owned(),
            "route add 10.71.0.100/32 via 10.76.0.1 dev c2 src 10.71.0.2".to_owned(),
        ])
        .unwrap();
    lab.client.ethtool("c2", &["tx", "off"]).unwrap();
    lab.client.ethtool("c2", &["gro", "on"]).unwrap();
    lab.host.ethtool("h2", &["gro", "on"]).unwrap();
}

#[test]
fn an_interface_where_flows_only_come_in_keeps_its_programs_while_there_are_any() {
    need!();
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    ingress_apart(&lab);
    let all = vec!["h0", "h1", "h2"];
    let (agent, storm) = with_one_interface_less(&lab, all, vec!["h0", "h1"]);
    assert_eq!(is_on(&lab, "h2"), [true; 2], "{}", agent.log());
    goes_when_no_flow_is_left(&lab, &agent, storm, "h2");
}

#[test]
fn a_detach_of_one_interface_answers_in_json() {
    need!();
    let lab = Lab::new(Placement::Vip).unwrap();
    let agent = start(&lab, Settings::hook("tc"));
    let answer = agent.json(&["detach", "h0"]).unwrap();
    let expected = serde_json::json!({
        "interface": "h0", "programs": 2, "maps_removed": false,
        "flows": {"green": 0, "blue": 0, "idle": 0},
    });
    assert_eq!(answer, expected);
}
