//! Programs of `exec_dir`: as a gate, as a hook that fails first, as a check of health.

use shifter_tests::{
    agent::Agent,
    command::eventually,
    mover::Service,
    need,
    programs::Programs,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::{Requests, ask},
        server,
    },
};

use crate::{
    SOON,
    bed::{
        NAME, agent, at_once, await_state, begin, file, green, notes, report, service, state, text,
    },
};

#[test]
fn a_program_judges_by_each_of_its_exit_codes() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let programs = Programs::of(&lab).unwrap();
    programs
        .put(
            "judge.sh",
            "[ \"$(id -u)\" != 0 ] || exit 9\n\
         code=$(cat $DIR/code)\n\
         echo \"$SHIFTER_SERVICE $SHIFTER_WEIGHT $SHIFTER_CANDIDATE says $code\"\n\
         [ $code = kill ] && kill -9 $$\n\
         [ $code = hang ] && exec sleep 60\n\
         exit $code",
        )
        .unwrap();
    let rollout = "[service.rollout]\nstrategy = \"canary\"\nsteps = [\"10%\"]\ninterval = \"2s\"\n\
        gates = [{ judge = \"exec\", file = \"judge.sh\", interval = \"1s\", timeout = \"2s\" }]\n";
    programs.write("code", "2").unwrap();
    let agent = agent(&lab, file(&service(&lab), Some(&programs), rollout));
    begin(&agent);
    for (code, part) in [
        (
            "2",
            "inconclusive: judge.sh ends with 2: \"tcp4 10% green says 2\"",
        ),
        ("3", "no data: judge.sh ends with 3"),
        ("7", "error: judge.sh ends with 7"),
        ("kill", "error: judge.sh was ended by signal 9"),
        (
            "hang",
            "error: judge.sh took longer than 2000 ms and was ended",
        ),
    ] {
        programs.write("code", code).unwrap();
        await_state(&agent, "holding", part, SOON);
        assert_eq!(green(&agent), "10%", "{code}");
    }
    programs.write("code", "0").unwrap();
    await_state(&agent, "promoted", "", SOON);
    report(&agent, SOON);
    programs.write("code", "1").unwrap();
    begin(&agent);
    await_state(
        &agent,
        "rolled back",
        "gate \"exec\" failed: judge.sh ends with 1",
        SOON,
    );
    assert_eq!(green(&agent), "100%", "green is live");
    // One that hangs is left at once.
    report(&agent, SOON);
    programs.write("code", "hang").unwrap();
    begin(&agent);
    await_state(&agent, "holding", "took longer", SOON);
    at_once(&agent, &["rollout", "abort", NAME]);
    assert_eq!(state(&agent), "rolled back");
}

/// Two servers of blue, at ports side by side.
fn two_of_blue(lab: &Lab) -> (Service, [shifter_tests::command::Process; 2]) {
    let first = lab.listen(Side::Blue, Family::V4);
    let second = Lab::at_port(first, first.port() + 1);
    let ns = lab.server_ns(Side::Blue);
    let start = |addr, identity| server::start_at(lab, ns, &[addr], identity).unwrap();
    let service = Service {
        blue: vec![first, second],
        ..service(lab)
    };
    (service, [start(first, FIRST), start(second, SECOND)])
}

const FIRST: u8 = 41;
const SECOND: u8 = 42;

#[test]
fn a_hook_that_failed_is_run_again_when_told_to_also_by_the_next_agent() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let programs = Programs::of(&lab).unwrap();
    programs
        .put(
            "update.sh",
            "[ -e $DIR/ready ] || { echo \"$SHIFTER_PHASE: no disk\"; exit 1; }",
        )
        .unwrap();
    let (service, _servers) = two_of_blue(&lab);
    let rollout = "[service.rollout]\nstrategy = \"rolling\"\nhook = \"update.sh\"\ndrain_deadline = \"5s\"\n";
    let mut agent = agent(&lab, file(&service, Some(&programs), rollout));
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 2, 100).unwrap();
    begin(&agent);
    let part = format!("update {}: no disk", service.blue[0]);
    await_state(&agent, "holding", &part, SOON);
    await_state(
        &agent,
        "holding",
        "`shifter rollout retry` runs it again",
        SOON,
    );
    agent.kill();
    agent.restart().unwrap();
    await_state(&agent, "holding", &part, SOON);
    // It fails once more, and holds once more.
    agent.done(&["rollout", "retry", NAME]).unwrap();
    await_state(&agent, "holding", &part, SOON);
    programs.write("ready", "").unwrap();
    agent
        .done(&["rollout", "retry", NAME, "--reason", "there is a disk"])
        .unwrap();
    await_state(&agent, "completed", "", 2 * SOON);
    let refused = agent.cli(&["rollout", "retry", NAME]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    let report = report(&agent, SOON);
    let again = format!("hook \"update.sh\" is run again for {}", service.blue[0]);
    assert_eq!(notes(&report, "retried"), [again.as_str(), again.as_str()]);
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
}

