//! What people read.

use super::{TWO_SERVICES, ask, assert_prints, file};
use crate::{
    control::testbed::Testbed,
    reconcile::controller::{Event, Standing},
};

#[test]
fn get_services_shows_the_four_numbers() {
    let testbed = Testbed::with_web();
    testbed.agent.edit("web", |view| {
        view.warnings
            .push("2 fragments passed untouched".to_owned());
    });
    assert_prints(
        &testbed,
        "get services",
        0,
        "
        NAME  VIP                   LIVE  CONFIGURED  PROGRAMMED  OBSERVED                         CARRIED                          GEN  DEAD-MAN
        web   203.0.113.10:443/tcp  blue          5%          5%  5.1% (3.9–6.6%) of 1,000 in 60s  97 blue (2 idle > 2h) / 3 green    1  -
        warning: web: 2 fragments passed untouched
        ",
    );
}

#[test]
fn a_host_without_services_says_how_to_make_some() {
    let testbed = Testbed::new();
    assert_prints(
        &testbed,
        "get services",
        0,
        "no services: `shifter apply -f FILE` makes some",
    );
    assert_prints(
        &testbed,
        "get backends",
        0,
        "no backends: `shifter apply -f FILE` makes some",
    );
}

#[test]
fn get_backends_names_those_that_answer_nothing() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "get backends web",
        0,
        "
        SERVICE  POOL   BACKEND         WEIGHT  STATE  HEALTH   PLACED  FLOWS  NEW              SENT         ANSWERED
        web      blue   10.0.0.11:8443       1  ready  unknown  host       97  500  12,345 (1.2 MiB)  23,456 (33 MiB)
        web      green  10.0.1.11:8443       1  ready  unknown  host        3  500  12,345 (1.2 MiB)          0 (0 B)
        warning: web: 10.0.1.11:8443 was sent flows and answered none through this host: its route to the clients must lead here
        ",
    );
}

#[test]
fn get_backends_says_since_when_one_is_down_and_why() {
    let testbed = Testbed::with_web();
    testbed.agent.edit("web", |view| {
        let [blue, green] = &mut view.backends[..] else {
            panic!("two backends")
        };
        (blue.health, green.health) = ("up", "down");
        blue.checks = Some(Standing {
            reason: "no answer within 1s".into(),
            ..Standing::default()
        });
        green.checks = Some(Standing {
            reason: "connection refused".into(),
            since_unix_ms: 1_800_000_061_250,
            ..Standing::default()
        });
        green.warnings.clear();
    });
    assert_prints(
        &testbed,
        "get backends web",
        0,
        "
        SERVICE  POOL   BACKEND         WEIGHT  STATE  HEALTH  PLACED  FLOWS  NEW              SENT         ANSWERED
        web      blue   10.0.0.11:8443       1  ready  up      host       97  500  12,345 (1.2 MiB)  23,456 (33 MiB)
        web      green  10.0.1.11:8443       1  ready  down    host        3  500  12,345 (1.2 MiB)          0 (0 B)
        check: web: the last one of 10.0.0.11:8443 failed: no answer within 1s
        down: web: 10.0.1.11:8443 since 2027-01-15 08:01:01Z: connection refused
        ",
    );
}

#[test]
fn get_signals_tells_how_pools_do() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "get signals web",
        0,
        "
        SERVICE  POOL   ATTEMPTS  FAILED  REFUSED  UNANSWERED  RESET  HANDSHAKE P50      P99  FIRST BYTE P50  P99  SENT AGAIN
        web      blue        949       2        2           0      0         311 µs   327 µs               –    –          64
        web      green        51       2        2           0      0        3.01 ms  3.14 ms               –    –          64
        ",
    );
}

#[test]
fn get_audit_shows_who_changed_what_newest_first_and_how_to_page_on() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "get audit",
        0,
        "
        NO  TIME                  BY              SERVICE  ACTION  GEN  BEFORE               AFTER                              REASON  REQUEST
        2   2027-01-15 08:01:01Z  uid 0 pid 4242  web      shift     2  blue live, green 0%  blue live, green 5%                canary  r-7
        1   2027-01-15 08:00:00Z  uid 0 pid 4242  web      apply     1  -                    create: vip: 203.0.113.10:443/tcp  -       -
        ",
    );
    let ran = ask(&testbed, "get audit web --limit 1");
    assert!(ran.out.contains("older ones: --before 2"), "{}", ran.out);
    let ran = ask(&testbed, "get audit web --before 2");
    assert!(ran.out.contains("create:") && !ran.out.contains("canary"));
    assert_prints(&testbed, "get audit none", 0, "nothing was changed yet");
}

