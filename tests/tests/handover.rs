//! A new agent takes over from the one that runs: no call fails, no flow is
//! touched, and whoever dies on the way, the other goes on.

use std::{
    fs,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr, unix::net::UnixDatagram},
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use shifter::proto::error::Reason;
use shifter_tests::{
    agent::{Agent, Settings, number},
    command::{Process, eventually},
    mover::Service,
    need,
    need::scaled,
    rpc::Rpc,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server, storm::Storm},
};

const SOON: Duration = Duration::from_secs(30);
/// What a caller waits for one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same for a write: it may wait for a start, and for another one where the
/// first fails, of agents that are not optimised.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

fn start<'lab>(lab: &'lab Lab, settings: Settings) -> Agent<'lab> {
    let agent = Agent::start(lab, settings).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

fn storm(lab: &Lab, flows: u32) -> Storm {
    Storm::answered(lab, flows, flows / 4, 4).unwrap()
}

/// What came of calls.
#[derive(Default, Debug)]
struct Calls {
    answered: u64,
    /// Sent again, because the agent said that it was leaving.
    again: u64,
    /// Not sent, because the connection was just being closed.
    unsent: u64,
    failures: Vec<String>,
    longest: Duration,
}

/// Calls in a loop until it is told to stop.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Calls>,
}

/// What a caller does each time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Get, all over one connection.
    Get,
    /// Get, each over a connection of its own, as the command line does.
    Connect,
    /// SetWeight; one that an agent sends away goes to the next.
    Write,
}

impl Caller {
    fn start(socket: PathBuf, call: Call) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut calls = Calls::default();
            let deadline = match call {
                Call::Write => WRITE_DEADLINE,
                Call::Get | Call::Connect => DEADLINE,
            };
            let mut rpc = Rpc::at(socket.clone(), deadline).unwrap();
            for turn in 0.. {
                if is_over.load(Relaxed) {
                    break;
                }
                let begun = Instant::now();
                let done = match call {
                    Call::Get => rpc.get("tcp4").map(drop),
                    Call::Connect => match Rpc::at(socket.clone(), DEADLINE) {
                        Ok(mut rpc) => rpc.get("tcp4").map(drop),
                        Err(error) => {
                            calls.failures.push(format!("{error:#}"));
                            continue;
                        }
                    },
                    Call::Write => {
                        let weight = ["40%", "60%"][turn % 2];
                        rpc.set_weight("udp6", weight).map(drop)
                    }
                };
                calls.longest = calls.longest.max(begun.elapsed());
                match done {
                    Ok(()) => calls.answered += 1,
                    Err(status) if Reason::of(&status) == Some(Reason::AgentLeaving) => {
                        calls.again += 1;
                    }
                    // The connection was closed in good order before the call was
                    // sent: other gRPC clients send it again without a word.
                    Err(status) if status.message() == "operation was canceled" => {
                        calls.unsent += 1;
                    }
                    Err(status) => calls.failures.push(format!("{status:?}")),
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            calls
        });
        Self { stop, thread }
    }

    fn finish(self) -> Calls {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// What a service is and what the kernel does, in words.
fn state(agent: &Agent, service: &str) -> String {
    let found = agent.service(service).unwrap();
    let weights = &found["weights"];
    format!(
        "{} {} {} {}",
        found["generation"], found["etag"], weights["configured"], weights["programmed_share"]
    )
}

fn replaced_again_and_again(settings: Settings, times: u32, what: &str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, settings);
    let storm = storm(&lab, scaled(200, 2_000));
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
    let callers =
        [Call::Get, Call::Connect, Call::Write].map(|call| Caller::start(agent.socket(), call));
    for round in 0..times {
        let weight = format!("{}%", 10 + round * 37 % 80);
        agent.shift("tcp4", &weight).unwrap();
        let before = state(&agent, "tcp4");
        let old = agent.pid();
        agent.replace().unwrap();
        assert_eq!(state(&agent, "tcp4"), before, "{what}, round {round}");
        let pid = number(&agent.json(&["status"]).unwrap()["pid"]);
        assert_ne!(Some(pid as u32), old, "{what}, round {round}");
        agent.shift("tcp6", &weight).unwrap();
        assert!(state(&agent, "tcp6").contains(&weight), "{what}");
    }
    let calls = callers.map(Caller::finish);
    println!("{what}: {times} handovers, calls {calls:?}");
    for calls in &calls {
        assert_eq!(calls.failures, [""; 0], "{what}: {calls:?}");
        assert!(calls.answered > u64::from(times), "{what}: {calls:?}");
    }
    let loud = || agent.json(&["status"]).unwrap()["loud"].clone();
    let quiet = eventually(SOON, || loud() == serde_json::json!([]));
    assert!(quiet, "{what}: {}", loud());
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    storm.finish().unwrap().assert_untouched(what);
}

