//! Rollouts over the fake packet path: judged, guarded by the lease, restarted, frozen.

use std::time::Duration;

use super::rig::{Rig, context, web};
use crate::{
    health::{Checked, Watched as _, probe::Outcome, state::Health},
    model::{BackendState, PoolName, signals::PoolSignals},
    reconcile::{
        Controller as _,
        controller::{
            ControlError, DrainEnd, EventQuery, NamedBackends, ReportFormat, RolloutCommand,
            RolloutView, StartRollout, WriteContext,
        },
        reconciler::lock,
        rollouts::HookRun,
    },
    rollout::{Action, Effect, OnDoubt, Phase, Step},
    store::Progress,
};

const SECOND: Duration = Duration::from_secs(1);
const CANARY: &str = r#"{"strategy":"canary","steps":["10%","50%"],"interval":"5s","lease":"30s"}"#;

fn start(rig: &Rig, json: &str) -> Result<RolloutView, ControlError> {
    let start = StartRollout {
        service: "web".into(),
        spec: Some(json.into()),
    };
    rig.reconciler.start_rollout(&start, &context())
}

fn tell(rig: &Rig, command: RolloutCommand) -> Result<RolloutView, ControlError> {
    rig.reconciler.command_rollout("web", command, &context())
}

fn view(rig: &Rig) -> RolloutView {
    rig.reconciler.rollout("web", 0).unwrap()
}

fn pass(rig: &Rig, seconds: u32) {
    for _ in 0..seconds {
        rig.clock.pass(SECOND);
        rig.reconciler.maintain();
        rig.reconciler.tick_rollouts();
    }
}

/// So many flows a second, of which some of green's are reset.
fn pass_with_traffic(rig: &Rig, seconds: u32, failing: u64) {
    let id = rig.service_id("web");
    for _ in 0..seconds {
        rig.datapath.with(|state| {
            let signals = state.signals.entry(id).or_default();
            for pool in signals.iter_mut() {
                pool.attempts += 100;
                pool.answered += 100;
                pool.ended += 100;
                pool.handshake.0[20] += 100;
            }
            signals[1].resets_before_data += failing;
        });
        pass(rig, 1);
    }
}

fn with_signals() -> Rig {
    let rig = Rig::with_web();
    let id = rig.service_id("web");
    let none = <[PoolSignals; 2]>::default();
    rig.datapath.with(|state| state.signals.insert(id, none));
    rig
}

#[test]
fn a_canary_walks_to_its_promotion_and_leaves_a_report() {
    let rig = with_signals();
    let begun = start(&rig, CANARY).unwrap();
    assert_eq!(
        (begun.state.as_str(), begun.weight.as_str()),
        ("running", "10%")
    );
    assert_eq!(rig.green(), "10%");
    pass_with_traffic(&rig, 20, 0);
    assert_eq!(view(&rig).state, "promoted");
    assert_eq!(rig.green(), "100%");
    assert!(rig.reconciler.get("web").unwrap().dead_man.is_none());
    let report = rig.reconciler.rollout_report("web", 0, ReportFormat::Json);
    let report: serde_json::Value = serde_json::from_str(&report.unwrap().1).unwrap();
    assert_eq!(report["outcome"], "promoted");
    assert!(
        report["pools"][1]["attempts"].as_u64().unwrap() > 500,
        "{report}"
    );
    let notes: Vec<String> = view(&rig).notes.into_iter().map(|n| n.text).collect();
    assert!(
        notes.contains(&"green has 50% of new flows".to_owned()),
        "{notes:?}"
    );
}

#[test]
fn a_bad_green_is_judged_and_the_report_says_how_soon() {
    let rig = with_signals();
    let json = r#"{"strategy":"canary","steps":["50%"],"interval":"10m","gates":[{"judge":"sequential"}]}"#;
    start(&rig, json).unwrap();
    pass_with_traffic(&rig, 20, 0);
    assert_eq!(view(&rig).state, "running");
    pass_with_traffic(&rig, 60, 5);
    let over = view(&rig);
    assert_eq!(over.state, "rolled back", "{over:?}");
    assert!(
        over.why.contains("gate \"sequential\" failed"),
        "{}",
        over.why
    );
    assert_eq!(rig.green(), "0%");
    let (_, report) = rig
        .reconciler
        .rollout_report("web", 0, ReportFormat::Json)
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(
        report["detection"]["failures"].as_u64().unwrap() >= 5,
        "{report}"
    );
    assert!(report["rollback"]["programmed_ns"].is_u64(), "{report}");
}

