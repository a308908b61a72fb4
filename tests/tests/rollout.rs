//! Rollouts with real servers: promoted, rolled back by a judge, by hand and by the
//! lease; an agent that is killed in the middle of whatever it does.

use std::{
    net::{SocketAddr, TcpStream},
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings, number},
    command::{Process, eventually},
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, resetting::Resetting, server},
};

const NAME: &str = "tcp4";

fn service(lab: &Lab) -> Service {
    Service::of(lab, "tcp", Family::V4)
}

/// The only words of a rollout that a script reads.
fn state(agent: &Agent<'_>) -> String {
    let rollout = agent.json(&["rollout", "status", NAME]).unwrap();
    rollout["state"].as_str().unwrap_or_default().to_owned()
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn await_state(agent: &Agent<'_>, wanted: &str, limit: Duration) {
    let came = eventually(limit, || state(agent) == wanted);
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(came, "it is not {wanted}:\n{shown}");
}

fn report(agent: &Agent<'_>) -> Value {
    let ready = eventually(Duration::from_secs(20), || {
        agent.json(&["rollout", "status", NAME]).unwrap()["has_report"] == true
    });
    assert!(ready, "no report");
    agent.json(&["rollout", "report", NAME]).unwrap()
}

/// Writes of the rollout on the weight, by the ids of their effects, oldest first.
fn effects(agent: &Agent<'_>) -> Vec<(String, String)> {
    let audit = agent.json(&["get", "audit", NAME]).unwrap();
    let records = audit["records"].as_array().unwrap();
    let of_rollout = records
        .iter()
        .rev()
        .filter(|record| record["actor"] == "rollout");
    of_rollout
        .map(|record| {
            let part = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            (part("request_id"), part("after"))
        })
        .collect()
}

fn assert_made_once(agent: &Agent<'_>) {
    let effects = effects(agent);
    let mut ids: Vec<&String> = effects.iter().map(|(id, _)| id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), effects.len(), "{effects:?}");
}

#[test]
fn a_canary_is_promoted_and_people_are_kept_from_its_weight() {
    if !need::ready(
        "a_canary_is_promoted_and_people_are_kept_from_its_weight",
        &[],
    ) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "canary",
            "--steps",
            "10%,50%",
            "--interval",
            "4s",
            "--reason",
            "release 7",
        ])
        .unwrap();
    let begun = agent.service(NAME).unwrap();
    assert_eq!(
        begun["spec"]["green"], "10%",
        "the first step is in force at once"
    );
    assert!(
        begun["dead_man"].is_object(),
        "the lease guards it: {begun}"
    );
    for words in [
        &["shift", NAME, "--green", "50%"][..],
        &["confirm", NAME],
        &["promote", NAME],
        &["delete", NAME],
        &["drain", "tcp4/green"],
        &["rollout", "start", NAME, "--strategy", "blue-green"],
    ] {
        let refused = agent.cli(words).unwrap();
        assert_eq!(
            refused.status.code(),
            Some(1),
            "{words:?}: {}",
            text(&refused)
        );
        assert!(
            text(&refused).contains("runs (running): abort it with"),
            "{}",
            text(&refused)
        );
    }
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched));
    for part in [
        "green has 10% of new flows",
        "green has 50%",
        "over",
        "promoted",
    ] {
        assert!(text(&watched).contains(part), "{part}: {}", text(&watched));
    }
    let after = agent.service(NAME).unwrap();
    assert_eq!(after["spec"]["live"], "green");
    assert!(after["dead_man"].is_null(), "{after}");
    let report = report(&agent);
    assert_eq!(
        (
            report["outcome"].as_str(),
            number(&report["reset_by_shifter"])
        ),
        (Some("promoted"), 0)
    );
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    assert!(tally.by_identity.len() == 2, "{tally:?}");
    assert_made_once(&agent);
}

