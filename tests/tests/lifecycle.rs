//! The agent dies, comes back, and the interface with it; flows go on.

use std::{path::PathBuf, thread, time::Duration};

use shifter_tests::{
    agent::{Agent, Settings, number},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::{self, Requests},
        server,
        storm::{Report, Storm},
    },
};

const FLOWS: u32 = 200;

fn start<'lab>(lab: &'lab Lab, hook: &'static str) -> Agent<'lab> {
    let agent = Agent::start(lab, Settings::hook(hook)).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

/// Busy flows on both sides.
fn storm(lab: &Lab) -> Storm {
    Storm::answered(lab, FLOWS, FLOWS / 4, 10).unwrap()
}

fn assert_both_sides(report: &Report, what: &str) {
    report.assert_untouched(what);
    assert_eq!(report.tcp_by_identity.len(), 2, "{what}: {report:?}");
}

/// Ids of what the kernel runs on the clients' interface, `[ingress, egress]`,
/// all loaded by the agent that runs.
fn programs(agent: &Agent) -> Vec<u64> {
    let status = agent.json(&["status"]).unwrap();
    let programs = status["interfaces"][0]["programs"].as_array().unwrap();
    assert_eq!(programs.len(), 2, "{status}");
    assert!(programs.iter().all(|p| p["state"] == "ours"), "{status}");
    programs
        .iter()
        .map(|program| number(&program["id"]))
        .collect()
}

/// A start brings programs of its own, which take the place of the former ones.
fn assert_replaced(before: &mut Vec<u64>, agent: &Agent) {
    let after = programs(agent);
    let is_new = after.iter().all(|id| !before.contains(id));
    assert!(is_new, "{before:?} are still there: {after:?}");
    *before = after;
}

fn survives_its_agent(hook: &'static str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, hook);
    let storm = storm(&lab);
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let requests = Requests::start(&lab.client, &vips, 2, 200).unwrap();
    let before = agent.service("tcp4").unwrap();
    let mut in_force = programs(&agent);

    agent.kill();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(agent.cli(&["status"]).unwrap().status.code(), Some(8));
    agent.restart().unwrap();
    assert_replaced(&mut in_force, &agent);
    let after = agent.service("tcp4").unwrap();
    assert_eq!(before["generation"], after["generation"]);
    assert_eq!(
        before["weights"]["configured"],
        after["weights"]["configured"]
    );
    let carried: u64 = agent.carried("tcp4").unwrap().iter().sum();
    assert!(carried >= u64::from(FLOWS / 2), "{carried} flows are known");

    agent.stop();
    let sides = requests.tally();
    thread::sleep(Duration::from_secs(1));
    let without = requests.since(&sides);
    assert!(
        Side::BOTH
            .iter()
            .all(|side| without.get(&side.identity()) > Some(&10)),
        "without an agent the weight stays in force: {without:?}"
    );
    agent.restart().unwrap();
    assert_replaced(&mut in_force, &agent);
    agent.shift("tcp4", "0%").unwrap();
    agent.shift("tcp6", "0%").unwrap();

    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    let report = storm.finish().unwrap();
    assert_both_sides(&report, &format!("agent killed and stopped under {hook}"));
}

#[test]
fn flows_outlive_a_killed_and_a_stopped_agent_under_tc() {
    need!();
    survives_its_agent("tc");
}

#[test]
fn flows_outlive_a_killed_and_a_stopped_agent_under_xdp() {
    need!();
    survives_its_agent("xdp");
}

#[test]
fn a_weight_changed_before_a_kill_is_there_after_it() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, "tc");
    for weight in ["7%", "93%", "0%", "100%"] {
        agent.shift("tcp4", weight).unwrap();
        agent.kill();
        agent.restart().unwrap();
        let service = agent.service("tcp4").unwrap();
        assert_eq!(service["weights"]["configured"], weight, "{service}");
    }
}

/// Lines of `tc filter show` that name a program: `[ingress, egress]`.
fn filters(lab: &Lab) -> [Vec<String>; 2] {
    ["ingress", "egress"].map(|direction| {
        let shown = lab
            .host
            .command("tc")
            .args(["filter", "show", "dev", "h0", direction])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let programs = text.lines().filter(|line| line.contains("shifter_"));
        programs.map(str::to_owned).collect()
    })
}