#[test]
fn a_restart_goes_on_judging_where_it_was() {
    let mut rig = with_signals();
    let json = r#"{"strategy":"canary","steps":["50%"],"interval":"40s","gates":[{"judge":"sequential","min_samples":3000}]}"#;
    start(&rig, json).unwrap();
    pass_with_traffic(&rig, 20, 0);
    rig.restart();
    pass_with_traffic(&rig, 19, 0);
    let gate = view(&rig).gates.remove(0);
    assert_eq!(
        gate.verdict, "pass",
        "windows from before it count: {}",
        gate.reason
    );
    pass_with_traffic(&rig, 5, 0);
    assert_eq!(view(&rig).state, "promoted");
}

#[test]
fn the_lease_is_renewed_quietly_and_takes_the_weight_back_from_a_dead_agent() {
    let mut rig = with_signals();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%","pause"],"interval":"1s","lease":"30s"}"#,
    )
    .unwrap();
    pass(&rig, 3);
    let before = rig.reconciler.get("web").unwrap();
    let records = rig.audit().len();
    pass(&rig, 100);
    let after = rig.reconciler.get("web").unwrap();
    assert_eq!(after.generation, before.generation);
    assert_eq!(rig.audit().len(), records, "{:?}", rig.actions());
    let left = after.dead_man.unwrap().remaining_s;
    assert!((19.0..=30.0).contains(&left), "{left}");
    // Nobody is there for longer than the lease.
    rig.clock.pass(Duration::from_secs(31));
    rig.restart();
    pass(&rig, 5);
    assert_eq!(view(&rig).state, "rolled back");
    assert!(view(&rig).why.contains("dead-man"), "{}", view(&rig).why);
    assert_eq!(rig.green(), "0%");
}

#[test]
fn after_a_reboot_within_the_lease_it_goes_on() {
    let mut rig = with_signals();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%","pause"],"interval":"1s","lease":"5m"}"#,
    )
    .unwrap();
    pass(&rig, 5);
    rig.reboot(Duration::from_secs(30));
    pass(&rig, 2);
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("holding", "10%")
    );
    rig.reboot(Duration::from_secs(600));
    pass(&rig, 5);
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("rolled back", "0%")
    );
}

/// As if a weight were asked for whose result has not come.
fn ask_for(rig: &Rig, candidate: &str) {
    let mut core = lock(&rig.reconciler.core);
    let state = &mut core.rollouts.get_mut("web").unwrap().state;
    state.pending = Some(Effect {
        id: state.next_id,
        action: Action::Weight {
            candidate: candidate.parse().unwrap(),
        },
    });
    state.next_id += 1;
    state.failed = Some("it was in doubt".into());
}

#[test]
fn a_rollback_that_a_kill_kept_from_the_store_ends_it() {
    for freezes in [false, true] {
        let mut rig = with_signals();
        start(&rig, CANARY).unwrap();
        if freezes {
            // The next weight is asked for, and stays so.
            rig.reconciler.freeze("web", &context()).unwrap();
            ask_for(&rig, "50%");
            pass(&rig, 1);
        } else {
            pass(&rig, 2);
        }
        rig.disk_full(true);
        rig.rollback(0).unwrap();
        rig.restart();
        if freezes {
            rig.reconciler.unfreeze("web", &context()).unwrap();
        }
        assert_eq!(rig.green(), "0%");
        pass(&rig, 20);
        assert_eq!(
            (view(&rig).state.as_str(), rig.green().as_str()),
            ("rolled back", "0%"),
            "{}",
            view(&rig).why
        );
    }
}