#[test]
fn no_call_fails_and_no_flow_is_touched_when_agents_replace_each_other_under_tc() {
    need!();
    replaced_again_and_again(Settings::hook("tc"), scaled(10, 50), "tc");
}

#[test]
fn no_call_fails_and_no_flow_is_touched_when_agents_replace_each_other_under_xdp() {
    need!();
    replaced_again_and_again(Settings::hook("xdp"), scaled(3, 20), "xdp");
}

#[test]
fn no_call_fails_and_no_flow_is_touched_when_confined_agents_replace_each_other_in_clsact() {
    need!("setpriv");
    let settings = Settings::hook("tc").with_clsact().confined();
    replaced_again_and_again(settings, scaled(3, 20), "clsact");
}

#[test]
fn flows_outlive_an_agent_that_is_stopped_and_started() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab, scaled(200, 2_000));
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
    for round in 0..scaled(5, 20) {
        agent.shift("tcp4", &format!("{}%", 10 + round)).unwrap();
        let before = state(&agent, "tcp4");
        agent.stop();
        agent.restart().unwrap();
        assert_eq!(state(&agent, "tcp4"), before);
    }
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    storm
        .finish()
        .unwrap()
        .assert_untouched("stopped and started");
}

/// The process ends; how, and what it said.
fn ended(mut process: Process) -> (ExitStatus, String) {
    let status = process.wait(SOON);
    let status = status.unwrap_or_else(|| panic!("it goes on: {}", process.output()));
    (status, process.output())
}

/// The agent serves reads and writes, and is this process.
fn assert_serves(agent: &Agent, pid: u32, what: &str) {
    let serves = eventually(SOON, || {
        let status = agent.json(&["status"]);
        status.is_ok_and(|status| number(&status["pid"]) == u64::from(pid))
    });
    assert!(serves, "{what}: {}", agent.log());
    for weight in ["20%", "70%"] {
        agent.shift("tcp4", weight).unwrap();
        assert!(state(agent, "tcp4").contains(weight), "{what}");
    }
    // A change that was not asked for is loud until it is stored.
    let loud = || agent.json(&["status"]).unwrap()["loud"].clone();
    let quiet = eventually(SOON, || loud() == serde_json::json!([]));
    assert!(quiet, "{what}: {}", loud());
}

#[test]
fn an_agent_that_cannot_take_over_says_why_and_the_old_one_goes_on() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let caller = Caller::start(agent.socket(), Call::Get);
    let good = fs::read_to_string(agent.config()).unwrap();
    let pid = agent.pid().unwrap();
    let not_here = good.replace("127.0.0.1:9464", "192.0.2.1:9464");
    let unknown = good.replace("hook =", "hok =");
    for (config, says) in [(unknown, "hok"), (not_here, "192.0.2.1:9464")] {
        fs::write(agent.config(), config).unwrap();
        let (status, said) = ended(agent.begin(&["--replace"], &[]).unwrap());
        assert!(!status.success() && said.contains(says), "{said}");
        if says != "hok" {
            let goes_on = format!("the running agent (process {pid}) goes on");
            assert!(said.contains(&goes_on), "{said}");
        }
        assert_serves(&agent, pid, says);
    }
    assert!(agent.log().contains("did not take over"), "{}", agent.log());
    let calls = caller.finish();
    assert_eq!(calls.failures, [""; 0], "{calls:?}");
    // And then it works.
    fs::write(agent.config(), good).unwrap();
    agent.replace().unwrap();
    assert_serves(&agent, agent.pid().unwrap(), "afterwards");
}

#[test]
fn a_new_agent_that_dies_before_it_is_ready_leaves_the_old_one_serving() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab, 100);
    let callers =
        [Call::Get, Call::Connect, Call::Write].map(|call| Caller::start(agent.socket(), call));
    let pid = agent.pid().unwrap();
    for point in [
        "replace_connected",
        "replace_asked",
        "replace_offered",
        "start_claimed",
        "start_opened",
        "start_reconciled",
        "start_attached",
    ] {
        let new = agent.begin(&["--replace"], &[("SHIFTER_KILL_AT", point)]);
        let (status, said) = ended(new.unwrap());
        assert!(!status.success(), "{point}: {said}");
        assert_serves(&agent, pid, point);
    }
    let calls = callers.map(Caller::finish);
    println!("7 new agents killed, calls {calls:?}");
    for calls in calls {
        assert_eq!(calls.failures, [""; 0], "{calls:?}");
    }
    storm
        .finish()
        .unwrap()
        .assert_untouched("new agents killed");
}