#[test]
fn a_freeze_holds_everything_but_a_rollback() {
    if !need::ready("a_freeze_holds_everything_but_a_rollback", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "canary",
            "--steps",
            "10%,50%",
            "--interval",
            "2s",
        ])
        .unwrap();
    agent.done(&["freeze", NAME, "--reason", "audit"]).unwrap();
    await_state(&agent, "holding", Duration::from_secs(20));
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("is frozen by"), "{shown}");
    agent.kill();
    agent.restart().unwrap();
    for words in [
        &["shift", NAME, "--green", "50%"][..],
        &["rollout", "advance", NAME],
        &["undrain", NAME],
    ] {
        let code = agent.cli(words).unwrap().status.code();
        assert!(code == Some(7) || code == Some(1), "{words:?}");
    }
    // By hand: it ends the rollout, whatever is frozen.
    agent
        .done(&["rollback", NAME, "--reason", "enough"])
        .unwrap();
    assert_eq!(state(&agent), "rolled back");
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("rolled the service back: enough"), "{shown}");
    let refused = agent.cli(&["shift", NAME, "--green", "50%"]).unwrap();
    assert_eq!(refused.status.code(), Some(7), "{}", text(&refused));
    agent.done(&["unfreeze", NAME]).unwrap();
    agent.done(&["shift", NAME, "--green", "50%"]).unwrap();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    assert_eq!(watched.status.code(), Some(5), "{}", text(&watched));
}

#[test]
fn a_killed_agent_goes_on_where_the_rollout_was() {
    if !need::ready("a_killed_agent_goes_on_where_the_rollout_was", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 50).unwrap();
    let all = [
        "rollout_begun",
        "rollout_intent:1",
        "rollout_effect:2",
        "rollout_stored:4",
        "rollout_intent:3",
        "rollout_effect:1",
        "rollout_stored:1",
        "rollout_stored:2",
        "rollout_stored:6",
    ];
    for point in &all[..need::scaled(4, all.len())] {
        kill_in_a_canary(&mut agent, point);
    }
    kill_in_a_rollback(&mut agent);
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}

/// The agent dies at a point of its own code; the next one brings it to its end.
fn kill_in_a_canary(agent: &mut Agent<'_>, point: &str) {
    agent.stop();
    agent.restart_with("SHIFTER_KILL_AT", point).unwrap();
    let live = agent.service(NAME).unwrap()["spec"]["live"].clone();
    // Its answer may be cut off.
    let _ = agent.cli(&[
        "rollout",
        "start",
        NAME,
        "--strategy",
        "canary",
        "--steps",
        "10%,50%",
        "--interval",
        "2s",
        "--lease",
        "1m",
    ]);
    let killed = agent.wait_for_signal(Duration::from_secs(30));
    assert_eq!(killed, Some(libc::SIGKILL), "at {point}");
    agent.restart().unwrap();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    assert_eq!(
        watched.status.code(),
        Some(0),
        "killed at {point}: {}",
        text(&watched)
    );
    assert_ne!(
        agent.service(NAME).unwrap()["spec"]["live"],
        live,
        "killed at {point}"
    );
    assert_made_once(agent);
}

fn kill_in_a_rollback(agent: &mut Agent<'_>) {
    agent.stop();
    // The first effect is the weight, the second the rollback.
    agent
        .restart_with("SHIFTER_KILL_AT", "rollout_effect:2")
        .unwrap();
    let words = [
        "rollout",
        "start",
        NAME,
        "--strategy",
        "blue-green",
        "--bake",
        "10m",
    ];
    agent.done(&words).unwrap();
    let live = agent.service(NAME).unwrap()["spec"]["live"].clone();
    let _ = agent.cli(&["rollout", "abort", NAME, "--reason", "no"]);
    let killed = agent.wait_for_signal(Duration::from_secs(30));
    assert_eq!(killed, Some(libc::SIGKILL));
    agent.restart().unwrap();
    await_state(agent, "rolled back", Duration::from_secs(20));
    let service = agent.service(NAME).unwrap();
    assert_eq!(service["spec"]["live"], live);
    assert!(service["dead_man"].is_null(), "{service}");
    assert_made_once(agent);
}