#[test]
fn people_are_kept_from_the_weight_and_a_rollback_ends_it() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    for refused in [
        rig.shift("50%").unwrap_err(),
        rig.reconciler.confirm("web", &context()).unwrap_err(),
        rig.reconciler.promote("web", &context()).unwrap_err(),
        rig.reconciler.delete("web", &context()).unwrap_err(),
        start(&rig, CANARY).unwrap_err(),
    ] {
        assert!(
            refused.to_string().contains("runs (running): abort it"),
            "{refused}"
        );
    }
    let same = crate::model::ServiceSpec {
        green: "10%".parse().unwrap(),
        ..web()
    };
    assert!(rig.apply(&[same]).unwrap()[0].unchanged);
    assert!(
        rig.apply(&[web()])
            .unwrap_err()
            .to_string()
            .contains("abort it")
    );
    rig.rollback(0).unwrap();
    assert_eq!(view(&rig).state, "rolled back");
    assert!(view(&rig).why.contains("tester rolled the service back"));
    pass(&rig, 5);
    rig.shift("50%").unwrap();
}

#[test]
fn a_rollback_to_what_is_not_known_ends_nothing() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let refused = rig.rollback(9_999).unwrap_err();
    assert!(
        refused.to_string().contains("has no generation 9999"),
        "{refused}"
    );
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("running", "10%")
    );
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "promoted");
}

#[test]
fn the_lease_is_not_renewed_on_the_way_back() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let phase = Phase::RollingBack { reason: "x".into() };
    lock(&rig.reconciler.core)
        .rollouts
        .get_mut("web")
        .unwrap()
        .state
        .phase = phase;
    pass(&rig, 20);
    let left = rig.reconciler.get("web").unwrap().dead_man.unwrap();
    assert!(left.remaining_s <= 10.0, "{}", left.remaining_s);
}

#[test]
fn a_freeze_refuses_all_but_the_way_back() {
    let mut rig = with_signals();
    start(&rig, CANARY).unwrap();
    rig.reconciler.freeze("web", &context()).unwrap();
    pass(&rig, 10);
    assert_eq!(view(&rig).state, "holding");
    assert!(
        view(&rig).why.contains("is frozen by tester"),
        "{}",
        view(&rig).why
    );
    rig.restart();
    let frozen = |result: Result<_, ControlError>| matches!(result, Err(ControlError::Frozen(_)));
    assert!(frozen(tell(&rig, RolloutCommand::Advance).map(drop)));
    tell(&rig, RolloutCommand::Abort).unwrap();
    assert_eq!(rig.green(), "0%");
    pass(&rig, 5);
    assert!(frozen(rig.shift("5%").map(drop)));
    assert!(frozen(start(&rig, CANARY).map(drop)));
    rig.rollback(0).unwrap();
    rig.reconciler.unfreeze("web", &context()).unwrap();
    rig.reconciler.freeze("*", &context()).unwrap();
    assert!(frozen(rig.shift("5%").map(drop)));
    rig.reconciler.unfreeze("*", &context()).unwrap();
    rig.shift("5%").unwrap();
}

#[test]
fn a_freeze_lets_an_experiment_give_everything_back() {
    let rig = with_signals();
    start(
        &rig,
        r#"{"strategy":"ab","split":"50%","duration":"3s","lease":"30s"}"#,
    )
    .unwrap();
    // At its last step, which is not carried out yet.
    let last = {
        let mut core = lock(&rig.reconciler.core);
        let rollout = core.rollouts.get_mut("web").unwrap();
        rollout.state.step = rollout.plan.steps.len() - 1;
        rollout.plan.steps[rollout.state.step].to_string()
    };
    assert_eq!(last, "weight 0%");
    rig.reconciler.freeze("web", &context()).unwrap();
    pass(&rig, 1);
    assert_eq!(rig.green(), "0%");
    assert_eq!(view(&rig).state, "completed", "{}", view(&rig).why);
}

