//! How often judges alarm where they may not, and how soon where they must: asserted
//! in short, printed at length.

use super::{
    GateSpec, GateState, Outcome, normal,
    seeded::Random,
    simulate::{Behaviour, window},
    tests::read,
};

const LIVE: Behaviour = Behaviour {
    failures: 0.002,
    handshake_ns: 400_000.0,
    sigma: 0.5,
    delay_ns: 0.0,
};
/// Flows a window, of both pools together, and windows a rollout.
const FLOWS: u64 = 50;
const WINDOWS: u64 = 200;
const SEQUENTIAL: &str = r#"[{ judge = "sequential" }]"#;

/// What alarmed once goes on alarming: a look now and then misses none.
const SELDOM: u64 = 20;

/// Simulated rollouts: the window and the candidate's flows so far at each alarm.
fn alarms(
    gate: &GateSpec,
    candidate: &Behaviour,
    weight: f64,
    windows: u64,
    runs: u64,
    look_every: u64,
) -> Vec<(u64, u64)> {
    let mut alarms = Vec::new();
    for run in 0..runs {
        let mut random = Random(run.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let mut state = GateState::new(gate).unwrap();
        let mut flows = 0;
        for i in 1..=windows {
            let window = window(&LIVE, candidate, FLOWS, weight, &mut random);
            flows += window.candidate.attempts;
            state.add(gate, &window);
            if i % look_every == 0 && state.judge(gate).outcome == Outcome::Fail {
                alarms.push((i, flows));
                break;
            }
        }
    }
    alarms
}

/// More alarms than this happen once in a thousand series of `runs` at `alpha`.
fn bound(runs: u64, alpha: f64) -> f64 {
    let mean = runs as f64 * alpha;
    mean + normal::quantile_above(0.001) * (mean * (1.0 - alpha)).sqrt() + 0.5
}

#[test]
fn a_thousand_rollouts_of_equal_pools_alarm_no_oftener_than_alpha() {
    let gate = &read(SEQUENTIAL)[0];
    let alarms = alarms(gate, &LIVE, 0.2, WINDOWS, 1_000, SELDOM).len();
    assert!(alarms as f64 <= bound(1_000, 0.05), "{alarms}");
}

#[test]
fn a_thousand_rollouts_at_the_border_of_what_is_allowed_alarm_no_oftener_than_alpha() {
    // Each is worse by just the least effect: what is hardest to tell.
    let border = Behaviour {
        failures: LIVE.failures + 0.005,
        delay_ns: 1e6,
        ..LIVE
    };
    let gate = &read(SEQUENTIAL)[0];
    let alarms = alarms(gate, &border, 0.2, WINDOWS, 1_000, SELDOM).len();
    assert!(alarms as f64 <= bound(1_000, 0.05), "{alarms}");
    // Without an allowance the same pools differ.
    let gate = &read(
        r#"[{ judge = "sequential", min_effect = { ratio = "0%", time = "0ms", time_relative = "0%" } }]"#,
    )[0];
    let alarms = self::alarms(gate, &border, 0.2, 60, 50, 1).len();
    assert_eq!(alarms, 50);
}

#[test]
fn equal_pools_alarm_no_oftener_than_alpha_without_an_allowance() {
    let gate = &read(
        r#"[{ judge = "sequential", min_effect = { ratio = "0%", time = "0ms", time_relative = "0%" } }]"#,
    )[0];
    let alarms = alarms(gate, &LIVE, 0.5, WINDOWS, 500, SELDOM).len();
    assert!(alarms as f64 <= bound(500, 0.05), "{alarms}");
}

#[test]
fn large_faults_are_always_found_and_soon() {
    let gate = &read(SEQUENTIAL)[0];
    for candidate in [
        Behaviour {
            failures: 0.05,
            ..LIVE
        },
        Behaviour {
            delay_ns: 3e6,
            ..LIVE
        },
    ] {
        let found = alarms(gate, &candidate, 0.1, WINDOWS, 50, 1);
        assert_eq!(found.len(), 50, "{candidate:?}");
    }
}

/// The tables of docs/judges.md: `cargo test --release -p shifter --lib
/// tables_of_the_documentation -- --nocapture`, which takes minutes. A build for tests
/// does a few runs of each case.
#[test]
fn tables_of_the_documentation() {
    let gate = &read(SEQUENTIAL)[0];
    let runs = if cfg!(debug_assertions) { 4 } else { 1_000 };
    println!("| candidate | weight | alarms | median flows | 95% | median time |");
    println!("|---|---|---|---|---|---|");
    let worse = |points: f64| Behaviour {
        failures: LIVE.failures + points / 100.0,
        ..LIVE
    };
    let later = |ms: f64| Behaviour {
        delay_ns: ms * 1e6,
        ..LIVE
    };
    let mut cases = vec![("as live".to_owned(), LIVE)];
    for points in [0.5, 1.0, 2.0, 5.0, 20.0, 99.0] {
        cases.push((format!("{points} points more failures"), worse(points)));
    }
    for ms in [0.1, 1.0, 1.5, 2.0, 3.0, 10.0] {
        cases.push((format!("handshakes {ms} ms later"), later(ms)));
    }
    for (name, candidate) in cases {
        for weight in [0.05, 0.1, 0.5] {
            let found = alarms(gate, &candidate, weight, 600, runs, 1);
            let share = found.len() as f64 / runs as f64 * 100.0;
            if candidate.failures > LIVE.failures + 0.1 {
                assert_eq!(found.len() as u64, runs, "{name} is always found");
            }
            let mut flows: Vec<u64> = found.iter().map(|(_, flows)| *flows).collect();
            let mut windows: Vec<u64> = found.iter().map(|(windows, _)| *windows).collect();
            flows.sort_unstable();
            windows.sort_unstable();
            let at = |sorted: &[u64], q: f64| {
                let last = sorted.len().saturating_sub(1) as f64;
                sorted
                    .get((q * last).round() as usize)
                    .map_or("-".to_owned(), u64::to_string)
            };
            println!(
                "| {name} | {}% | {share:.1}% | {} | {} | {} s |",
                weight * 100.0,
                at(&flows, 0.5),
                at(&flows, 0.95),
                at(&windows, 0.5),
            );
        }
    }
}
