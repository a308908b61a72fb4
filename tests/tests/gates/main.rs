//! Gates that reach out of the agent, with real servers and programs: what they say
//! moves a rollout, and none of them is in the way of a rollback.

mod bed;
mod exec;
mod hook_server;
mod tls;
mod told;

use std::time::{Duration, Instant};

use bed::{
    agent, at_once, await_state, begin, file, green, notes, report, restart_with, service, state,
    why,
};
use hook_server::{HOST, HookServer, Manner};
use shifter_tests::{
    command::eventually,
    evidence::get,
    need,
    prometheus::{self, PROMETHEUS},
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, resetting::Resetting, server},
};

/// What a change of a rollout may take beside other load.
const SOON: Duration = Duration::from_secs(30);

/// The application's count of wrong answers, until Prometheus knows it.
fn errors(lab: &Lab, app: &HookServer, count: u32) {
    let text = format!("app_errors {count}\n");
    app.answer("/metrics", Manner::Says(200, text));
    let known = eventually(SOON, || {
        let answer = get(&lab.host, PROMETHEUS, "/api/v1/query?query=app_errors");
        answer.is_ok_and(|answer| answer.contains(&format!("\"{count}\"]")))
    });
    assert!(known, "Prometheus does not know it");
}

fn asks_prometheus(on_error: &str) -> String {
    format!(
        "[service.rollout]\nstrategy = \"canary\"\nsteps = [\"10%\", \"50%\"]\ninterval = \"4s\"\nbake = \"1h\"\n\
         gates = [{{ judge = \"prometheus\", url = \"http://{PROMETHEUS}\", query = \"app_errors\", max = 5, \
         interval = \"1s\", timeout = \"3s\", on_error = \"{on_error}\" }}]\n"
    )
}

#[test]
fn a_real_prometheus_lets_it_go_on_and_takes_it_back() {
    need!("prometheus");
    let lab = Lab::new(Placement::Container).unwrap();
    let app = HookServer::start(&lab);
    let mut prometheus = prometheus::start(&lab, "app", HOST).unwrap();
    errors(&lab, &app, 0);
    let with = |on_error: &str| file(&service(&lab), None, &asks_prometheus(on_error));
    let mut agent = agent(&lab, with("hold"));
    begin(&agent);
    // It lets the first analysis pass.
    assert!(
        eventually(SOON, || green(&agent) == "50%"),
        "{}",
        why(&agent)
    );
    errors(&lab, &app, 9);
    await_state(&agent, "rolled back", "9 is above max = 5", SOON);
    assert_eq!(green(&agent), "0%");
    let first = report(&agent, SOON);
    assert_eq!(first["outcome"], "rolled back");

    // One that hangs is an error, which holds.
    errors(&lab, &app, 1);
    prometheus.signal(libc::SIGSTOP);
    begin(&agent);
    await_state(&agent, "holding", "no whole answer within 3000 ms", SOON);
    assert_eq!(green(&agent), "10%");
    // While it hangs.
    at_once(&agent, &["rollback", bed::NAME, "--reason", "enough"]);
    assert_eq!(green(&agent), "0%");
    assert_eq!(state(&agent), "rolled back");
    report(&agent, SOON);

    // Back again, it goes on by itself.
    begin(&agent);
    await_state(&agent, "holding", "no whole answer", SOON);
    prometheus.signal(libc::SIGCONT);
    assert!(
        eventually(SOON, || green(&agent) == "50%"),
        "{}",
        why(&agent)
    );
    at_once(&agent, &["rollout", "abort", bed::NAME]);
    report(&agent, SOON);

    // One that is gone, and a description that does not hold then.
    prometheus.kill();
    restart_with(&mut agent, with("rollback"));
    begin(&agent);
    let part = "error: connecting to 127.0.0.1:9090 failed";
    await_state(&agent, "rolled back", part, SOON);
    assert_eq!(green(&agent), "0%");
}

fn webhook(path: &str, kind: &str, more: &str) -> String {
    format!(
        "{{ judge = \"webhook\", name = \"{path}\", url = \"http://{HOST}/{path}\", type = \"{kind}\", \
         interval = \"1s\", timeout = \"3s\"{more} }}"
    )
}

fn canary(steps: &str, gates: &[String]) -> String {
    format!(
        "[service.rollout]\nstrategy = \"canary\"\nsteps = [{steps}]\ninterval = \"4s\"\n\
         gates = [{}]\n",
        gates.join(", ")
    )
}

#[test]
fn a_person_confirms_by_webhook_and_one_that_hangs_holds_and_is_left_at_once() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let hooks = HookServer::start(&lab);
    let gates = [
        webhook("confirm", "confirm-rollout", ""),
        webhook("good", "rollout", ", metadata = { team = \"shop\" }"),
        webhook("last", "confirm-promotion", ""),
    ];
    hooks.says("/confirm", 403);
    hooks.says("/last", 404);
    let agent = agent(&lab, file(&service(&lab), None, &canary("\"50%\"", &gates)));
    begin(&agent);
    await_state(&agent, "holding", "confirm-rollout hook answers 403", SOON);
    assert_eq!(green(&agent), "0%", "before its first weight");
    // Says yes, by its status: what it writes is for people.
    hooks.answer("/confirm", Manner::Says(200, "no, never".into()));
    assert!(
        eventually(SOON, || green(&agent) == "50%"),
        "{}",
        why(&agent)
    );
    await_state(
        &agent,
        "holding",
        "confirm-promotion hook answers 404",
        SOON,
    );
    let asked = hooks.heard("/good");
    let sent = asked.last().expect("it was asked in the analysis");
    assert_eq!(sent["name"], bed::NAME);
    assert_eq!(sent["metadata"]["team"], "shop");
    assert_eq!(sent["shifter"]["weight"], "50%");
    hooks.says("/last", 200);
    await_state(&agent, "promoted", "", SOON);
    report(&agent, SOON);

    hooks.answer("/good", Manner::Hangs);
    begin(&agent);
    await_state(&agent, "holding", "no whole answer within 3000 ms", SOON);
    at_once(&agent, &["rollout", "abort", bed::NAME]);
    assert_eq!(state(&agent), "rolled back");
    assert_eq!(green(&agent), "100%", "green is live");
}

#[test]
fn a_hook_that_lies_keeps_no_bad_version() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let bad = Resetting::start(&lab, Side::Green, Family::V4, 10);
    let hooks = HookServer::start(&lab);
    // It says yes, whatever it knows.
    let lie = "{\"ok\": true, \"errors\": 1000}".to_owned();
    hooks.answer("/liar", Manner::Says(200, lie));
    let gates = [
        webhook("liar", "rollout", ""),
        webhook("all", "event", ""),
        webhook("deaf", "event", ""),
        webhook("end", "post-rollout", ""),
        "{ judge = \"sequential\" }".to_owned(),
    ];
    hooks.answer("/deaf", Manner::Hangs);
    let canary = canary("\"30%\"", &gates).replace("\"4s\"", "\"10m\"");
    let agent = agent(&lab, file(&service(&lab), None, &canary));
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 400).unwrap();
    begin(&agent);
    let begun = Instant::now();
    await_state(
        &agent,
        "rolled back",
        "gate \"sequential\" failed",
        3 * SOON,
    );
    println!("after {:?}, {} resets", begun.elapsed(), bad.count());
    assert_eq!(green(&agent), "0%");
    assert!(!hooks.heard("/liar").is_empty());
    told::of_a_rollback(&agent, &hooks);
    drop(requests);
}