#[test]
fn a_freeze_keeps_the_dead_man_until_it_ends() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    {
        let mut core = lock(&rig.reconciler.core);
        let state = &mut core.rollouts.get_mut("web").unwrap().state;
        state.pending = Some(Effect {
            id: state.next_id,
            action: Action::Keep,
        });
        state.failed = Some("it was in doubt".into());
        state.next_id += 1;
    }
    rig.reconciler.freeze("web", &context()).unwrap();
    rig.reconciler.forsake_rollouts();
    pass(&rig, 5);
    assert!(rig.reconciler.get("web").unwrap().dead_man.is_some());
    rig.reconciler.unfreeze("web", &context()).unwrap();
    pass(&rig, 2);
    assert!(rig.reconciler.get("web").unwrap().dead_man.is_none());
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("completed", "10%")
    );
}

#[test]
fn what_is_told_twice_under_one_id_is_done_once() {
    let rig = with_signals();
    let of = |id: &str| WriteContext {
        request_id: id.into(),
        ..context()
    };
    let json = r#"{"strategy":"canary","steps":["10%","pause","50%","pause"],"interval":"1s"}"#;
    let begin = StartRollout {
        service: "web".into(),
        spec: Some(json.into()),
    };
    let begun = rig.reconciler.start_rollout(&begin, &of("a")).unwrap();
    let again = rig.reconciler.start_rollout(&begin, &of("a")).unwrap();
    assert_eq!(begun.id, again.id);
    pass(&rig, 3);
    let advance = |id| {
        let told = rig
            .reconciler
            .command_rollout("web", RolloutCommand::Advance, &of(id));
        told.unwrap().step
    };
    let first = advance("b");
    pass(&rig, 3);
    let second = view(&rig).step;
    assert!(second >= first);
    assert_eq!(advance("b"), second);
    assert_eq!(rig.green(), "50%");
    assert!(advance("c") > second);
}

#[test]
fn one_that_cannot_be_read_is_closed_and_in_nobodys_way() {
    let mut rig = with_signals();
    let id = start(&rig, CANARY).unwrap().id;
    let progress = Progress {
        id,
        state: "{",
        at_unix_ms: 1,
        outcome: None,
        notes: &[],
        windows: &[],
    };
    let moved = lock(&rig.reconciler.core).store.move_rollout(&progress);
    moved.unwrap();
    rig.restart();
    assert_eq!((view(&rig).id, view(&rig).state.as_str()), (id, "lost"));
    assert!(view(&rig).is_over);
    rig.rollback(0).unwrap();
    let next = start(&rig, CANARY).unwrap();
    assert_eq!(rig.reconciler.rollouts("", 10).unwrap().len(), 2);
    rig.restart();
    assert_eq!(view(&rig).id, next.id, "it is not taken up again");
    let core = lock(&rig.reconciler.core);
    assert!(
        !core.warnings.iter().any(|w| w.contains("cannot go on")),
        "{:?}",
        core.warnings
    );
}

#[test]
fn one_whose_service_is_deleted_at_its_end_has_its_report_too() {
    let rig = with_signals();
    let id = start(&rig, CANARY).unwrap().id;
    tell(&rig, RolloutCommand::Abort).unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    pass(&rig, 2);
    let row = lock(&rig.reconciler.core).store.rollout(id).unwrap();
    assert!(row.unwrap().report.is_some());
    rig.apply(&[web()]).unwrap();
    start(&rig, CANARY).unwrap();
}

#[test]
fn a_full_disk_holds_a_rollout_and_never_its_way_back() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    pass(&rig, 2);
    rig.disk_full(true);
    pass(&rig, 20);
    assert_eq!(rig.green(), "10%", "it stays where it is");
    tell(&rig, RolloutCommand::Abort).unwrap();
    assert_eq!(rig.green(), "0%");
    rig.disk_full(false);
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "rolled back");
    rig.reconciler
        .rollout_report("web", 0, ReportFormat::Markdown)
        .unwrap();
}

#[test]
fn a_failed_judgement_needs_no_disk() {
    let rig = with_signals();
    let json = r#"{"strategy":"canary","steps":["50%"],"interval":"10m","gates":[{"judge":"sequential"}]}"#;
    start(&rig, json).unwrap();
    pass_with_traffic(&rig, 5, 0);
    rig.disk_full(true);
    pass_with_traffic(&rig, 60, 5);
    assert_eq!(rig.green(), "0%", "{}", view(&rig).why);
    rig.disk_full(false);
    pass(&rig, 3);
    assert_eq!(view(&rig).state, "rolled back");
}