#[test]
fn get_flows_shows_rows_and_says_when_there_are_more() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "get flows web --limit 1",
        0,
        "
        SERVICE  CLIENT           PROTO  POOL  BACKEND         STATE        PINNED  GEN    AGE  IDLE    BYTES
        web      192.0.2.7:40001  tcp    blue  10.0.0.11:8443  established  proven    1  1h02m  0.2s  1.0 MiB
        1 of 2 flows: --limit lists more
        1 closing flow hidden: --all shows them
        ",
    );
    assert_prints(
        &testbed,
        "get flows web --limit 1 --all",
        0,
        "
        SERVICE  CLIENT           PROTO  POOL  BACKEND         STATE        PINNED  GEN    AGE  IDLE    BYTES
        web      192.0.2.7:40001  tcp    blue  10.0.0.11:8443  established  proven    1  1h02m  0.2s  1.0 MiB
        1 of 3 flows: --limit lists more
        ",
    );
    assert_prints(&testbed, "get flows --client 198.51.100.1", 0, "no flows");
}

#[test]
fn shift_prints_its_receipt_and_the_four_numbers() {
    let testbed = Testbed::with_web();
    testbed.agent.let_first_flow_come(2);
    assert_prints(
        &testbed,
        "shift web --candidate 10% --revert-after 10m --wait-first-flow 5s",
        0,
        "
        web: 10% of new flows go to green, generation 2
          moved       5% of the hash space
          configured  10%
          programmed  10% in 214 µs, answered in 480 µs
          first flow  after 1.2 ms
          observed    5.1% (3.9–6.6%) of 1,000 in 60s
          carried     97 blue (2 idle > 2h) / 3 green
          dead-man    5% in 10m00s unless `shifter confirm web` keeps the weight
        ",
    );
    let ran = ask(&testbed, "confirm web");
    assert!(!ran.out.contains("dead-man"), "{}", ran.out);
    let ran = ask(&testbed, "rollback web --reason errors");
    assert!(
        ran.out
            .starts_with("web: 0% of new flows go to green, generation 4\n"),
        "{}",
        ran.out
    );
    assert_eq!(testbed.agent.last_context().reason, "errors");
    let ran = ask(&testbed, "promote web");
    assert!(
        ran.out.starts_with("web: 100% of new flows go to green"),
        "{}",
        ran.out
    );
    assert_prints(
        &testbed,
        "delete web --force --dry-run",
        0,
        "web: would be deleted",
    );
    assert_prints(
        &testbed,
        "delete web --force",
        0,
        "web: deleted, generation 7, in 480 µs",
    );
}

#[test]
fn plan_and_apply_show_what_changes_and_a_plan_with_changes_exits_with_2() {
    let testbed = Testbed::with_web();
    let path = file(&testbed, "services.toml", TWO_SERVICES);
    let path = path.display();
    let changes = "
        + dns create
            vip: [2001:db8::1]:53/udp
            green: 0%
        ~ web update: 5% of the hash space moves, 100 flows stay where they are
            green: 5% -> 10%
        ";
    let plan = format!("{changes}1 to create, 1 to update, 0 unchanged");
    assert_prints(&testbed, &format!("plan -f {path}"), 2, &plan);
    assert_prints(&testbed, &format!("apply -f {path} --dry-run"), 2, &plan);
    let applied = format!(
        "{changes}2 services in force, 2 changed, generation 3, programmed in 214 µs, answered in 480 µs"
    );
    assert_prints(&testbed, &format!("apply -f {path}"), 0, &applied);
    let unchanged = "= dns unchanged\n= web unchanged\n";
    assert_prints(
        &testbed,
        &format!("plan -f {path}"),
        0,
        &format!("{unchanged}0 to create, 0 to update, 2 unchanged"),
    );
    assert_prints(
        &testbed,
        &format!("apply -f {path}"),
        0,
        &format!("{unchanged}2 services in force, none changed"),
    );
    assert_prints(
        &testbed,
        "plan web --green 60%",
        2,
        "
        ~ web update: 50% of the hash space moves, 100 flows stay where they are
            green: 10% -> 60%
            warning: more than half of the new flows leave the live pool
        0 to create, 1 to update, 0 unchanged
        ",
    );
}

#[test]
fn what_the_file_says_reaches_the_agent_whole() {
    let testbed = Testbed::new();
    let path = file(&testbed, "services.toml", TWO_SERVICES);
    assert_eq!(
        ask(&testbed, &format!("apply -f {}", path.display())).code,
        0
    );
    let spec = {
        use crate::reconcile::Controller as _;
        testbed.agent.get("web").unwrap().spec
    };
    assert_eq!(spec.affinity, crate::model::Affinity::Client(Some(24)));
    assert_eq!(spec.blue_pool[1].weight, 2);
    assert_eq!(spec.blue_pool[1].state, crate::model::BackendState::Drain);
    assert_eq!(spec.green.to_string(), "10%");
}