#[test]
fn with_the_agent_dead_for_good_the_lease_takes_the_weight_back() {
    if !need::ready(
        "with_the_agent_dead_for_good_the_lease_takes_the_weight_back",
        &[],
    ) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "blue-green",
            "--bake",
            "10m",
            "--lease",
            "6s",
        ])
        .unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    // Longer than the lease: it is renewed.
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(state(&agent), "running");
    let before = requests.tally();
    assert!(
        before.by_identity.contains_key(&Side::Green.identity()),
        "{before:?}"
    );
    agent.kill();
    let came_back = eventually(Duration::from_secs(20), || {
        let now = requests.tally();
        std::thread::sleep(Duration::from_secs(1));
        let since = requests.since(&now);
        let count = |side: Side| since.get(&side.identity()).copied().unwrap_or(0);
        count(Side::Green) == 0 && count(Side::Blue) > 0
    });
    assert!(came_back, "{:?}", requests.tally());
    agent.restart().unwrap();
    await_state(&agent, "rolled back", Duration::from_secs(20));
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("dead-man"), "{shown}");
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}

#[test]
fn a_handover_continues_a_rollout() {
    if !need::ready("a_handover_continues_a_rollout", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "canary",
            "--steps",
            "10%,50%",
            "--interval",
            "4s",
        ])
        .unwrap();
    let mut watch = agent.cli_command(&["rollout", "watch", NAME]).unwrap();
    let watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    agent.replace().unwrap();
    let watched = watch.wait_with_output().unwrap();
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched));
    assert_eq!(
        text(&watched).matches("green has 10%").count(),
        1,
        "{}",
        text(&watched)
    );
    assert_made_once(&agent);
}

#[test]
fn a_green_that_resets_one_connection_in_fifty_is_rolled_back_by_the_judge() {
    let name = "a_green_that_resets_one_connection_in_fifty_is_rolled_back_by_the_judge";
    if !need::ready(name, &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let green = Resetting::start(&lab, Side::Green, 50);
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 1_000).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "canary",
            "--steps",
            "10%,50%",
            "--interval",
            "10m",
            "--gates",
            r#"[{"judge":"sequential"}]"#,
        ])
        .unwrap();
    let begun = Instant::now();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    let took = begun.elapsed();
    assert_eq!(watched.status.code(), Some(5), "{}", text(&watched));
    assert!(
        text(&watched).contains("gate \"sequential\" failed"),
        "{}",
        text(&watched)
    );
    let report = report(&agent);
    println!(
        "detected after {took:?}: {}\nrollback: {}\nserver resets: {}",
        report["detection"],
        report["rollback"],
        green.count()
    );
    let times = &report["rollback"];
    assert!(number(&times["programmed_ns"]) < 50_000_000, "{times}");
    assert_eq!(number(&times["candidate_flows_after"]), 0, "{times}");
    assert!(number(&report["pools"][1]["failures"]) > 0, "{report}");
    assert_eq!(number(&report["pools"][0]["failures"]), 0, "{report}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
    drop(requests);
}

#[test]
fn without_traffic_it_holds_and_goes_on_when_data_comes() {
    if !need::ready("without_traffic_it_holds_and_goes_on_when_data_comes", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "canary",
            "--steps",
            "50%",
            "--interval",
            "3s",
            "--gates",
            r#"[{"judge":"sequential","min_samples":100}]"#,
        ])
        .unwrap();
    await_state(&agent, "holding", Duration::from_secs(20));
    let shown = agent.done(&["rollout", "status", NAME]).unwrap();
    assert!(shown.contains("no data"), "{shown}");
    let _requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 300).unwrap();
    await_state(&agent, "promoted", Duration::from_secs(40));
}

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

fn wrk(lab: &Lab, seconds: u64) -> Process {
    let mut command = lab.client.command("wrk");
    command.args(["-t1", "-c12", &format!("-d{seconds}s"), "--timeout", "5s"]);
    command.arg(format!("http://{}/", lab.vip(Family::V4)));
    Process::start(command, lab.dir().join("wrk")).unwrap()
}