/// Puts a hook behind the step that a rollout is in, and lets it be asked for.
fn reach_hook(rig: &Rig) -> HookRun {
    {
        let mut core = lock(&rig.reconciler.core);
        let rollout = core.rollouts.get_mut("web").unwrap();
        let hook = Step::Hook {
            name: "warm".into(),
            backend: None,
            on_error: OnDoubt::Hold,
        };
        rollout.plan.steps[rollout.state.step] = hook;
    }
    rig.clock.pass(SECOND);
    rig.reconciler.tick_rollouts().hooks.remove(0)
}

#[test]
fn a_result_that_the_store_cannot_take_is_taken_in_later() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let run = reach_hook(&rig);
    let step = view(&rig).step;
    rig.disk_full(true);
    rig.reconciler.rollout_hook_done(&run, Ok(()));
    pass(&rig, 3);
    assert_eq!(view(&rig).step, step, "it is not stored that it is done");
    rig.disk_full(false);
    pass(&rig, 1);
    assert!(view(&rig).step > step);
    pass(&rig, 20);
    assert_eq!(view(&rig).state, "promoted");
}

#[test]
fn a_hook_whose_task_is_gone_has_failed_and_one_not_begun_is_run() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let run = reach_hook(&rig);
    let step = view(&rig).step;
    rig.reconciler.forsake_rollouts();
    rig.clock.pass(SECOND);
    assert!(rig.reconciler.tick_rollouts().hooks.is_empty());
    rig.clock.pass(SECOND);
    let work = rig.reconciler.tick_rollouts();
    assert!(work.hooks.is_empty(), "it is not run again: {run:?}");
    assert!(
        view(&rig).why.contains("nobody knows how far it came"),
        "{}",
        view(&rig).why
    );
    assert_eq!(view(&rig).step, step);
    tell(&rig, RolloutCommand::Advance).unwrap();
    assert_eq!(view(&rig).state, "running");
}

#[test]
fn a_gate_whose_task_is_gone_is_asked_again() {
    let rig = with_signals();
    let json = r#"{"strategy":"canary","steps":["50%"],"interval":"10m","gates":[{"judge":"sequential"}]}"#;
    start(&rig, json).unwrap();
    {
        let mut core = lock(&rig.reconciler.core);
        let rollout = core.rollouts.get_mut("web").unwrap();
        let spec = crate::rollout::spec::from_json(
            r#"{"strategy":"canary","steps":["50%"],"interval":"10m","gates":[{"judge":"exec","file":"x"}]}"#,
        );
        rollout.spec.gates = spec.unwrap().gates;
    }
    let asks = |rig: &Rig| {
        rig.clock.pass(SECOND);
        rig.reconciler.tick_rollouts().asks.len()
    };
    assert_eq!(asks(&rig), 1);
    assert_eq!(asks(&rig), 0, "it is under way");
    rig.reconciler.forsake_rollouts();
    assert_eq!(asks(&rig), 1);
}

#[test]
fn a_drain_keeps_the_weight_and_its_dead_man() {
    let rig = Rig::with_web();
    let mut spec = web();
    let mut second = spec.green_pool[0];
    second.addr = "10.0.1.2:8443".parse().unwrap();
    spec.green_pool.push(second);
    rig.apply(&[spec]).unwrap();
    rig.shift_for("20%", Duration::from_secs(600));
    let named = NamedBackends {
        service: "web".into(),
        pool: None,
        backend: Some(second.addr),
    };
    rig.reconciler
        .drain(&named, Some(DrainEnd::default()), &context())
        .unwrap();
    let after = rig.reconciler.get("web").unwrap();
    assert_eq!(after.spec.green_pool[1].state, BackendState::Drain);
    assert_eq!(after.spec.green.to_string(), "20%");
    assert!(after.dead_man.is_some());
    rig.reconciler.drain(&named, None, &context()).unwrap();
    let wrong = NamedBackends {
        backend: Some("10.0.9.9:80".parse().unwrap()),
        ..named
    };
    let refused = rig
        .reconciler
        .drain(&wrong, Some(DrainEnd::default()), &context())
        .unwrap_err();
    assert!(
        refused.to_string().contains("it has 10.0.0.1:8443"),
        "{refused}"
    );
}