/// Who answers new connections.
fn answering(lab: &Lab) -> Vec<u8> {
    let vip = lab.vip(Family::V4);
    let mut all: Vec<u8> = lab
        .client
        .run(|| (0..30).map(|_| ask(vip, None).unwrap()).collect());
    all.sort_unstable();
    all.dedup();
    all
}

/// `(health, why)` of a backend.
fn health(agent: &Agent<'_>, addr: &str) -> (String, String) {
    let all = agent.json(&["get", "backends", NAME]).unwrap();
    let all = all["backends"].as_array().unwrap();
    let of = all.iter().find(|b| b["address"] == addr).unwrap();
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (word(&of["health"]), word(&of["checks"]["reason"]))
}

fn becomes(agent: &Agent<'_>, addr: &str, wanted: &str, part: &str) {
    let came = eventually(SOON, || {
        let (word, why) = health(agent, addr);
        word == wanted && why.contains(part)
    });
    assert!(came, "{:?}\n{}", health(agent, addr), agent.log());
}

#[test]
fn a_program_takes_a_backend_out_and_back_in() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let programs = Programs::of(&lab).unwrap();
    programs
        .put(
            "well.sh",
            "[ \"$(id -u)\" != 0 ] || exit 9\n\
         [ -e $DIR/hang-$SHIFTER_BACKEND_PORT ] && exec sleep 60\n\
         exec 3<>/dev/tcp/$SHIFTER_BACKEND_ADDRESS/$SHIFTER_BACKEND_PORT || exit 4\n\
         echo \"looking after $SHIFTER_BACKEND\"\n\
         [ -e $DIR/sick-$SHIFTER_BACKEND_PORT ] || exit 0\n\
         echo \"$SHIFTER_SERVICE/$SHIFTER_POOL is sick\"\n\
         exit 3",
        )
        .unwrap();
    let (service, mut servers) = two_of_blue(&lab);
    let _green = server::start(&lab, Side::Green).unwrap();
    let health = "[service.health]\ntype = \"exec\"\nfile = \"well.sh\"\ninterval = \"1s\"\n\
        timeout = \"900ms\"\nrise = 2\nfall = 2\n";
    let agent = agent(&lab, file(&service, Some(&programs), health));
    let [first, second] = [0, 1].map(|at| service.blue[at].to_string());
    let green = service.green[0].to_string();
    for addr in [&first, &second, &green] {
        becomes(&agent, addr, "up", "");
    }
    assert_eq!(answering(&lab), [FIRST, SECOND]);
    let port = service.blue[0].port();
    let out = |why: &str| {
        becomes(&agent, &first, "down", why);
        assert!(eventually(SOON, || answering(&lab) == [SECOND]), "{why}");
    };
    programs.write(&format!("sick-{port}"), "").unwrap();
    out("well.sh ends with 3: \"tcp4/blue is sick\"");
    programs.remove(&format!("sick-{port}")).unwrap();
    becomes(&agent, &first, "up", "");
    assert!(eventually(SOON, || answering(&lab) == [FIRST, SECOND]));
    programs.write(&format!("hang-{port}"), "").unwrap();
    out("well.sh has not ended within 900ms");
    programs.remove(&format!("hang-{port}")).unwrap();
    becomes(&agent, &first, "up", "");
    servers[0].kill();
    out("well.sh ends with 4");
    // The other is left alone, and nobody brings such a check in over the API.
    assert_eq!(self::health(&agent, &second).0, "up");
    let other = file(&service, None, &health.replace("well.sh", "other.sh"));
    let other = &other[other.find("[[service]]").unwrap()..];
    let path = agent.services_file(other).unwrap();
    let refused = agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused).contains("cannot come over the API"),
        "{}",
        text(&refused)
    );
    let shown = agent.done(&["get", "backends", NAME]).unwrap();
    println!("{shown}");
}
