//! Tests of the evidence: its expectation, exactly, over every outcome of a window.

use super::*;

/// Probability of each number of hits.
fn binomial(n: u64, theta: f64) -> Vec<f64> {
    let mut mass = vec![1.0];
    for _ in 0..n {
        let mut next = vec![0.0; mass.len() + 1];
        for (hits, p) in mass.iter().enumerate() {
            next[hits] += p * (1.0 - theta);
            next[hits + 1] += p * theta;
        }
        mass = next;
    }
    mass
}

fn expectation(pair: Pair, null: Null, delta: f64, star: (f64, f64), truth: (f64, f64)) -> f64 {
    let live = binomial(pair.live, truth.0);
    let candidate = binomial(pair.candidate, truth.1);
    let mut sum = 0.0;
    for (live_hits, p) in live.iter().enumerate() {
        for (candidate_hits, q) in candidate.iter().enumerate() {
            let pair = Pair {
                live_hits: live_hits as u64,
                candidate_hits: candidate_hits as u64,
                ..pair
            };
            sum += p * q * log_factor(pair, null, delta, star.0, star.1).exp();
        }
    }
    sum
}

#[test]
fn a_factor_expects_at_most_one_wherever_the_null_holds() {
    let shares = [0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99];
    let mut worst: f64 = 0.0;
    let mut bets = 0;
    for (live, candidate) in [(1, 1), (12, 3), (3, 12), (20, 20)] {
        let pair = Pair {
            live,
            candidate,
            ..Pair::default()
        };
        for null in [Null::NotWorse, Null::Worse] {
            for delta in [0.0, 0.005, 0.1] {
                for star in shares.iter().flat_map(|l| shares.map(|c| (*l, c))) {
                    for truth in shares.iter().flat_map(|l| shares.map(|c| (*l, c))) {
                        let holds = match null {
                            Null::NotWorse => truth.1 <= truth.0 + delta,
                            Null::Worse => truth.1 >= truth.0 + delta,
                        };
                        if holds {
                            let mean = expectation(pair, null, delta, star, truth);
                            worst = worst.max(mean);
                            bets += usize::from(mean != 1.0);
                        }
                    }
                }
            }
        }
    }
    assert!(worst <= 1.0 + 1e-6, "{worst}");
    assert!(bets > 1_000, "only {bets} bets against a null");
}

#[test]
fn a_factor_grows_where_the_alternative_holds() {
    let pair = Pair {
        live: 20,
        candidate: 20,
        ..Pair::default()
    };
    let star = (0.1, 0.5);
    assert!(expectation(pair, Null::NotWorse, 0.0, star, star) > 5.0);
    assert!(expectation(pair, Null::NotWorse, 0.005, star, star) > 5.0);
    assert!(expectation(pair, Null::Worse, 0.4, (0.5, 0.5), (0.5, 0.5)) > 5.0);
}

#[test]
fn stakes_and_what_is_kept_are_one_at_the_start_and_never_more_is_put_in() {
    let mut evidence = Evidence::new(1);
    let even = Pair {
        live: 10,
        live_hits: 0,
        candidate: 10,
        candidate_hits: 0,
    };
    for _ in 0..1_000 {
        // A bet that is no bet: the factor is 1.
        evidence.add(even, Null::NotWorse, 0.5, &[Bet::Equal]);
        let kept = 1.0 / (evidence.windows as f64 + 1.0);
        let all = evidence.stakes[0].0.exp() + kept;
        assert!(evidence.windows == 0 || (all - 1.0).abs() < 1e-9, "{all}");
    }
    assert!((evidence.peak() - 1.0).abs() < 1e-9);
}

#[test]
fn a_fault_that_begins_late_is_still_found() {
    let healthy = Pair {
        live: 90,
        live_hits: 1,
        candidate: 10,
        candidate_hits: 0,
    };
    let sick = Pair {
        candidate_hits: 3,
        ..healthy
    };
    let bets = [Bet::Above(0.1), Bet::AsBefore];
    let mut evidence = Evidence::new(2);
    for _ in 0..3_600 {
        evidence.add(healthy, Null::NotWorse, 0.005, &bets);
    }
    assert!(evidence.peak() < 3.0, "{}", evidence.peak());
    let mut windows = 0;
    while evidence.peak() < 40.0 && windows < 100 {
        evidence.add(sick, Null::NotWorse, 0.005, &bets);
        windows += 1;
    }
    assert!(windows <= 15, "{windows} windows");
}

#[test]
fn stored_evidence_is_the_same_to_the_last_bit() {
    let mut evidence = Evidence::new(2);
    for i in 0..50 {
        let pair = Pair {
            live: 70 + i,
            live_hits: i % 3,
            candidate: 11,
            candidate_hits: i % 2,
        };
        evidence.add(
            pair,
            Null::NotWorse,
            0.005,
            &[Bet::Above(0.01), Bet::AsBefore],
        );
        let text = serde_json::to_string(&evidence).unwrap();
        let again: Evidence = serde_json::from_str(&text).unwrap();
        assert_eq!(again, evidence);
    }
    let not_a_number = format!("[{}]", f64::NAN.to_bits());
    assert!(serde_json::from_str::<Vec<Exact>>(&not_a_number).is_err());
}