#[test]
fn past_the_point_of_no_return_a_plain_start_does() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab, 100);
    agent.shift("tcp4", "33%").unwrap();
    let before = state(&agent, "tcp4");
    let new = agent.begin(&["--replace"], &[("SHIFTER_KILL_AT", "replace_ready")]);
    let old = agent.follow(new.unwrap()).unwrap();
    let (status, said) = ended(old);
    assert!(status.success(), "{said}");
    agent.stop();
    agent.restart().unwrap();
    assert_eq!(state(&agent, "tcp4"), before);
    assert_serves(&agent, agent.pid().unwrap(), "after a plain start");
    storm
        .finish()
        .unwrap()
        .assert_untouched("killed past the point");
}

#[test]
fn a_new_agent_goes_on_alone_when_the_old_one_dies_on_the_way() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab, 100);
    for point in ["give_rested", "give_offered", "give_leaving"] {
        agent.stop();
        let old = agent.begin(&[], &[("SHIFTER_KILL_AT", point)]).unwrap();
        let pid = old.pid();
        agent.follow(old);
        assert_serves(&agent, pid, "before");
        let mut new = agent.begin(&["--replace"], &[]).unwrap();
        new.wait_for("serving took_ms", SOON).unwrap();
        let pid = new.pid();
        let old = agent.follow(new).unwrap();
        let (status, said) = ended(old);
        assert!(!status.success(), "{point}: {said}");
        assert_serves(&agent, pid, point);
    }
    storm
        .finish()
        .unwrap()
        .assert_untouched("old agents killed");
}

#[test]
fn with_no_agent_to_replace_one_just_starts_and_without_the_word_the_first_is_named() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let pid = agent.pid().unwrap();
    let (status, said) = ended(agent.begin(&[], &[]).unwrap());
    assert!(!status.success(), "{said}");
    assert!(said.contains(&format!("process {pid} is")), "{said}");
    assert!(said.contains("--replace"), "{said}");
    agent.stop();
    let mut new = agent.begin(&["--replace"], &[]).unwrap();
    new.wait_for("serving took_ms", SOON).unwrap();
    assert!(
        new.output().contains("nothing to take over"),
        "{}",
        new.output()
    );
    let pid = new.pid();
    agent.follow(new);
    assert_serves(&agent, pid, "nobody to replace");
}

#[test]
fn sockets_that_the_new_configuration_names_elsewhere_move_there() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let (old_path, new_path) = (agent.socket(), lab.dir().join("other.sock"));
    let first = fs::read_to_string(agent.config()).unwrap();
    let text = |path: &PathBuf| path.display().to_string();
    let second = first
        .replace(&text(&old_path), &text(&new_path))
        .replace(":9464", ":9465");
    fs::write(agent.config(), second).unwrap();
    agent.replace().unwrap();
    assert!(new_path.exists() && !old_path.exists());
    let mut rpc = Rpc::at(new_path.clone(), DEADLINE).unwrap();
    rpc.set_weight("tcp4", "15%").unwrap();
    let scrape = |port: u16| {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        lab.host.run(|| std::net::TcpStream::connect(at).is_ok())
    };
    assert!(scrape(9_465) && !scrape(9_464));
    // And back.
    fs::write(agent.config(), first).unwrap();
    agent.replace().unwrap();
    assert!(!new_path.exists() && old_path.exists());
    assert!(scrape(9_464) && !scrape(9_465));
    assert!(state(&agent, "tcp4").contains("15%"));
}

/// Ends a process that is not a child of this one, when dropped.
struct Grandchild(u32);

impl Drop for Grandchild {
    fn drop(&mut self) {
        // SAFETY: takes numbers; the process was seen to run by its own answer.
        unsafe { libc::kill(self.0.cast_signed(), libc::SIGTERM) };
        eventually(SOON, || {
            !PathBuf::from(format!("/proc/{}", self.0)).exists()
        });
    }
}

#[test]
fn a_reload_by_the_service_manager_starts_the_next_agent_and_names_it() {
    need!("setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let name = format!("{}-reload", lab.name());
    let socket = lab.host.run(|| {
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        UnixDatagram::bind_addr(&address).unwrap()
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    let next = || {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut settings = Settings::hook("tc").confined();
    settings.environment = vec![
        ("NOTIFY_SOCKET", format!("@{name}")),
        ("WATCHDOG_USEC", "1000000".into()),
    ];
    let agent = start(&lab, settings);
    let old = agent.pid().unwrap();
    while next() != "READY=1" {}
    agent.signal(libc::SIGHUP);
    let said = std::iter::repeat_with(next).find(|said| said.starts_with("MAINPID="));
    let pid: u32 = said.unwrap()["MAINPID=".len()..].parse().unwrap();
    let _next = Grandchild(pid);
    assert_ne!(pid, old);
    while next() != "READY=1" {}
    while next() != "WATCHDOG=1" {}
    assert_serves(&agent, pid, "after a reload");
    let gone = eventually(SOON, || {
        let stat = fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z")
    });
    assert!(gone, "the old agent goes on: {}", agent.log());
}