#[test]
fn what_reaches_out_of_the_agent_cannot_come_over_the_api() {
    let rig = with_signals();
    for json in [
        r#"{"strategy":"canary","gates":[{"judge":"exec","file":"x"}]}"#,
        r#"{"strategy":"canary","steps":["hook x"]}"#,
    ] {
        let refused = start(&rig, json).unwrap_err();
        assert!(
            refused.to_string().contains("cannot come over the API"),
            "{refused}"
        );
    }
    assert!(lock(&rig.reconciler.core).rollouts.is_empty());
    assert_eq!(rig.reconciler.rollouts("", 10).unwrap().len(), 0);
}

/// A check of a backend that has just ended, and began so long ago.
fn check_passes(rig: &Rig, backend: &str, age: Duration) {
    rig.reconciler.note(&Checked {
        service: "web".into(),
        backend: backend.parse().unwrap(),
        outcome: Outcome::Passed,
        took: age,
        age,
        health: Health::Up,
        is_news: false,
    });
}

/// Rolls blue, whose second backend is 10.0.0.2, with checks of both.
fn rolling() -> Rig {
    let rig = Rig::new();
    let mut spec = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    let json = r#"{"strategy":"rolling","drain_deadline":"1s","health_deadline":"10s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 3);
    assert!(view(&rig).why.contains("update it"), "{}", view(&rig).why);
    rig
}

fn states(rig: &Rig) -> Vec<BackendState> {
    let spec = rig.reconciler.get("web").unwrap().spec;
    spec.blue_pool.iter().map(|b| b.state).collect()
}

#[test]
fn a_backend_is_good_by_a_check_that_began_after_its_update() {
    let rig = rolling();
    let first = "10.0.0.1:8443";
    // Up for long, and once more by a check that was under way at the update.
    check_passes(&rig, first, Duration::from_millis(3));
    rig.clock.pass(Duration::from_millis(400));
    tell(&rig, RolloutCommand::Advance).unwrap();
    rig.clock.pass(Duration::from_millis(100));
    check_passes(&rig, first, Duration::from_millis(200));
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
    check_passes(&rig, first, Duration::from_millis(3));
    pass(&rig, 2);
    assert_eq!(states(&rig), [BackendState::Ready, BackendState::Drain]);
}

#[test]
fn a_backend_that_no_check_finds_good_after_its_update_stays_drained() {
    let rig = rolling();
    check_passes(&rig, "10.0.0.1:8443", Duration::from_millis(3));
    tell(&rig, RolloutCommand::Advance).unwrap();
    pass(&rig, 15);
    let over = view(&rig);
    assert_eq!(over.state, "rolled back", "{over:?}");
    assert!(
        over.why.contains("10.0.0.1:8443 is not up by a check"),
        "{}",
        over.why
    );
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
}

#[test]
fn the_way_back_of_backends_needs_neither_the_store_nor_the_host() {
    let mut rig = Rig::new();
    let mut spec = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }\n",
    )
    .remove(0);
    spec.blue_pool[1].state = BackendState::Drain;
    rig.apply(&[spec]).unwrap();
    // The spare is brought in; it goes again with the way back.
    let json = r#"{"strategy":"rolling","surge":1,"max_unavailable":0,"drain_deadline":"1s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 2);
    tell(&rig, RolloutCommand::Advance).unwrap();
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
    let ring = |rig: &Rig| rig.datapath.with(|kernel| kernel.rings[&0][0].clone());
    let with_spare = ring(&rig);
    rig.disk_full(true);
    let vip = "203.0.113.10".parse().unwrap();
    lock(&rig.facts.lost).insert(vip);
    tell(&rig, RolloutCommand::Abort).unwrap();
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Drain]);
    assert_ne!(ring(&rig), with_spare);
    let told = rig.reconciler.get("web").unwrap();
    assert!(
        told.warnings.iter().any(|w| w.starts_with("not durable")),
        "{:?}",
        told.warnings
    );
    rig.disk_full(false);
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "rolled back");
    assert_eq!(rig.actions()[0], "rollout undrain");
    let told = rig.reconciler.get("web").unwrap();
    assert!(!told.warnings.iter().any(|w| w.starts_with("not durable")));
    rig.restart();
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Drain]);
}

