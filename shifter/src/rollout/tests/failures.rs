//! What is tried again, and what takes too long.

use super::*;

#[test]
fn a_hook_that_failed_is_run_again_when_told_and_as_a_new_effect() {
    let plan = plan(r#"{"strategy":"rolling","hook":"update","drain_deadline":"1s"}"#);
    let mut run = Run::new(&plan);
    let retry = |run: &Run<'_>| check(run.plan, &run.state, &Event::Retry);
    let text = retry(&run).unwrap_err();
    assert!(text.contains("no hook of it has failed"), "{text}");
    // The first backend is drained, and its hook asked for.
    let (mut state, mut effects) = (run.state.clone(), Vec::new());
    while effects.is_empty() {
        run.now += SECOND;
        let tick = Event::Tick(facts(0, Health::Up));
        (state, effects) = step(&plan, state, tick, run.now);
        if let Some(Action::Drain { .. }) = effects.first().map(|effect| &effect.action) {
            let id = effects.remove(0).id;
            (state, _) = step(&plan, state, Event::Done { id }, run.now);
        }
    }
    run.state = state;
    let first = effects.remove(0);
    assert!(matches!(first.action, Action::Hook { .. }), "{first:?}");
    assert!(retry(&run).is_err(), "it runs");
    let failed = |id| Event::Failed {
        id,
        reason: "hook \"update\" failed".into(),
    };
    run.tell(failed(first.id));
    run.pass_with(30, &facts(0, Health::Up));
    assert_eq!(run.state.word(), "holding");
    let why = run.state.holding.clone().unwrap();
    assert!(
        why.contains("`shifter rollout retry` runs it again"),
        "{why}"
    );
    // As a restart knows it.
    let stored = serde_json::to_string(&run.state).unwrap();
    let before: State = serde_json::from_str(&stored).unwrap();
    let (after, effects) = step(&plan, before.clone(), Event::Retry, run.now);
    let [second] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(second.action, first.action);
    assert!(second.id > first.id);
    assert_eq!(after.word(), "running");
    assert_eq!(after.spent_ms, 0);
    let told = notes(&plan, &before, &after);
    let told: Vec<&str> = told.iter().map(|note| note.kind).collect();
    assert_eq!(told, ["retried"]);
    // An answer of the first run is none of the second.
    let (late, _) = step(&plan, after.clone(), Event::Done { id: first.id }, run.now);
    assert_eq!(late.pending, after.pending);
    run.state = after;
    assert!(retry(&run).is_err(), "it runs again");
    let id = second.id;
    run.tell(failed(id));
    assert!(retry(&run).is_ok(), "as often as it fails");
    run.tell(Event::Retry);
    assert_eq!(run.world.hooks.len(), 1);
    run.pass_with(120, &facts(0, Health::Up));
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    assert_eq!(run.world.hooks.len(), 3);
}

#[test]
fn no_progress_for_too_long_is_a_failure_unless_a_person_is_waited_for() {
    let json = r#"{"strategy":"canary","steps":["pause","5%"],"interval":"5s","progress_deadline":"10s","gates":[{"judge":"sequential"}]}"#;
    let plan = plan(json);
    let mut run = Run::new(&plan);
    run.pass(1_000);
    assert_eq!(run.state.word(), "holding");
    run.tell(Event::Advance);
    run.judge(judge::Outcome::NoData);
    for _ in 0..30 {
        run.judge(judge::Outcome::NoData);
        run.pass(1);
    }
    let Some(Outcome::RolledBack { reason }) = run.outcome() else {
        panic!("{:?}", run.state);
    };
    assert!(
        reason.contains("no progress at \"analyse for 5s\" for 10s"),
        "{reason}"
    );
}

#[test]
fn a_rollback_that_fails_is_tried_again_until_it_is_in_force() {
    let plan = plan(CANARY);
    let mut run = Run::new(&plan);
    run.pass(2);
    let abort = Event::Abort { reason: "x".into() };
    let (state, effects) = step(&plan, run.state.clone(), abort, run.now);
    let id = effects[0].id;
    let failed = Event::Failed {
        id,
        reason: "the kernel refused".into(),
    };
    let (state, _) = step(&plan, state, failed, run.now);
    assert_eq!(state.word(), "rolling back");
    let (state, effects) = step(
        &plan,
        state,
        Event::Tick(Facts::default()),
        run.now + SECOND,
    );
    assert_eq!(effects.len(), 1);
    assert_eq!(effects[0].id, id, "the same one");
    let (state, _) = step(&plan, state, Event::Done { id }, run.now);
    assert!(state.outcome().is_some());
}
