//! What reaches out of the agent, over the fake packet path: checks by a program come
//! from its own file, webhooks are told and wait for nobody, failed hooks run again.

use std::time::Duration;

use super::rig::{Rig, context, specs};
use crate::{
    judge::Allowed,
    reconcile::{
        Controller as _, Settings,
        controller::{ControlError, ReportFormat, RolloutCommand, RolloutView, StartRollout},
        reconciler::lock,
        rollouts::{HookRun, Tell},
    },
    rollout::{OnDoubt, Step, spec},
};

const SECOND: Duration = Duration::from_secs(1);

fn allowing(timeout_max: Duration) -> Settings {
    Settings {
        allowed: Allowed {
            hosts: Vec::new(),
            exec: true,
            timeout_max: Some(timeout_max),
        },
        ..Settings::default()
    }
}

fn checked(health: &str) -> crate::model::ServiceSpec {
    let text = format!(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = {{ blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }}\n\
         health = {{ {health} }}\n"
    );
    specs(&text).remove(0)
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ControlError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_check_by_a_program_comes_from_the_agents_file_and_may_stay() {
    let mut rig = Rig::new();
    let exec = checked("type = \"exec\", file = \"well.sh\", timeout = \"1s\"");
    let text = refusal(rig.apply(std::slice::from_ref(&exec)));
    assert!(text.contains("cannot come over the API"), "{text}");
    let from_file = |rig: &Rig| {
        rig.reconciler
            .load_file_services(std::slice::from_ref(&exec))
    };
    let text = refusal(from_file(&rig));
    assert!(text.contains("set exec_dir of [gates]"), "{text}");
    rig.restart_with(allowing(Duration::from_millis(900)));
    let text = refusal(from_file(&rig));
    assert!(text.contains("above timeout_max of [gates]"), "{text}");
    assert!(rig.reconciler.get("web").is_err(), "nothing was changed");
    rig.restart_with(allowing(SECOND));
    from_file(&rig).unwrap();
    // Written again by others, with something else changed.
    let mut again = exec.clone();
    again.green_pool[0].weight = 7;
    rig.apply(&[again.clone()]).unwrap();
    for other in [
        "type = \"exec\", file = \"other.sh\", timeout = \"1s\"",
        "type = \"exec\", file = \"well.sh\", timeout = \"900ms\"",
    ] {
        again.health = checked(other).health;
        let text = refusal(rig.apply(&[again.clone()]));
        assert!(text.contains("cannot come over the API"), "{text}");
    }
    again.health = checked("type = \"tcp\"").health;
    rig.apply(&[again.clone()]).unwrap();
    again.health = exec.health.clone();
    let text = refusal(rig.apply(&[again]));
    assert!(
        text.contains("cannot come over the API"),
        "it was gone: {text}"
    );
}

fn start(rig: &Rig, json: &str) -> RolloutView {
    let start = StartRollout {
        service: "web".into(),
        spec: Some(json.into()),
    };
    rig.reconciler.start_rollout(&start, &context()).unwrap()
}

fn view(rig: &Rig) -> RolloutView {
    rig.reconciler.rollout("web", 0).unwrap()
}

fn tell(rig: &Rig, command: RolloutCommand) -> Result<RolloutView, ControlError> {
    rig.reconciler.command_rollout("web", command, &context())
}

const CANARY: &str = r#"{"strategy":"canary","steps":["10%"],"interval":"3s","lease":"30s"}"#;

/// Begins a rollout that tells two webhooks.
fn telling() -> Rig {
    let rig = Rig::with_web();
    start(&rig, CANARY);
    let with = r#"{"strategy":"canary","gates":[
        {"judge":"webhook","name":"all","url":"http://h:1/","type":"event"},
        {"judge":"webhook","name":"end","url":"http://h:1/","type":"post-rollout"}]}"#;
    let mut core = lock(&rig.reconciler.core);
    let rollout = core.rollouts.get_mut("web").unwrap();
    rollout.spec.gates = spec::from_json(with).unwrap().gates;
    drop(core);
    rig
}

/// A round of the loop.
fn round(rig: &Rig) -> Vec<Tell> {
    rig.clock.pass(SECOND);
    rig.reconciler.maintain();
    rig.reconciler.tick_rollouts().tells
}

fn kinds(tells: &[Tell], name: &str) -> Vec<String> {
    let of = tells.iter().filter(|tell| tell.spec.name == name);
    of.flat_map(|tell| tell.news.iter().map(|news| news.happened.kind.clone()))
        .collect()
}

fn report(rig: &Rig) -> Option<String> {
    let report = rig
        .reconciler
        .rollout_report("web", 0, ReportFormat::Markdown);
    report.ok().map(|(_, text)| text)
}

