//! While changes are frozen.

use super::*;

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
    leave_in_doubt(&rig, Action::Keep);
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