#[test]
fn explain_says_pool_backend_and_why() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "explain web 192.0.2.7:40002",
        0,
        "
        192.0.2.7:40002 -> web: green, 10.0.1.11:8443, pinned
          1. 192.0.2.7 hashes to 0.031, below green's 0.05
        ",
    );
    let ran = ask(&testbed, "explain web 192.0.2.7");
    assert!(
        ran.out
            .starts_with("192.0.2.7 (any port) -> web: green, 10.0.1.11:8443, not pinned yet"),
        "{}",
        ran.out
    );
}

#[test]
fn status_shows_hooks_limits_table_and_what_is_loud() {
    let testbed = Testbed::with_web();
    let ran = ask(&testbed, "status --verdicts");
    for line in [
        "flow table  100 of 1,048,576 flows (90 proven, 6 unproven, 4 closing), 7 gave way, 128 MiB",
        "eth0       tc    tcx     up    t1   ingress 41 0f01020304050607, egress NONE  auto: veth",
        "services     1  8,192  3.0 MiB",
        "tc    table_full             15",
        "dropped     18 packets so far (15 table_full at tc, 1 no_backend at tc, 2 rewrite_failed at tc)",
        "loud: 9 packets dropped at tc in the last minute: table_full (15 so far)",
        "loud: 16 Mi hugepages are missing",
        "loud: web: 10.0.1.11:8443 was sent flows",
    ] {
        assert!(ran.out.contains(line), "{line:?} is not in\n{}", ran.out);
    }
    let dropped = ran.out.lines().filter(|line| line.contains("dropped at"));
    assert_eq!(dropped.count(), 1, "what is over is not loud:\n{}", ran.out);
}

#[test]
fn manual_and_completions_name_every_verb() {
    let testbed = Testbed::new();
    let dir = testbed.directory.0.join("man");
    let ran = super::run(&["man", "--dir", dir.to_str().unwrap()]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    for verb in [
        "shifter",
        "shifter-shift",
        "shifter-rollback",
        "shifter-get-services",
    ] {
        let page = std::fs::read_to_string(dir.join(format!("{verb}.1"))).unwrap();
        assert!(page.contains(".SH NAME"), "{verb}");
    }
    let ran = super::run(&["man"]);
    assert!(ran.out.contains(".TH shifter 1"), "{}", ran.out);
    for shell in ["bash", "zsh", "fish"] {
        let ran = super::run(&["completion", shell]);
        assert!(ran.out.contains("rollback"), "{shell}");
    }
}

#[test]
fn command_line_is_consistent() {
    crate::cli::command().debug_assert();
}

fn happen(testbed: &Testbed) {
    let event = |kind: &str, what: &str, service: &str, text: &str| Event {
        at_unix_ms: 1_800_000_061_250,
        kind: kind.into(),
        what: what.into(),
        service: service.into(),
        text: text.into(),
        ..Event::default()
    };
    testbed
        .agent
        .happen(event("agent", "started", "", "version 0.1.0"));
    testbed.agent.happen(Event {
        actor: "uid 0 pid 7".into(),
        before: "blue live, green 0%".into(),
        after: "blue live, green 5%".into(),
        generation: 3,
        ..event("change", "shift", "web", "release 7")
    });
    testbed.agent.happen(Event {
        rollout: 4,
        ..event("rollout", "rolling back", "web", "sequential: 2% of 400")
    });
}

#[test]
fn get_events_shows_what_happened_in_its_order() {
    let testbed = Testbed::with_web();
    assert_prints(
        &testbed,
        "get events",
        0,
        "nothing of the kind has happened yet",
    );
    happen(&testbed);
    assert_prints(
        &testbed,
        "get events",
        0,
        "
        NO  TIME                  KIND     WHAT          SERVICE  TEXT
         1  2027-01-15 08:01:01Z  agent    started       -        version 0.1.0
         2  2027-01-15 08:01:01Z  change   shift         web      by uid 0 pid 7: blue live, green 0% -> blue live, green 5%: release 7
         3  2027-01-15 08:01:01Z  rollout  rolling back  web      rollout 4: sequential: 2% of 400
        ",
    );
    assert_prints(
        &testbed,
        "get events web --kind rolling-back --limit 1",
        0,
        "
        NO  TIME                  KIND     WHAT          SERVICE  TEXT
         3  2027-01-15 08:01:01Z  rollout  rolling back  web      rollout 4: sequential: 2% of 400
        ",
    );
    assert_prints(
        &testbed,
        "get events --after 1 --limit 1",
        0,
        "
        NO  TIME                  KIND    WHAT   SERVICE  TEXT
         2  2027-01-15 08:01:01Z  change  shift  web      by uid 0 pid 7: blue live, green 0% -> blue live, green 5%: release 7
        ",
    );
}
