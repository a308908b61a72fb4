//! Tests of judges over many windows: what alarms, what does not, what is stored.

use super::*;
use crate::judge::{
    seeded::Random,
    simulate::{Behaviour, window},
    tests::read,
};

const GOOD: Behaviour = Behaviour {
    failures: 0.001,
    handshake_ns: 200_000.0,
    sigma: 0.4,
    delay_ns: 0.0,
};

/// Windows until the gate fails, of at most so many.
fn windows_to_fail(
    gate: &GateSpec,
    live: &Behaviour,
    candidate: &Behaviour,
    most: usize,
    seed: u64,
) -> Option<usize> {
    let mut random = Random(seed);
    let mut state = GateState::new(gate).unwrap();
    for i in 1..=most {
        state.add(gate, &window(live, candidate, 100, 0.1, &mut random));
        if state.judge(gate).outcome == Outcome::Fail {
            return Some(i);
        }
    }
    None
}

#[test]
fn resets_of_two_in_a_hundred_are_noticed() {
    let gate = &read(r#"[{ judge = "sequential" }]"#)[0];
    let bad = Behaviour {
        failures: 0.02,
        ..GOOD
    };
    let found: Vec<_> = (0..20)
        .map(|seed| windows_to_fail(gate, &GOOD, &bad, 600, seed))
        .collect();
    assert!(found.iter().all(Option::is_some), "{found:?}");
}

#[test]
fn three_milliseconds_later_are_noticed_and_a_tenth_is_not() {
    let gate = &read(r#"[{ judge = "sequential" }]"#)[0];
    // From a fast network to one whose buckets are milliseconds wide.
    for (median_ns, least_ns) in [
        (50_000.0, 3e6),
        (200_000.0, 3e6),
        (1e6, 3e6),
        (5e6, 3e6),
        (20e6, 8e6),
        (80e6, 30e6),
    ] {
        for sigma in [0.02, 0.2, 0.5] {
            let live = Behaviour {
                handshake_ns: median_ns,
                sigma,
                ..GOOD
            };
            let later = |delay_ns| Behaviour { delay_ns, ..live };
            let most = if sigma > 0.3 && median_ns > 1e7 {
                300
            } else {
                60
            };
            let noticed = windows_to_fail(gate, &live, &later(least_ns), most, 1);
            assert!(noticed.is_some(), "{median_ns} {sigma}");
            let alarm = windows_to_fail(gate, &live, &later(1e5), 300, 2);
            assert_eq!(alarm, None, "{median_ns} {sigma}");
            let alarm = windows_to_fail(gate, &live, &later(0.99e6), 300, 3);
            assert_eq!(alarm, None, "{median_ns} {sigma}");
        }
    }
}

#[test]
fn what_alarmed_once_goes_on_alarming() {
    let gate = &read(r#"[{ judge = "sequential" }]"#)[0];
    let mut random = Random(17);
    let mut state = GateState::new(gate).unwrap();
    let mut alarmed_at = None;
    for i in 0..400 {
        let failures = if i < 100 { 0.1 } else { 0.0 };
        let candidate = Behaviour { failures, ..GOOD };
        state.add(gate, &window(&GOOD, &candidate, 100, 0.2, &mut random));
        let is_alarm = state.judge(gate).outcome == Outcome::Fail;
        assert!(
            is_alarm || alarmed_at.is_none(),
            "{i}, after {alarmed_at:?}"
        );
        if is_alarm && alarmed_at.is_none() {
            alarmed_at = Some(i);
        }
    }
    assert!(alarmed_at.is_some());
}

#[test]
fn what_gets_worse_for_both_pools_alike_is_no_alarm() {
    let gate = &read(r#"[{ judge = "sequential" }]"#)[0];
    let mut random = Random(7);
    let mut state = GateState::new(gate).unwrap();
    for i in 0..400 {
        // The share of the candidate rises while everything goes bad.
        let both = Behaviour {
            failures: 0.001 + 0.0005 * f64::from(i),
            delay_ns: 20_000.0 * f64::from(i),
            ..GOOD
        };
        let weight = 0.05 + 0.002 * f64::from(i);
        state.add(gate, &window(&both, &both, 100, weight, &mut random));
        let it = state.judge(gate);
        assert_ne!(it.outcome, Outcome::Fail, "{i}: {}", it.reason);
    }
}

#[test]
fn no_traffic_is_no_data_and_a_pool_alone_is_too() {
    for gate in read(
        r#"[{ judge = "sequential" }, { judge = "threshold", failure_ratio_max = "1%" },
            { judge = "mann-whitney" }]"#,
    ) {
        let mut state = GateState::new(&gate).unwrap();
        assert_eq!(state.judge(&gate).outcome, Outcome::NoData);
        let mut random = Random(1);
        for _ in 0..10 {
            let one = window(&GOOD, &GOOD, 100, 0.0, &mut random);
            state.add(&gate, &one);
        }
        let it = state.judge(&gate);
        assert_eq!(it.outcome, Outcome::NoData, "{}", it.reason);
    }
}

#[test]
fn a_test_that_has_to_show_is_inconclusive_first_and_passes_with_enough_flows() {
    let gate = &read(r#"[{ judge = "sequential", pass_when = "shown" }]"#)[0];
    let mut random = Random(3);
    let mut state = GateState::new(gate).unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..1_500 {
        state.add(gate, &window(&GOOD, &GOOD, 100, 0.2, &mut random));
        let outcome = state.judge(gate).outcome;
        if outcomes.last() != Some(&outcome) {
            outcomes.push(outcome);
        }
    }
    let order = [Outcome::NoData, Outcome::Inconclusive, Outcome::Pass];
    assert_eq!(outcomes, order);
}

#[test]
fn failures_that_come_after_their_flows_are_counted_with_later_ones() {
    let gate = &read(r#"[{ judge = "sequential", measures = ["failures"] }]"#)[0];
    let mut state = GateState::new(gate).unwrap();
    let flows = |attempts, unanswered| PoolSignals {
        attempts,
        unanswered,
        ..PoolSignals::default()
    };
    for _ in 0..5 {
        let window = Window {
            live: flows(100, 0),
            candidate: flows(60, 0),
        };
        state.add(gate, &window);
    }
    for _ in 0..10 {
        // More failures than flows: those of windows ago.
        let window = Window {
            live: flows(100, 0),
            candidate: flows(3, 30),
        };
        state.add(gate, &window);
    }
    let it = state.judge(gate);
    assert_eq!(it.outcome, Outcome::Fail, "{}", it.reason);
}

#[test]
fn a_restart_at_every_window_changes_nothing() {
    for gate in read(
        r#"[{ judge = "sequential", measures = ["failures", "handshake", "first-byte"] },
            { judge = "threshold", failure_ratio_max = "1%" }, { judge = "mann-whitney" }]"#,
    ) {
        let mut random = Random(5);
        let mut state = GateState::new(&gate).unwrap();
        let mut restored = state.clone();
        for _ in 0..50 {
            let window = window(&GOOD, &GOOD, 80, 0.3, &mut random);
            state.add(&gate, &window);
            restored.add(&gate, &window);
            let text = restored.to_json().to_string();
            let json = serde_json::from_str(&text).unwrap();
            restored = GateState::from_json(&gate, &json).unwrap();
            assert_eq!(restored, state);
            assert_eq!(restored.judge(&gate), state.judge(&gate));
        }
    }
}

#[test]
fn a_state_of_another_gate_is_refused() {
    let gates = read(
        r#"[{ judge = "sequential" }, { judge = "sequential", name = "b", measures = ["failures"] },
            { judge = "mann-whitney" }]"#,
    );
    for (of, to) in [(0, 1), (0, 2), (2, 0), (1, 0)] {
        let json = GateState::new(&gates[of]).unwrap().to_json();
        let error = GateState::from_json(&gates[to], &json).unwrap_err();
        assert!(error.to_string().contains("begins anew"), "{error}");
    }
    let mut broken = GateState::new(&gates[0]).unwrap().to_json();
    broken["sequential"]["measures"][0]["failures"]["worse"]["stakes"] = serde_json::json!([]);
    assert!(GateState::from_json(&gates[0], &broken).is_err());
}

#[test]
fn where_the_live_pool_has_no_new_flows_nothing_is_compared_and_enough_samples_pass() {
    for text in [
        r#"[{ judge = "sequential", min_samples = 50 }]"#,
        r#"[{ judge = "mann-whitney", measure = "handshake", min_samples = 50 }]"#,
    ] {
        let gate = &read(text)[0];
        let mut random = Random(7);
        let mut state = GateState::new(gate).unwrap();
        let none = state.judge_alone(gate);
        assert_eq!(none.outcome, Outcome::NoData, "{text}: {}", none.reason);
        for _ in 0..10 {
            // The candidate has every flow.
            let all = window(&GOOD, &GOOD, 100, 1.0, &mut random);
            state.add(gate, &all);
        }
        assert_eq!(state.judge(gate).outcome, Outcome::NoData, "{text}");
        let alone = state.judge_alone(gate);
        assert_eq!(alone.outcome, Outcome::Pass, "{text}: {}", alone.reason);
        assert!(alone.reason.contains("no new flows"), "{}", alone.reason);
    }
    let gate = &read(r#"[{ judge = "threshold", failure_ratio_max = "1%" }]"#)[0];
    let mut random = Random(7);
    let mut state = GateState::new(gate).unwrap();
    let bad = Behaviour {
        failures: 0.2,
        ..GOOD
    };
    for _ in 0..10 {
        state.add(gate, &window(&GOOD, &bad, 100, 1.0, &mut random));
    }
    assert_eq!(state.judge_alone(gate).outcome, Outcome::Fail);
}
