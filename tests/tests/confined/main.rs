//! The agent with the three capabilities of packaging/shifter.service and no
//! other: what it does, and what it says that it cannot do.

mod runner;

use std::{
    fs,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr, unix::net::UnixDatagram},
    process::Command,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings},
    blocker::Blocker,
    command::{eventually, run},
    mover::Service,
    need,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server, storm::Storm},
};

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF, as /proc/PID/status shows them.
const THREE: &str = "000000c000001000";
const SOON: Duration = Duration::from_secs(15);

fn assert_confined(agent: &Agent) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid().unwrap())).unwrap();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let line = format!("{set}:\t{THREE}");
        assert!(status.contains(&line), "{line} is not in\n{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

fn storm(lab: &Lab) -> Storm {
    Storm::answered(lab, 100, 25, 10).unwrap()
}

/// Start, attach, apply, shift, kill and restart, stop and restart, roll back,
/// detach: with traffic all the time.
fn does_its_work(settings: Settings, placement: Placement, what: &str) {
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, settings.confined()).unwrap();
    assert_confined(&agent);
    let services: Vec<Service> = Service::all_four(&lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    let storm = storm(&lab);
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();

    agent.shift("tcp4", "100%").unwrap();
    agent.kill();
    agent.restart().unwrap();
    assert_confined(&agent);
    assert_eq!(
        agent.service("tcp4").unwrap()["weights"]["configured"],
        "100%"
    );
    agent.stop();
    agent.restart().unwrap();
    agent.done(&["rollback", "tcp4"]).unwrap();
    let status = agent.json(&["status"]).unwrap();
    assert_eq!(status["loud"], serde_json::json!([]), "{what}: {status}");

    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    storm.finish().unwrap().assert_untouched(what);
    let log = agent.log();
    assert!(log.contains("without CAP_SYS_ADMIN"), "{what}: {log}");
    assert!(!log.contains("ERROR"), "{what}: {log}");
    let off = agent.done(&["detach", "--force"]).unwrap();
    assert!(off.contains("2 programs taken off"), "{what}: {off}");
    let alarm = eventually(SOON, || agent.log().contains("was detached by"));
    assert!(alarm, "{what}: {}", agent.log());
}

#[test]
fn an_agent_with_three_capabilities_does_its_work_under_tc() {
    need!("setpriv");
    does_its_work(Settings::hook("tc"), Placement::Container, "tc");
}

#[test]
fn an_agent_with_three_capabilities_does_its_work_under_xdp() {
    need!("setpriv");
    does_its_work(Settings::hook("xdp"), Placement::HostPorts, "xdp");
}

#[test]
fn an_agent_with_three_capabilities_does_its_work_under_clsact() {
    need!("setpriv");
    let settings = Settings::hook("tc").with_clsact();
    does_its_work(settings, Placement::Vip, "clsact");
}

#[test]
fn a_filter_that_was_taken_out_by_hand_is_put_back_with_three_capabilities() {
    need!("setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let settings = Settings::hook("tc").with_clsact().confined();
    let agent = Agent::start(&lab, settings).unwrap();
    let tc = |arguments: &str| {
        let mut command = lab.host.command("tc");
        let output = run(command.args(arguments.split(' '))).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // The other direction stays: the agent has to know it for its own.
    for direction in ["ingress", "egress"] {
        tc(&format!("filter del dev h0 {direction}"));
        let show = format!("filter show dev h0 {direction}");
        let is_back = eventually(SOON, || tc(&show).contains("shifter_"));
        assert!(is_back, "{direction}: {}", agent.log());
    }
}

#[test]
fn what_others_attached_later_is_named_as_soon_as_prepare_runs_again() {
    need!("setpriv", "bpftool");
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = Agent::start(&lab, Settings::hook("xdp").confined()).unwrap();
    let index = agent.json(&["status"]).unwrap()["interfaces"][0]["index"].to_string();
    let index = index.trim_matches('"');
    agent.signal(libc::SIGSTOP);
    let pin = lab.bpffs().join(format!("shifter/links/{index}-xdp"));
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(pin))
    .unwrap();
    let stranger = Blocker::attach(&lab.host, "h0").unwrap();
    agent.signal(libc::SIGCONT);
    let loud = || agent.json(&["status"]).unwrap()["loud"].to_string();
    let unnamed = eventually(SOON, || loud().contains("not named without CAP_SYS_ADMIN"));
    assert!(unnamed, "{}", loud());

    let mut prepare = lab.host.command(shifter_tests::agent::binary().unwrap());
    run(prepare.args(["prepare", "--config"]).arg(agent.config())).unwrap();
    let named = eventually(SOON, || {
        let loud = loud();
        loud.contains("did not load") && !loud.contains("not named")
    });
    assert!(named, "{}", loud());
    drop(stranger);
    let back = eventually(SOON, || loud() == "[]");
    assert!(back, "{}", loud());
}

#[test]
fn a_container_whose_sockets_may_not_be_looked_at_is_said_once() {
    need!("setpriv");
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut settings = Settings::hook("tc").confined();
    settings.more += "gone_after = 4\n";
    let agent = Agent::start(&lab, settings).unwrap();
    agent.apply(&Service::all_four(&lab)).unwrap();
    let _storm = storm(&lab);
    let line = "sockets in containers may not be looked at";
    let said = eventually(SOON, || agent.log().contains(line));
    assert!(said, "{}", agent.log());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(agent.log().matches(line).count(), 1, "{}", agent.log());
}

#[test]
fn the_service_manager_is_told_of_each_state_and_that_the_agent_lives() {
    need!("setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    // In the host's network namespace: abstract names belong to one.
    let name = format!("{}-notify", lab.name());
    let socket = lab.host.run(|| {
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        UnixDatagram::bind_addr(&address).unwrap()
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut settings = Settings::hook("tc").confined();
    settings.environment = vec![
        ("NOTIFY_SOCKET", format!("@{name}")),
        ("WATCHDOG_USEC", "1000000".into()),
    ];
    let mut agent = Agent::start(&lab, settings).unwrap();
    let next = || {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut before = Vec::new();
    loop {
        match next().as_str() {
            "READY=1" => break,
            status => before.push(status.to_owned()),
        }
    }
    assert!(before.len() >= 2, "{before:?}");
    assert!(
        before.iter().all(|said| said.starts_with("STATUS=")),
        "{before:?}"
    );
    let mut alive = 0;
    let mut serving = false;
    let start = Instant::now();
    while alive < 6 || !serving {
        let said = next();
        alive += usize::from(said == "WATCHDOG=1");
        serving |= said.starts_with("STATUS=serving on h0 (tc)");
        assert!(
            start.elapsed() < SOON,
            "{alive} signs of life, serving: {serving}"
        );
    }
    agent.stop();
    let stopping = std::iter::repeat_with(next).find(|said| said.starts_with("STOPPING=1"));
    assert!(stopping.is_some());
}

#[test]
fn prepare_makes_what_is_there_roots_own_and_refuses_what_it_cannot_mend() {
    need!("setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc").confined()).unwrap();
    agent.stop();
    let state = lab.dir().join("state");
    let file = fs::read_dir(&state)
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    for path in [&state, &file] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    // It runs `shifter prepare` first: without, root could not open these.
    agent.restart().unwrap();
    agent.stop();

    let prepare = |text: &str| {
        let path = lab.dir().join("other.toml");
        fs::write(&path, text).unwrap();
        let mut command = lab.host.command(shifter_tests::agent::binary().unwrap());
        let output = command
            .args(["prepare", "--config"])
            .arg(path)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let no_bpffs = format!(
        "[agent]\ninterfaces = [\"h0\"]\nbpffs = \"{}\"\n",
        state.display()
    );
    let said = prepare(&no_bpffs);
    assert!(
        said.contains("is no BPF file system") && said.contains("mount -t bpf"),
        "{said}"
    );
    let said = prepare("[agent]\ninterfaces = [\"h0\"]\nhok = \"tc\"\n");
    assert!(
        said.contains("other.toml:3") && said.contains("hok"),
        "{said}"
    );
}
