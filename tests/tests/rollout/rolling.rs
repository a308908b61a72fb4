//! Rolling updates of three real nginx under wrk, by a person and by a hook, with
//! health checks and without.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings, number},
    command::{Process, eventually},
    mover::{Service, to_toml},
    need,
    programs::Programs,
    topology::{Family, Lab, Placement, Side},
};

use super::{NAME, SOON, await_state, begin, report, service};

/// nginx at a port of blue's namespace, one of three.
fn nginx(lab: &Lab, addr: SocketAddr, version: u32) -> Process {
    let dir = lab.dir().join(format!("nginx-{}-{version}", addr.port()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |file: &str| dir.join(file).display().to_string();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {};", path(what)))
        .concat();
    let config = format!(
        "daemon off; master_process off; user root; pid {}; error_log {};
         events {{ worker_connections 2048; }}
         http {{ {temp} access_log off; keepalive_requests 100;
           server {{ listen {addr}; location / {{ return 200 '{version}'; }} }} }}",
        path("pid"),
        path("error"),
    );
    std::fs::write(dir.join("nginx.conf"), config).unwrap();
    let mut command = lab.server_ns(Side::Blue).command("nginx");
    command.arg("-p").arg(&dir).args(["-c", "nginx.conf", "-e"]);
    command.arg(dir.join("error"));
    let mut process = Process::start(command, dir.join("output")).unwrap();
    let up = eventually(Duration::from_secs(10), || {
        let ns = lab.server_ns(Side::Blue);
        process.ended().is_none() && ns.run(|| TcpStream::connect(addr)).is_ok()
    });
    assert!(up, "nginx is not up: {}", process.output());
    process
}

/// Three of them, and the service over them.
fn three(lab: &Lab) -> (Vec<SocketAddr>, Vec<Process>, Service) {
    let first = lab.listen(Side::Blue, Family::V4);
    let addrs: Vec<SocketAddr> = (0..3)
        .map(|i| Lab::at_port(first, first.port() + i))
        .collect();
    let servers = addrs.iter().map(|addr| nginx(lab, *addr, 1)).collect();
    let service = Service {
        blue: addrs.clone(),
        ..service(lab)
    };
    (addrs, servers, service)
}

/// Asks until it is told to end.
fn wrk(lab: &Lab) -> Process {
    let mut command = lab.client.command("wrk");
    command.args(["-t1", "-c12", "-d5m", "--timeout", "5s"]);
    command.arg(format!("http://{}/", lab.vip(Family::V4)));
    Process::start(command, lab.dir().join("wrk")).unwrap()
}

fn assert_no_error(mut wrk: Process, agent: &Agent<'_>) {
    assert!(wrk.ended().is_none(), "{}", wrk.output());
    wrk.signal(libc::SIGINT);
    let status = wrk.wait(SOON).expect("wrk ends");
    let output = wrk.output();
    println!("{output}");
    assert!(
        status.success() && output.contains("requests in"),
        "{output}"
    );
    for bad in ["Socket errors", "Non-2xx", "unable"] {
        assert!(!output.contains(bad), "{output}\n{}", agent.log());
    }
}

fn assert_nothing_left_behind(agent: &Agent<'_>) {
    let report = report(agent);
    assert_eq!(number(&report["left_behind"]), 0, "{report}");
}

#[test]
fn a_rolling_update_of_three_nginx_fails_no_request() {
    need!("nginx", "wrk");
    let lab = Lab::new(Placement::Container).unwrap();
    let (addrs, mut servers, service) = three(&lab);
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service]).unwrap();
    let wrk = wrk(&lab);
    begin(&agent, "rolling --drain-deadline 1m");
    for (addr, server) in addrs.iter().zip(&mut servers) {
        await_state(&agent, "holding", Duration::from_secs(60));
        let shown = agent.done(&["rollout", "status", NAME]).unwrap();
        assert!(
            shown.contains(&format!("{addr} is drained: update it")),
            "{shown}"
        );
        // The update: another process at the same address.
        server.kill();
        *server = nginx(&lab, *addr, 2);
        agent.done(&["rollout", "advance", NAME]).unwrap();
    }
    await_state(&agent, "completed", Duration::from_secs(30));
    assert_no_error(wrk, &agent);
    assert_nothing_left_behind(&agent);
}

