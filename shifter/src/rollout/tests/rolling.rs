//! A rolling update, with and without spares.

use super::*;

#[test]
fn a_rolling_update_takes_one_backend_at_a_time_and_waits_for_its_flows() {
    let plan = plan(r#"{"strategy":"rolling","drain_deadline":"1m"}"#);
    let mut run = Run::new(&plan);
    for number in 1..=3 {
        run.pass_with(10, &facts(5, Health::Up));
        assert_eq!(run.world.drained.len(), 1, "{number}");
        assert!(run.state.holding.is_none(), "flows are waited for");
        run.pass_with(2, &facts(0, Health::Up));
        assert!(run.state.holding.as_ref().unwrap().contains("update it"));
        run.tell(Event::Advance);
        run.pass_with(2, &facts(0, Health::Up));
    }
    run.pass_with(4, &facts(0, Health::Up));
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    assert!(run.world.drained.is_empty());
    assert_eq!(run.state.left_behind, 0);
}

#[test]
fn a_rolling_update_goes_on_at_the_deadline_and_counts_what_is_left() {
    let plan = plan(r#"{"strategy":"rolling","drain_deadline":"5s"}"#);
    let mut run = Run::new(&plan);
    run.pass_with(10, &facts(7, Health::Up));
    assert_eq!(run.state.left_behind, 7);
    assert!(run.state.holding.as_ref().unwrap().contains("update it"));
}

#[test]
fn a_backend_that_is_down_after_its_update_stays_drained_and_the_rest_comes_back() {
    let plan = plan(
        r#"{"strategy":"rolling","max_unavailable":2,"hook":"update","health_deadline":"5s"}"#,
    );
    let mut run = Run::new(&plan);
    run.pass_with(20, &facts(0, Health::Down));
    let Some(Outcome::RolledBack { reason }) = run.outcome() else {
        panic!("{:?}", run.state);
    };
    assert!(reason.contains("is down after its update"), "{reason}");
    assert!(
        reason.contains("10.0.0.11:80, 10.0.0.12:80 stays drained"),
        "{reason}"
    );
    assert_eq!(run.world.drained.len(), 2);
    assert_eq!(run.world.hooks.len(), 2);
}

#[test]
fn a_backend_that_no_check_has_told_of_since_its_update_is_waited_for() {
    let plan = plan(r#"{"strategy":"rolling","hook":"update","health_deadline":"5s"}"#);
    let mut run = Run::new(&plan);
    run.pass_with(5, &facts(0, Health::Awaited));
    assert_eq!((run.outcome(), run.world.drained.len()), (None, 1));
    run.pass_with(20, &facts(0, Health::Awaited));
    let Some(Outcome::RolledBack { reason }) = run.outcome() else {
        panic!("{:?}", run.state);
    };
    assert!(
        reason.contains("10.0.0.11:80 is not up by a check that began after its update"),
        "{reason}"
    );
}

#[test]
fn a_surge_brings_spares_in_and_takes_them_out_again() {
    let plan = plan(r#"{"strategy":"rolling","surge":1,"max_unavailable":0,"hook":"update"}"#);
    let spare: SocketAddr = "10.0.0.14:80".parse().unwrap();
    let mut run = Run::new(&plan);
    run.world.drained.insert(spare);
    let (mut brought_in, mut most) = (false, 0);
    for _ in 0..60 {
        run.pass_with(1, &facts(0, Health::Up));
        brought_in |= !run.world.drained.contains(&spare);
        most = most.max(run.world.drained.iter().filter(|b| **b != spare).count());
    }
    assert_eq!(run.outcome(), Some(&Outcome::Completed));
    assert!(brought_in && most == 1);
    assert_eq!(run.world.drained.iter().collect::<Vec<_>>(), [&spare]);
    assert_eq!(run.world.hooks.len(), 4);
    let mut run = Run::new(&plan);
    run.world.drained.insert(spare);
    run.pass_with(7, &facts(0, Health::Up));
    run.tell(Event::Abort { reason: "x".into() });
    assert!(run.world.drained.contains(&spare), "it only helped out");
}