#[test]
fn webhooks_are_told_what_happens_and_once_of_the_end() {
    let rig = telling();
    let mut told = Vec::new();
    for _ in 0..15 {
        for tell in round(&rig) {
            rig.reconciler.rollout_told(&tell, Ok(()));
            told.push(tell);
        }
    }
    assert_eq!(view(&rig).state, "promoted");
    assert_eq!(kinds(&told, "end"), ["over"]);
    let all = kinds(&told, "all");
    assert_eq!(all.last().map(String::as_str), Some("over"), "{all:?}");
    assert!(all.contains(&"step".to_owned()), "{all:?}");
    let end = told.iter().find(|tell| tell.spec.name == "end").unwrap();
    assert_eq!(end.news[0].phase, "promoted");
    assert!(!report(&rig).unwrap().contains("not told"));
}

#[test]
fn a_webhook_that_does_not_answer_is_in_nobodys_way_and_stands_in_the_report() {
    let rig = telling();
    let begun = (0..10).map(|_| round(&rig)).collect::<Vec<_>>().concat();
    assert_eq!(view(&rig).state, "promoted", "nobody has answered");
    assert_eq!(kinds(&begun, "end"), ["over"]);
    assert!(report(&rig).is_none(), "it waits for a while");
    let end = begun.iter().find(|tell| tell.spec.name == "end").unwrap();
    let refused = Err("it was not told of \"over\": connection refused".to_owned());
    rig.reconciler.rollout_told(end, refused);
    for _ in 0..12 {
        round(&rig);
    }
    let report = report(&rig).unwrap();
    assert!(report.contains("connection refused"), "{report}");
    assert!(
        report.contains("no answer yet when the report was made"),
        "{report}"
    );
    // Too late, and harmless.
    let all = begun.iter().find(|tell| tell.spec.name == "all").unwrap();
    rig.reconciler.rollout_told(all, Err("too late".into()));
}

#[test]
fn what_a_walk_had_begun_to_tell_is_not_told_again() {
    let rig = telling();
    rig.clock.pass(SECOND);
    tell(&rig, RolloutCommand::Pause).unwrap();
    let first = round(&rig);
    assert_eq!(
        kinds(&first, "all").last().map(String::as_str),
        Some("paused")
    );
    rig.reconciler.forsake_rollouts();
    assert!(round(&rig).is_empty(), "nobody knows whether it was told");
    tell(&rig, RolloutCommand::Resume).unwrap();
    assert_eq!(kinds(&round(&rig), "all")[0], "resumed");
}

/// Puts a hook in place of the step that it is in, and takes what is to be run.
fn reach_hook(rig: &Rig) -> HookRun {
    {
        let mut core = lock(&rig.reconciler.core);
        let rollout = core.rollouts.get_mut("web").unwrap();
        rollout.plan.steps[rollout.state.step] = Step::Hook {
            name: "warm".into(),
            backend: None,
            on_error: OnDoubt::Hold,
        };
    }
    rig.clock.pass(SECOND);
    rig.reconciler.tick_rollouts().hooks.remove(0)
}

fn hooks(rig: &Rig) -> Vec<HookRun> {
    rig.clock.pass(SECOND);
    rig.reconciler.tick_rollouts().hooks
}

#[test]
fn a_failed_hook_runs_again_when_it_is_told_to() {
    let rig = Rig::with_web();
    start(&rig, CANARY);
    let first = reach_hook(&rig);
    let step = view(&rig).step;
    let text = refusal(tell(&rig, RolloutCommand::Retry));
    assert!(text.contains("no hook of it has failed"), "{text}");
    let failed = Err("hook \"warm\" failed: no disk".to_owned());
    rig.reconciler.rollout_hook_done(&first, failed);
    assert!(hooks(&rig).is_empty(), "not by itself");
    assert_eq!(view(&rig).state, "holding");
    // The answer of a command shows what it led to.
    assert_eq!(tell(&rig, RolloutCommand::Retry).unwrap().state, "running");
    let second = hooks(&rig).remove(0);
    assert!(second.effect.id > first.effect.id);
    assert!(hooks(&rig).is_empty(), "once");
    rig.reconciler.rollout_hook_done(&first, Ok(()));
    assert_eq!(view(&rig).step, step, "an old answer is no answer");
    rig.reconciler.rollout_hook_done(&second, Ok(()));
    assert!(view(&rig).step > step);
    let notes: Vec<String> = view(&rig).notes.into_iter().map(|n| n.kind).collect();
    assert!(notes.contains(&"retried".to_owned()), "{notes:?}");
    assert!(
        rig.actions().contains(&"tester rollout retry".to_owned()),
        "{:?}",
        rig.actions()
    );
}
