//! One agent at a time, with no more rights than it needs, none of whose tasks
//! ends the service.

use std::{fs, time::Duration};

use shifter_tests::{
    agent::{Agent, Settings, binary, number},
    command::eventually,
    mover::Service,
    need,
    need::scaled,
    rpc::Rpc,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server},
};

const SOON: Duration = Duration::from_secs(30);

/// What is loud for a moment after a start is over soon.
fn assert_quiet(agent: &Agent) {
    let loud = || agent.json(&["status"]).unwrap()["loud"].clone();
    let quiet = eventually(SOON, || loud() == serde_json::json!([]));
    assert!(quiet, "{}", loud());
}

#[test]
fn of_two_agents_started_at_once_one_serves_and_the_other_names_it() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&Service::all_four(&lab)).unwrap();
    for round in 0..scaled(20, 100) {
        agent.stop();
        let mut two = [
            agent.begin(&[], &[]).unwrap(),
            agent.begin(&[], &[]).unwrap(),
        ];
        let ended = eventually(SOON, || two.iter_mut().any(|one| one.ended().is_some()));
        assert!(ended, "round {round}: both go on");
        let is_first = two[0].ended().is_none();
        let [first, second] = two;
        let (mut serves, other) = if is_first {
            (first, second)
        } else {
            (second, first)
        };
        serves.wait_for("serving took_ms", SOON).unwrap();
        let (pid, said) = (serves.pid(), other.output());
        assert!(
            said.contains(&format!("process {pid} is the agent")),
            "round {round}: {said}"
        );
        agent.follow(serves);
        let status = agent.json(&["status"]).unwrap();
        assert_eq!(number(&status["pid"]), u64::from(pid), "round {round}");
    }
}

/// A set of capabilities of a process and of all its threads.
fn capabilities(pid: u32, set: &str) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_one = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(set));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    let mut found: Vec<u64> = threads
        .flatten()
        // A thread may end while this looks.
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .map(of_one)
        .collect();
    found.dedup();
    found
}

#[test]
fn an_agent_of_plain_root_keeps_what_it_needs_and_gives_up_the_rest() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&Service::all_four(&lab)).unwrap();
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
    let kept: u64 = [12, 13, 19, 21, 38, 39]
        .map(|number| 1 << number)
        .iter()
        .sum();
    let pid = agent.pid().unwrap();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(capabilities(pid, set), [kept], "{set}");
    }
    assert!(
        agent.log().contains("capabilities reduced"),
        "{}",
        agent.log()
    );
    let vip = lab.vip(Family::V4);
    let requests = Requests::start(&lab.client, &[vip], 2, 50).unwrap();
    agent.shift("tcp4", "100%").unwrap();
    assert_eq!(requests.finish().unwrap().failures, 0);
    assert_quiet(&agent);
}

#[test]
fn an_agent_that_may_open_too_few_files_says_what_mends_it() {
    need!("prlimit");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.stop();
    let mut command = lab.host.command_with_sys("prlimit");
    let output = command
        .arg("--nofile=100:100")
        .arg(binary().unwrap())
        .args(["agent", "--config"])
        .arg(agent.config())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["100 files", "LimitNOFILE=", "ulimit -n"] {
        assert!(said.contains(part), "{said}");
    }
}

/// Starts an agent one of whose tasks panics, so often.
fn start_with_panics<'lab>(lab: &'lab Lab, at: &str) -> Agent<'lab> {
    let mut settings = Settings::hook("tc");
    settings.environment = vec![("SHIFTER_PANIC_AT", at.to_owned())];
    let agent = Agent::start(lab, settings).unwrap();
    agent.apply(&Service::all_four(lab)).unwrap();
    agent
}

#[test]
fn a_task_that_panics_is_loud_packets_go_on_and_it_is_started_again() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let tasks = ["maintain", "network", "metrics", "placements", "handover"];
    for task in &tasks[..scaled(3, 5)] {
        // 2 s until it is started again, and 5 s until it is taken to work.
        let agent = start_with_panics(&lab, &format!("{task}:1"));
        let vips = Family::BOTH.map(|family| lab.vip(family));
        let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
        let mut rpc = Rpc::connect(&agent).unwrap();
        let fails = eventually(SOON, || !rpc.is_serving(task).unwrap());
        assert!(fails, "{task}: {}", agent.log());
        let status = agent.json(&["status"]).unwrap();
        let loud = status["loud"].to_string();
        assert!(
            loud.contains(&format!("task \\\"{task}\\\" failed")),
            "{loud}"
        );
        assert!(rpc.is_serving("").unwrap() && rpc.is_serving("api").unwrap());
        agent.shift("tcp4", "50%").unwrap();
        let works = eventually(SOON, || rpc.is_serving(task).unwrap());
        assert!(works, "{task}: {}", agent.log());
        assert_quiet(&agent);
        assert!(agent.log().contains("panicked"), "{}", agent.log());
        let tally = requests.finish().unwrap();
        assert_eq!(tally.failures, 0, "{task}: {:?}", tally.errors);
    }
}

#[test]
fn an_api_that_panics_is_started_again_and_answers() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = start_with_panics(&lab, "api:1");
    assert!(
        agent.log().contains("task \"api\" failed 1 time"),
        "{}",
        agent.log()
    );
    let mut rpc = Rpc::connect(&agent).unwrap();
    let works = eventually(SOON, || rpc.is_serving("api").unwrap());
    assert!(works, "{}", agent.log());
}

#[test]
fn signs_of_life_are_given_again_after_a_panic() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let agent = start_with_panics(&lab, "keep_alive:1");
    let mut rpc = Rpc::connect(&agent).unwrap();
    let fails = eventually(SOON, || !rpc.is_serving("keep_alive").unwrap());
    assert!(fails, "{}", agent.log());
    let works = eventually(SOON, || rpc.is_serving("keep_alive").unwrap());
    assert!(works, "{}", agent.log());
}
