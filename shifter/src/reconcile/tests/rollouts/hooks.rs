//! Hooks and gates, which reach out of the agent.

use super::*;

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
    start(&rig, SEQUENTIAL).unwrap();
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
