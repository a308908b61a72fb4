//! While changes are frozen.

use super::*;

fn frozen() -> Facts {
    Facts {
        frozen: Some("frozen by tester".into()),
        ..Facts::default()
    }
}

#[test]
fn in_a_freeze_no_time_counts_and_nothing_is_asked_for() {
    let plan = plan(
        r#"{"strategy":"canary","steps":["5%","25%"],"interval":"10s","progress_deadline":"30s"}"#,
    );
    let mut run = Run::new(&plan);
    run.pass(4);
    let before = run.state.clone();
    run.pass_with(1_000, &frozen());
    assert_eq!(run.state.word(), "holding");
    assert_eq!(run.state.holding.as_deref(), Some("frozen by tester"));
    assert_eq!(
        (run.state.spent_ms, run.state.step),
        (before.spent_ms, before.step)
    );
    run.pass(1);
    assert_eq!(run.state.word(), "running");
    run.pass(40);
    assert_eq!(run.outcome(), Some(&Outcome::Promoted));
    // Neither is a hook begun, nor one that failed counted against it.
    let plan = self::plan(
        r#"{"strategy":"canary","steps":["hook x","5%"],"interval":"10s","progress_deadline":"30s"}"#,
    );
    let mut run = Run::new(&plan);
    run.pass_with(100, &frozen());
    assert!(run.world.hooks.is_empty());
    run.pass(1);
    assert_eq!(run.world.hooks.len(), 1);
}

#[test]
fn a_weight_that_takes_all_back_is_let_through_in_a_freeze() {
    let plan = plan(r#"{"strategy":"ab","split":"50%","duration":"5s"}"#);
    let mut run = Run::new(&plan);
    while run.state.step < 2 {
        run.pass(1);
    }
    assert_eq!(run.world.weights.len(), 1);
    run.pass_with(1, &frozen());
    assert_eq!(run.world.candidate(), Weight::ZERO);
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    // A raise is not.
    let plan = self::plan(CANARY);
    let mut run = Run::new(&plan);
    run.pass_with(10, &frozen());
    assert!(run.world.weights.is_empty());
}
