//! Canary, A/B and blue-green as their users mean them.

use super::*;

#[test]
fn a_canary_that_passes_is_promoted_step_by_step() {
    let plan = plan(CANARY);
    let mut run = Run::new(&plan);
    for _ in 0..60 {
        run.judge(judge::Outcome::Pass);
        run.pass(1);
    }
    assert_eq!(run.outcome(), Some(&Outcome::Promoted));
    let weights: Vec<String> = run.world.weights.iter().map(Weight::to_string).collect();
    assert_eq!(weights, ["5%", "25%"]);
    assert!(run.world.live_is_candidate);
}

#[test]
fn a_failed_judgement_rolls_back_at_once_and_paused_too() {
    let plan = plan(CANARY);
    for paused in [false, true] {
        let mut run = Run::new(&plan);
        run.pass(3);
        if paused {
            run.tell(Event::Pause);
        }
        run.judge(judge::Outcome::Fail);
        assert!(matches!(run.outcome(), Some(Outcome::RolledBack { .. })));
        assert_eq!(run.world.candidate(), Weight::ZERO);
        run.pass(100);
        assert_eq!(run.world.weights.len(), 1, "no weight after it");
    }
}

#[test]
fn doubt_holds_advances_or_rolls_back_as_it_is_told() {
    for (policy, at) in [
        ("hold", "holding"),
        ("advance", "promoted"),
        ("rollback", "rolled back"),
    ] {
        let gate =
            format!(r#"{{"judge":"sequential","on_no_data":"{policy}","on_error":"{policy}"}}"#);
        let json =
            format!(r#"{{"strategy":"canary","steps":["5%"],"interval":"3s","gates":[{gate}]}}"#);
        for outcome in [judge::Outcome::NoData, judge::Outcome::Error] {
            let plan = plan(&json);
            let mut run = Run::new(&plan);
            for _ in 0..20 {
                run.judge(outcome);
                run.pass(1);
            }
            assert_eq!(run.state.word(), at, "{policy} {outcome:?}");
        }
    }
}

#[test]
fn without_traffic_it_holds_says_why_and_goes_on_when_data_comes() {
    let plan = plan(CANARY);
    let mut run = Run::new(&plan);
    for _ in 0..30 {
        run.judge(judge::Outcome::NoData);
        run.pass(1);
    }
    assert_eq!(run.state.word(), "holding");
    assert!(
        run.state
            .holding
            .as_ref()
            .unwrap()
            .contains("no data: because")
    );
    run.judge(judge::Outcome::Pass);
    run.pass(1);
    assert_eq!(run.state.word(), "running");
    assert_eq!(run.state.step, 2);
}

#[test]
fn time_without_the_agent_counts_for_a_pause_and_not_for_an_analysis() {
    let json = r#"{"strategy":"canary","steps":["5%","pause 1m","25%"],"interval":"1m"}"#;
    let plan = plan(json);
    let mut run = Run::new(&plan);
    run.pass(2);
    assert_eq!(run.state.step, 1);
    run.now += 3_600 * SECOND;
    run.tell(Event::Tick(Facts::default()));
    assert_eq!(run.state.step, 1, "nobody has judged");
    run.pass(60);
    assert_eq!(run.state.step, 2);
    run.now += 3_600 * SECOND;
    run.tell(Event::Tick(Facts::default()));
    assert_eq!(run.state.step, 3);
}

#[test]
fn a_clock_that_goes_back_takes_no_time_away() {
    let plan = plan(r#"{"strategy":"canary","steps":["5%"],"interval":"10s"}"#);
    let mut run = Run::new(&plan);
    run.pass(5);
    let spent = run.state.spent_ms;
    run.now -= 1_000 * SECOND;
    run.tell(Event::Tick(Facts::default()));
    assert_eq!(run.state.spent_ms, spent);
    run.now += 1_000 * SECOND;
    run.pass(8);
    assert_eq!(run.outcome(), Some(&Outcome::Promoted));
}

#[test]
fn an_advance_leaves_any_step_and_a_promote_goes_to_the_end() {
    let plan = plan(r#"{"strategy":"cohort-first","steps":["5%"],"interval":"1h"}"#);
    let mut run = Run::new(&plan);
    run.pass(1_000);
    assert_eq!(run.world.candidate(), Weight::ZERO, "it waits until told");
    assert_eq!(run.state.step, 1);
    run.tell(Event::Advance);
    run.pass(2);
    assert_eq!(run.world.candidate().to_string(), "5%");
    run.tell(Event::Promote);
    run.pass(1);
    assert_eq!(run.outcome(), Some(&Outcome::Promoted));
}

#[test]
fn commands_that_make_no_sense_say_what_does() {
    let plan = plan(r#"{"strategy":"rolling"}"#);
    let mut run = Run::new(&plan);
    let refused = |run: &Run<'_>, event: Event| check(run.plan, &run.state, &event).unwrap_err();
    assert!(refused(&run, Event::Promote).contains("promotes nothing"));
    assert!(refused(&run, Event::Resume).contains("not paused"));
    run.tell(Event::Pause);
    assert!(refused(&run, Event::Pause).contains("paused already"));
    run.tell(Event::Abort { reason: "x".into() });
    assert!(refused(&run, Event::Pause).contains("is over (rolled back: x)"));
}

#[test]
fn a_canary_without_promotion_keeps_its_last_share() {
    let plan = plan(r#"{"strategy":"canary","steps":["5%"],"interval":"2s","promote":false}"#);
    let mut run = Run::new(&plan);
    run.pass(20);
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    assert_eq!(run.world.candidate().to_string(), "5%");
    assert!(!run.world.live_is_candidate);
}

#[test]
fn an_ab_test_gives_everything_back_and_promotes_nothing() {
    let plan = plan(r#"{"strategy":"ab","split":"50%","duration":"5s"}"#);
    let mut run = Run::new(&plan);
    run.pass(3);
    assert_eq!(run.world.candidate().to_string(), "50%");
    run.pass(20);
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    assert_eq!(run.world.candidate(), Weight::ZERO);
}

#[test]
fn an_ab_test_by_cohorts_alone_gives_no_share_and_takes_them_out_of_force_at_its_end() {
    for json in [
        r#"{"strategy":"ab","duration":"5s"}"#,
        r#"{"strategy":"ab","split":"0%","duration":"5s"}"#,
    ] {
        let plan = plan(json);
        let cohorts = |step| preset::cohorts_at(spec::Strategy::Ab, &plan, step);
        assert_eq!([cohorts(0), cohorts(2)], [Some(true), Some(false)]);
        let mut run = Run::new(&plan);
        run.pass(3);
        assert_eq!((run.world.candidate(), run.state.step), (Weight::ZERO, 1));
        assert!(run.state.wrote_weight, "the lease guards the cohorts");
        run.pass(20);
        assert_eq!(run.outcome(), Some(&Outcome::Completed));
    }
    let with_split = plan(r#"{"strategy":"ab","split":"50%","duration":"5s"}"#);
    assert_eq!(preset::cohorts_at(spec::Strategy::Ab, &with_split, 0), None);
}

#[test]
fn an_ab_test_needs_somebody_to_see_the_candidate() {
    let mut without = service();
    without.cohorts.clear();
    let of = |json: &str| preset::plan(&spec::from_json(json).unwrap(), &without);
    let refused = of(r#"{"strategy":"ab","split":"0%"}"#).unwrap_err();
    assert!(
        refused.to_string().contains("nobody would see"),
        "{refused}"
    );
    let half = of(r#"{"strategy":"ab","duration":"5s"}"#).unwrap();
    let mut run = Run::new(&half);
    run.pass(3);
    assert_eq!(run.world.candidate().to_string(), "50%");
}

#[test]
fn blue_green_switches_at_once_and_returns_at_once() {
    let plan = plan(r#"{"strategy":"blue-green","bake":"1m"}"#);
    let mut run = Run::new(&plan);
    run.pass(10);
    assert_eq!(run.world.candidate(), Weight::ONE);
    run.tell(Event::Abort {
        reason: "by hand".into(),
    });
    assert_eq!(run.world.candidate(), Weight::ZERO);
    let mut run = Run::new(&plan);
    run.pass(90);
    assert_eq!(run.outcome(), Some(&Outcome::Promoted));
}
