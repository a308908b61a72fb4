//! Random events, restarts between any two effects, and clocks that jump.

use super::*;

/// SplitMix64, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

fn random_event(random: &mut Random, run: &Run<'_>) -> Event {
    let outcome = |random: &mut Random| match random.next(40) {
        0 => judge::Outcome::Fail,
        1..4 => judge::Outcome::Inconclusive,
        4..7 => judge::Outcome::NoData,
        7..9 => judge::Outcome::Error,
        _ => judge::Outcome::Pass,
    };
    match random.next(60) {
        0 => Event::Pause,
        1 => Event::Resume,
        2 if random.next(2) == 0 => Event::Retry,
        2 => Event::Advance,
        3 if random.next(8) == 0 => Event::Promote,
        4 if random.next(8) == 0 => Event::Abort {
            reason: "by hand".into(),
        },
        5 if random.next(8) == 0 => Event::TakenBack {
            reason: "the lease".into(),
        },
        6 => Event::Done {
            id: random.next(30) + 1_000,
        },
        7..30 => Event::Judged {
            gate: random.next(2) as usize,
            judgement: said(outcome(random)),
        },
        _ => {
            let health = match random.next(12) {
                0 => Health::Down,
                1..4 => Health::Unknown,
                _ => Health::Up,
            };
            let _ = run;
            Event::Tick(facts(random.next(3), health))
        }
    }
}

/// What must hold whatever happens.
fn check_invariants(run: &Run<'_>, was: &State, seed: u64) {
    if matches!(was.phase, Phase::RollingBack { .. } | Phase::Over { .. }) {
        assert!(
            matches!(
                run.state.phase,
                Phase::RollingBack { .. } | Phase::Over { .. }
            ),
            "seed {seed}: it went on after its rollback"
        );
    }
    if let Phase::Over { outcome } = &was.phase {
        assert_eq!(
            run.state.outcome(),
            Some(outcome),
            "seed {seed}: one outcome"
        );
    }
    let mut once = run.world.made.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(
        once.len(),
        run.world.made.len(),
        "seed {seed}: an effect was made twice"
    );
    if run.world.rolled_back {
        assert_eq!(
            run.world.candidate(),
            Weight::ZERO,
            "seed {seed}: weight after a rollback"
        );
        assert!(
            !run.world.live_is_candidate || run.state.outcome().is_none(),
            "seed {seed}"
        );
    }
}

/// The agent is killed before the effect, between effect and result, or not at all.
fn carry_with_kills(run: &mut Run<'_>, random: &mut Random, event: Event) {
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        let (state, effects) = step(run.plan, run.state.clone(), event, run.now);
        // What is stored is all that a restart knows.
        let stored = serde_json::to_string(&state).unwrap();
        run.state = serde_json::from_str(&stored).unwrap();
        assert_eq!(run.state, state);
        for effect in effects {
            assert_eq!(
                run.state.pending.as_ref(),
                Some(&effect),
                "asked for and not stored"
            );
            let kill = random.next(4);
            let is_hook = matches!(effect.action, Action::Hook { .. });
            if kill == 0 {
                // Before it was carried out: the next agent finds it pending.
            } else {
                run.world.carry(&effect);
            }
            if kill <= 1 {
                if is_hook {
                    let reason = "nobody knows".to_owned();
                    events.push(Event::Failed {
                        id: effect.id,
                        reason,
                    });
                    continue;
                }
                run.world.carry(&effect);
            } else if kill == 2 && random.next(4) == 0 && !is_hook {
                continue_later(run, &effect);
            }
            events.push(Event::Done { id: effect.id });
        }
    }
}

/// The result comes after more time has passed: nothing else is asked for meanwhile.
fn continue_later(run: &mut Run<'_>, effect: &Effect) {
    for _ in 0..3 {
        run.now += SECOND;
        let tick = Event::Tick(facts(0, Health::Up));
        let (state, effects) = step(run.plan, run.state.clone(), tick, run.now);
        let superseded = state.pending.as_ref() != Some(effect);
        if superseded {
            // Its progress deadline has passed: the rollback goes first.
            run.state = state;
            for effect in effects {
                run.world.carry(&effect);
            }
            return;
        }
        assert!(effects.is_empty(), "asked for twice at once");
        run.state = state;
    }
}

#[test]
fn whatever_happens_effects_are_made_once_and_it_ends_in_one_outcome() {
    let plans = [
        plan(
            r#"{"strategy":"canary","steps":["5%","pause 3s","25%","drain 10.0.0.12:80","hook x","undrain 10.0.0.12:80","50%"],"interval":"3s","bake":"2s","progress_deadline":"40s","gates":[{"judge":"sequential"},{"judge":"sequential","name":"b","on_no_data":"advance","on_error":"rollback"}]}"#,
        ),
        plan(
            r#"{"strategy":"canary","exponential":"1%","factor":4,"interval":"2s","promote":false}"#,
        ),
        plan(r#"{"strategy":"canary","linear":"30%","interval":"2s"}"#),
        plan(r#"{"strategy":"blue-green","bake":"5s","gates":[{"judge":"sequential"}]}"#),
        plan(r#"{"strategy":"ab","split":"1/2","duration":"5s"}"#),
        plan(r#"{"strategy":"ab","duration":"5s"}"#),
        plan(r#"{"strategy":"cohort-first","steps":["5%"],"interval":"2s"}"#),
        plan(
            r#"{"strategy":"rolling","surge":1,"max_unavailable":1,"drain_deadline":"3s","health_deadline":"3s"}"#,
        ),
        plan(
            r#"{"strategy":"rolling","hook":"x","on_hook_error":"rollback","drain_deadline":"3s"}"#,
        ),
    ];
    let mut ended = std::collections::BTreeMap::<&str, u32>::new();
    for seed in 0..320u64 {
        let mut random = Random(seed);
        let plan = &plans[(seed % plans.len() as u64) as usize];
        let mut run = Run::new(plan);
        for _ in 0..250 {
            run.now += random.next(3) as i64 * SECOND;
            if random.next(50) == 0 {
                run.now -= 30 * SECOND;
            }
            let event = random_event(&mut random, &run);
            let was = run.state.clone();
            carry_with_kills(&mut run, &mut random, event);
            check_invariants(&run, &was, seed);
        }
        // Left alone, with a person who advances, it comes to its end.
        for _ in 0..400 {
            if run.outcome().is_some() {
                break;
            }
            for gate in 0..2 {
                run.tell(Event::Judged {
                    gate,
                    judgement: said(judge::Outcome::Pass),
                });
            }
            run.tell(Event::Resume);
            run.pass_with(1, &facts(0, Health::Up));
            let waits = run.state.holding.is_some();
            if waits {
                run.tell(Event::Advance);
            }
        }
        let word = run
            .outcome()
            .unwrap_or_else(|| panic!("seed {seed}: {:?}", run.state))
            .word();
        *ended.entry(word).or_default() += 1;
    }
    for word in ["promoted", "completed", "rolled back"] {
        assert!(
            ended.get(word).is_some_and(|count| *count > 20),
            "{ended:?}"
        );
    }
}