#[test]
fn filters_in_clsact_are_replaced_in_place_and_go_with_detach() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let settings = Settings::hook("tc").with_clsact();
    let mut agent = Agent::start(&lab, settings.clone()).unwrap();
    let services = Service::all_four(&lab);
    let services: Vec<Service> = services.into_iter().map(|s| s.with_green("50%")).collect();
    agent.apply(&services).unwrap();
    let storm = storm(&lab);
    let generation = |agent: &Agent| number(&agent.service("tcp4").unwrap()["generation"]);
    let published = generation(&agent);
    let before = filters(&lab);
    assert_eq!(before.each_ref().map(Vec::len), [1, 1], "{before:?}");

    agent.kill();
    assert_eq!(filters(&lab), before, "filters outlive the agent");
    agent.restart().unwrap();
    let after = filters(&lab);
    assert_eq!(after.each_ref().map(Vec::len), [1, 1], "{after:?}");
    assert_ne!(after, before, "the programs are the new agent's");
    assert_eq!(generation(&agent), published, "nothing differs");

    // To tcx and back: one way of tc at a time.
    for (settings, count) in [(Settings::hook("tc"), 0), (settings, 1)] {
        agent.stop();
        agent.configure(&settings).unwrap();
        agent.restart().unwrap();
        let now = filters(&lab);
        assert_eq!(now.each_ref().map(Vec::len), [count; 2], "{now:?}");
    }
    let report = storm.finish().unwrap();
    assert_both_sides(&report, "agent killed and moved between clsact and tcx");

    agent.stop();
    let said = agent.done(&["detach", "--force"]).unwrap();
    assert!(said.contains("2 programs taken off"), "{said}");
    assert_eq!(filters(&lab), [const { Vec::<String>::new() }; 2]);
}

fn interface_comes_back(hook: &'static str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, hook);
    let ask = || {
        let vip = lab.vip(Family::V4);
        lab.client.run(|| requests::ask(vip, None)).is_ok()
    };
    assert!(ask());

    // Down and up again: addresses of IPv4 and flows stay.
    lab.host.ip(&["link set h0 down".to_owned()]).unwrap();
    thread::sleep(Duration::from_millis(300));
    lab.host.ip(&["link set h0 up".to_owned()]).unwrap();
    lab.host
        .ip(&[
            "route replace 10.82.0.0/16 via 10.71.0.2".to_owned(),
            "addr replace fd71::1/64 dev h0 nodad".to_owned(),
            "addr replace fd71::100/128 dev h0 nodad".to_owned(),
        ])
        .unwrap();
    assert!(eventually(Duration::from_secs(5), ask), "after down and up");

    // Deleted, and made again under the same name.
    lab.host.ip(&["link del h0".to_owned()]).unwrap();
    thread::sleep(Duration::from_millis(500));
    agent.done(&["status"]).unwrap();
    lab.rewire_front().unwrap();
    assert!(
        eventually(Duration::from_secs(10), ask),
        "after the interface came back under its name"
    );
    let new = eventually(Duration::from_secs(5), || {
        let before = agent.new_flows("tcp4").unwrap();
        let answered = ask();
        let after = agent.new_flows("tcp4").unwrap();
        answered && after.iter().sum::<u64>() > before.iter().sum()
    });
    assert!(new, "the hooks are on the new interface and count");
}

#[test]
fn an_interface_that_goes_and_comes_back_is_served_again_under_tc() {
    need!();
    interface_comes_back("tc");
}

#[test]
fn an_interface_that_goes_and_comes_back_is_served_again_under_xdp() {
    need!();
    interface_comes_back("xdp");
}

#[test]
fn detach_refuses_while_green_carries_flows_and_force_cuts_them() {
    need!();
    let lab = Lab::new(Placement::Vip).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, "tc");
    let storm = storm(&lab);
    let refused = agent.cli(&["detach"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        eventually(Duration::from_secs(5), || agent.carried("tcp4").unwrap()[1]
            > 0),
        "{said}"
    );
    assert!(said.contains("green") && said.contains("--force"), "{said}");

    agent.done(&["detach", "--force"]).unwrap();
    let vip = lab.vip(Family::V4);
    for _ in 0..50 {
        let answered = lab.client.run(|| requests::ask(vip, None)).unwrap();
        assert_eq!(
            answered,
            Side::Blue.identity(),
            "the VIP's own server answers all"
        );
    }
    let report = storm.finish().unwrap();
    assert!(
        report.tcp_resets + report.tcp_unanswered > 0,
        "green's flows are cut"
    );
    assert_eq!(report.wrong_bytes, 0);
}

#[test]
fn a_second_agent_is_refused_and_the_first_named() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = start(&lab, "tc");
    let config = agent.config();
    let second = agent
        .cli(&["agent", "--config", config.to_str().unwrap()])
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success(), "{said}");
    let status = agent.json(&["status"]).unwrap();
    let pid = number(&status["pid"]);
    assert!(pid > 0, "{status}");
    assert!(
        said.contains(&pid.to_string()),
        "{pid} is not named: {said}"
    );
    agent.done(&["status"]).unwrap();
}