#[test]
fn its_way_back_undoes_no_earlier_promote() {
    let rig = with_signals();
    let json = r#"{"strategy":"blue-green","bake":"5s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 15);
    assert_eq!(rig.live(), PoolName::Green);
    for by_hand in [false, true] {
        start(&rig, json).unwrap();
        assert_eq!(rig.green(), "0%");
        match by_hand {
            true => drop(rig.rollback(0).unwrap()),
            false => drop(tell(&rig, RolloutCommand::Abort).unwrap()),
        }
        assert_eq!(
            (rig.live(), rig.green().as_str()),
            (PoolName::Green, "100%")
        );
        pass(&rig, 5);
        assert_eq!(view(&rig).state, "rolled back");
    }
    // Without a rollout it means what it always does.
    rig.rollback(0).unwrap();
    assert_eq!(rig.live(), PoolName::Blue);
}

#[test]
fn cohorts_of_a_rollout_come_first_only_to_a_pool_that_is_up() {
    let rig = Rig::new();
    let mut spec = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n\
         [[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    rig.rollback(0).unwrap();
    let green = "10.0.1.1:8443".parse().unwrap();
    assert!(rig.reconciler.settle("web", &[green].into()));
    start(&rig, r#"{"strategy":"cohort-first","lease":"30s"}"#).unwrap();
    pass(&rig, 3);
    assert!(!rig.reconciler.get("web").unwrap().spec.cohorts_on);
    assert!(
        view(&rig).why.contains("the clients of cohort \"staff\""),
        "{}",
        view(&rig).why
    );
    assert!(rig.reconciler.settle("web", &Default::default()));
    pass(&rig, 3);
    assert!(rig.reconciler.get("web").unwrap().spec.cohorts_on);
}

#[test]
fn an_experiment_on_cohorts_alone_puts_them_in_force_and_takes_them_out_again() {
    let rig = Rig::new();
    let mut spec = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         [[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    rig.rollback(0).unwrap();
    start(&rig, r#"{"strategy":"ab","duration":"5s","lease":"30s"}"#).unwrap();
    pass(&rig, 2);
    let during = rig.reconciler.get("web").unwrap();
    assert!(during.spec.cohorts_on && during.dead_man.is_some());
    assert_eq!(rig.green(), "0%");
    pass(&rig, 10);
    assert_eq!(view(&rig).state, "completed");
    let after = rig.reconciler.get("web").unwrap();
    assert!(!after.spec.cohorts_on && after.dead_man.is_none());
    assert_eq!(rig.green(), "0%");
}

#[test]
fn the_list_of_events_tells_a_rollout_whole_with_its_gates_and_survives_a_restart() {
    let mut rig = Rig::with_web();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%"],"interval":"10s","gates":[{"judge":"threshold","failure_ratio_max":"1%"}]}"#,
    )
    .unwrap();
    pass(&rig, 2);
    tell(&rig, RolloutCommand::Abort).unwrap();
    pass(&rig, 5);
    let events = |rig: &Rig| {
        let query = EventQuery {
            service: "web".into(),
            limit: 100,
            ..EventQuery::default()
        };
        rig.reconciler.events(&query).unwrap().events
    };
    let before = events(&rig);
    let words: Vec<&str> = before.iter().map(|event| event.what.as_str()).collect();
    for what in [
        "apply",
        "rollout start",
        "weight",
        "gate",
        "rollback",
        "rolling back",
        "over",
    ] {
        assert!(words.contains(&what), "{what}: {words:?}");
    }
    let gate = before.iter().find(|event| event.what == "gate").unwrap();
    assert_eq!((gate.kind.as_str(), gate.rollout), ("rollout", 1));
    assert!(gate.text.starts_with("threshold: no data"), "{}", gate.text);
    assert!(before.is_sorted_by_key(|event| event.number));
    rig.restart();
    assert_eq!(events(&rig)[..before.len()], before[..]);
}