/// Tells the one who listens which backend is to be updated, and waits for its word.
fn hook(to: SocketAddr) -> String {
    format!(
        "exec 3<>/dev/tcp/{}/{} || exit 1\n\
         echo \"${{SHIFTER_PHASE#update }}\" >&3\n\
         read -r answer <&3\n\
         [ \"$answer\" = updated ]\n",
        to.ip(),
        to.port()
    )
}

/// What a hook has asked for.
fn next_update(listener: &TcpListener) -> (SocketAddr, TcpStream) {
    let mut came = None;
    let asked = eventually(Duration::from_secs(60), || {
        came = listener.accept().ok();
        came.is_some()
    });
    assert!(asked, "no hook has run");
    let (stream, _) = came.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    (line.trim().parse().unwrap(), stream)
}

/// Health and state of a backend.
fn standing(agent: &Agent<'_>, addr: SocketAddr) -> (String, String) {
    let all = agent.json(&["get", "backends", NAME]).unwrap();
    let all = all["backends"].as_array().unwrap();
    let is_it = |backend: &&serde_json::Value| backend["address"] == addr.to_string();
    let found = all.iter().find(is_it).unwrap();
    let word = |key: &str| found[key].as_str().unwrap().to_owned();
    (word("health"), word("state"))
}

fn becomes(agent: &Agent<'_>, addr: SocketAddr, health: &str) {
    let came = eventually(SOON, || standing(agent, addr).0 == health);
    assert!(came, "{addr} is not {health}: {:?}", standing(agent, addr));
}

#[test]
fn backends_that_a_hook_restarts_come_back_when_their_checks_say_so() {
    need!("nginx", "wrk", "bash");
    let lab = Lab::new(Placement::Container).unwrap();
    let (addrs, mut servers, service) = three(&lab);
    let at = lab.host_addr(Family::V4, 7_900);
    let listener = lab.host.run(|| TcpListener::bind(at)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let programs = Programs::of(&lab).unwrap();
    programs.put("update", &hook(at)).unwrap();
    let mut settings = Settings::hook("tc");
    // A hook comes from the agent's own file.
    settings.more += &format!(
        "{}{}[service.health]\ntype = \"http\"\ninterval = \"200ms\"\ntimeout = \"150ms\"\n\
         rise = 2\nfall = 2\n[service.rollout]\nstrategy = \"rolling\"\nhook = \"update\"\n\
         drain_deadline = \"1m\"\nhealth_deadline = \"1m\"\n",
        programs.toml(),
        to_toml(&[service]),
    );
    let agent = Agent::start(&lab, settings).unwrap();
    for addr in &addrs {
        becomes(&agent, *addr, "up");
    }
    let wrk = wrk(&lab);
    agent.done(&["rollout", "start", NAME]).unwrap();
    for expected in &addrs {
        let (addr, mut stream) = next_update(&listener);
        assert_eq!(addr, *expected);
        let server = &mut servers[addrs.iter().position(|a| *a == addr).unwrap()];
        server.kill();
        becomes(&agent, addr, "down");
        stream.write_all(b"updated\n").unwrap();
        // The hook is done, and the server is not up yet: nobody is sent there.
        std::thread::sleep(Duration::from_millis(1_500));
        assert_eq!(standing(&agent, addr), ("down".into(), "drain".into()));
        *server = nginx(&lab, addr, 2);
        becomes(&agent, addr, "up");
    }
    await_state(&agent, "completed", Duration::from_secs(30));
    assert_no_error(wrk, &agent);
    assert_nothing_left_behind(&agent);
}