/// Writes the configuration of an agent that shares nothing with the lab's but
/// the network namespace; its bpffs and the file.
fn another_installation(lab: &Lab, agent: &Agent) -> (PathBuf, PathBuf) {
    let bpffs = lab.bpffs().join("other");
    std::fs::create_dir_all(&bpffs).unwrap();
    let first = std::fs::read_to_string(agent.config()).unwrap();
    let quoted = |path: PathBuf| format!("\"{}\"", path.display());
    let mut second = first.replace(":9464", ":9465");
    for (from, to) in [
        (lab.bpffs(), bpffs.clone()),
        (lab.dir().join("state"), lab.dir().join("state-2")),
        (agent.socket(), lab.dir().join("second.sock")),
    ] {
        assert!(second.contains(&quoted(from.clone())), "{second}");
        second = second.replace(&quoted(from), &quoted(to));
    }
    std::fs::create_dir_all(lab.dir().join("state-2")).unwrap();
    let path = lab.dir().join("second.toml");
    std::fs::write(&path, second).unwrap();
    (bpffs, path)
}

#[test]
fn an_agent_with_another_bpffs_is_refused_beside_the_first_and_its_filters_are_left_alone() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc").with_clsact()).unwrap();
    agent.apply(&Service::all_four(&lab)).unwrap();
    let pid = number(&agent.json(&["status"]).unwrap()["pid"]);
    let (bpffs, config) = another_installation(&lab, &agent);
    let before = filters(&lab);
    let second = || {
        let refused = agent.cli(&["agent", "--config", config.to_str().unwrap()]);
        let refused = refused.unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert_eq!(filters(&lab), before, "{said}");
        said
    };
    let said = second();
    assert!(said.contains(&format!("process {pid} is")), "{said}");
    assert!(is_answered(&lab));

    // The first one's datapath goes on without it.
    agent.signal(libc::SIGKILL);
    let said = eventually(Duration::from_secs(5), || {
        second().contains("another shifter installation")
    });
    assert!(said, "{}", second());
    let detached = agent
        .cli_command(&["detach", "--force"])
        .unwrap()
        .env("SHIFTER_BPFFS", &bpffs)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&detached.stdout).into_owned();
    assert!(said.contains("0 programs taken off"), "{said}");
    assert_eq!(filters(&lab), before);
    agent.restart().unwrap();
    assert!(is_answered(&lab));
}

#[test]
fn programs_of_another_installation_beside_ours_are_shown_and_loud() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = start(&lab, "tc");
    let (_, config) = another_installation(&lab, &agent);
    agent.stop();
    let first = std::fs::read_to_string(agent.config()).unwrap();
    let second = std::fs::read_to_string(config).unwrap();
    let socket = lab.dir().join("second.sock").display().to_string();
    let second = second.replace(&socket, &agent.socket().display().to_string());
    std::fs::write(agent.config(), second).unwrap();
    agent.restart().unwrap();
    let status = agent.json(&["status"]).unwrap();
    let programs = status["interfaces"][0]["programs"].as_array().unwrap();
    let of = |state: &str| programs.iter().filter(|p| p["state"] == state).count();
    assert_eq!((of("ours"), of("other")), (2, 2), "{status}");
    let loud = eventually(Duration::from_secs(5), || {
        let status = agent.json(&["status"]).unwrap();
        status["loud"].to_string().contains("packets meet both")
    });
    assert!(loud, "{}", agent.log());
    assert!(agent.done(&["status"]).unwrap().contains("NOT OURS"));
    std::fs::write(agent.config(), first).unwrap();
}

fn is_answered(lab: &Lab) -> bool {
    let vip = lab.vip(Family::V4);
    lab.client.run(|| requests::ask(vip, None)).is_ok()
}

#[test]
fn a_dead_man_takes_the_weight_back_even_without_an_agent() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, "tc");
    agent.shift("tcp4", "0%").unwrap();
    agent
        .done(&["shift", "tcp4", "--green", "100%", "--revert-after", "2s"])
        .unwrap();
    let vip = lab.vip(Family::V4);
    let ask = || lab.client.run(|| requests::ask(vip, None)).unwrap();
    assert_eq!(ask(), Side::Green.identity());
    agent.kill();
    thread::sleep(Duration::from_millis(2_200));
    for _ in 0..50 {
        assert_eq!(
            ask(),
            Side::Blue.identity(),
            "past the deadline blue has all"
        );
    }
    agent.restart().unwrap();
    for _ in 0..50 {
        assert_eq!(ask(), Side::Blue.identity(), "and keeps it after a restart");
    }
}