fn assert_no_error(mut wrk: Process, agent: &Agent<'_>) {
    let status = wrk.wait(Duration::from_secs(60)).expect("wrk ends");
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

#[test]
fn a_rolling_update_of_three_nginx_fails_no_request() {
    if !need::ready(
        "a_rolling_update_of_three_nginx_fails_no_request",
        &["nginx", "wrk"],
    ) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let first = lab.listen(Side::Blue, Family::V4);
    let addrs: Vec<SocketAddr> = (0..3)
        .map(|i| Lab::at_port(first, first.port() + i))
        .collect();
    let mut servers: Vec<Process> = addrs.iter().map(|addr| nginx(&lab, *addr, 1)).collect();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service {
        blue: addrs.clone(),
        ..service(&lab)
    };
    agent.apply(&[service]).unwrap();
    let wrk = wrk(&lab, 30);
    agent
        .done(&[
            "rollout",
            "start",
            NAME,
            "--strategy",
            "rolling",
            "--drain-deadline",
            "1m",
        ])
        .unwrap();
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
    let report = report(&agent);
    assert_eq!(number(&report["left_behind"]), 0, "{report}");
}

#[test]
fn blue_green_there_and_back_under_load_fails_no_request() {
    if !need::ready("blue_green_there_and_back_under_load_fails_no_request", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 400).unwrap();
    let words = [
        "rollout",
        "start",
        NAME,
        "--strategy",
        "blue-green",
        "--bake",
        "3s",
    ];
    // There, and back as a rollout of its own.
    for live in ["green", "blue"] {
        agent.done(&words).unwrap();
        await_state(&agent, "promoted", Duration::from_secs(30));
        assert_eq!(agent.service(NAME).unwrap()["spec"]["live"], live);
        report(&agent);
        let gone = eventually(Duration::from_secs(10), || {
            let text = text(
                &agent
                    .cli(&[
                        "rollout",
                        "start",
                        NAME,
                        "--strategy",
                        "blue-green",
                        "--dry-run",
                    ])
                    .unwrap(),
            );
            !text.contains("still being measured")
        });
        assert!(gone);
    }
    // There, and back at once by hand.
    let words = [
        "rollout",
        "start",
        NAME,
        "--strategy",
        "blue-green",
        "--bake",
        "10m",
    ];
    agent.done(&words).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    agent.done(&["rollout", "abort", NAME]).unwrap();
    assert_eq!(state(&agent), "rolled back");
    let report = report(&agent);
    println!("rollback: {}", report["rollback"]);
    assert_eq!(
        number(&report["rollback"]["candidate_flows_after"]),
        0,
        "{report}"
    );
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}

#[test]
fn a_description_in_the_file_is_checked_and_used() {
    if !need::ready("a_description_in_the_file_is_checked_and_used", &[]) {
        return;
    }
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let with = |rollout: &str| {
        let text = format!(
            "{}[service.rollout]\n{rollout}\n",
            to_toml(&[service(&lab)])
        );
        let path = agent.services_file(&text).unwrap();
        agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap()
    };
    for (rollout, part) in [
        (
            "strategy = \"canary\"\nstep = [\"5%\"]",
            "services.toml:15:1: a rollout has no key \"step\": did you mean \"steps\"?",
        ),
        (
            "strategy = \"canary\"\ninterval = \"0s\"",
            "services.toml:15:12: interval = 0ms is out of range: write 1s to 30d",
        ),
        (
            "strategy = \"canary\"\nsteps = [\"hook x\"]",
            "cannot come over the API",
        ),
        (
            "strategy = \"canary\"\ngates = [{ judge = \"exec\", file = \"x\" }]",
            "cannot come over the API",
        ),
    ] {
        let refused = with(rollout);
        assert_eq!(refused.status.code(), Some(1), "{rollout}");
        assert!(text(&refused).contains(part), "{part}: {}", text(&refused));
    }
    let without = agent
        .cli(&[
            "apply",
            "-f",
            agent
                .services_file(&to_toml(&[service(&lab)]))
                .unwrap()
                .to_str()
                .unwrap(),
        ])
        .unwrap();
    assert!(without.status.success(), "{}", text(&without));
    let refused = agent.cli(&["rollout", "start", NAME]).unwrap();
    assert!(
        text(&refused).contains("has no [service.rollout]"),
        "{}",
        text(&refused)
    );
    let taken = with("strategy = \"canary\"\nsteps = [\"5%\", \"pause\"]\ninterval = \"1s\"");
    assert!(taken.status.success(), "{}", text(&taken));
    let planned = agent
        .done(&["rollout", "start", NAME, "--dry-run"])
        .unwrap();
    assert!(planned.contains("pause until told to advance"), "{planned}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
    agent.done(&["rollout", "start", NAME]).unwrap();
    await_state(&agent, "holding", Duration::from_secs(20));
    agent.done(&["rollout", "promote", NAME]).unwrap();
    await_state(&agent, "promoted", Duration::from_secs(20));
}
