//! The machine under random events, restarts between any two effects, and clocks that
//! jump; and every strategy as its user means it.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    Action, BackendFacts, Effect, Event, Facts, Health, Outcome, Phase, Plan, State, check, notes,
    preset, spec, step,
};
use crate::{
    judge::{self, Judgement},
    model::{
        ServiceSpec, Weight,
        file::{Format, parse_services},
    },
};

const SECOND: i64 = 1_000;

fn service() -> ServiceSpec {
    let text = r#"
[[service]]
name = "web"
vip = "203.0.113.10:443/tcp"
[[service.cohort]]
name = "staff"
prefixes = ["10.9.0.0/16"]
[service.pools]
blue = ["10.0.0.11:80", "10.0.0.12:80", "10.0.0.13:80", { addr = "10.0.0.14:80", state = "drain" }]
green = ["10.0.1.11:80"]
"#;
    parse_services(text, "f", Format::Toml).unwrap().remove(0)
}

fn plan(json: &str) -> Plan {
    preset::plan(&spec::from_json(json).unwrap(), &service()).unwrap()
}

fn said(outcome: judge::Outcome) -> Judgement {
    Judgement {
        outcome,
        reason: "because".into(),
        statistics: vec![("share".into(), 0.02), ("none".into(), f64::NAN)],
    }
}

/// Carries effects out as the agent does: looks at what is there first.
#[derive(Default)]
struct World {
    weight: Option<Weight>,
    live_is_candidate: bool,
    drained: BTreeSet<SocketAddr>,
    /// Changes that were made, by the number of their effect.
    made: Vec<u64>,
    weights: Vec<Weight>,
    hooks: Vec<u64>,
    rolled_back: bool,
}

impl World {
    fn candidate(&self) -> Weight {
        self.weight.unwrap_or(Weight::ZERO)
    }

    /// Whether anything was changed.
    fn carry(&mut self, effect: &Effect) {
        let changed = match &effect.action {
            Action::Weight { candidate } => {
                let changed = self.candidate() != *candidate;
                self.weight = Some(*candidate);
                if changed {
                    self.weights.push(*candidate);
                }
                changed
            }
            Action::Promote => !std::mem::replace(&mut self.live_is_candidate, true),
            Action::Keep => false,
            Action::Drain { backend } => self.drained.insert(*backend),
            Action::Undrain { backend } => self.drained.remove(backend),
            Action::Hook { .. } => {
                self.hooks.push(effect.id);
                true
            }
            Action::Rollback { undrain, drain } => {
                let changed = self.candidate() != Weight::ZERO;
                self.weight = Some(Weight::ZERO);
                self.rolled_back = true;
                self.drained.retain(|b| !undrain.contains(b));
                self.drained.extend(drain);
                changed
            }
        };
        if changed {
            self.made.push(effect.id);
        }
    }
}

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

/// One rollout with its agent.
struct Run<'a> {
    plan: &'a Plan,
    state: State,
    world: World,
    now: i64,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            state: State::new(plan.gates.len(), 0),
            world: World::default(),
            now: 0,
        }
    }

    /// An event and everything that follows from it.
    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let (state, effects) = step(self.plan, self.state.clone(), event, self.now);
            self.state = state;
            for effect in effects {
                self.world.carry(&effect);
                events.push(Event::Done { id: effect.id });
            }
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.pass_with(seconds, &Facts::default());
    }

    fn pass_with(&mut self, seconds: i64, facts: &Facts) {
        for _ in 0..seconds {
            self.now += SECOND;
            self.tell(Event::Tick(facts.clone()));
        }
    }

    /// Right before the next tick, as the agent does.
    fn judge(&mut self, outcome: judge::Outcome) {
        let judgement = said(outcome);
        self.now += SECOND;
        self.tell(Event::Judged { gate: 0, judgement });
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.state.outcome()
    }
}

const CANARY: &str = r#"{"strategy":"canary","steps":["5%","25%"],"interval":"10s","gates":[{"judge":"sequential"}]}"#;

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

fn facts(flows: u64, health: Health) -> Facts {
    let backends = service().blue_pool.into_iter().map(|backend| BackendFacts {
        backend: backend.addr,
        flows,
        health,
    });
    Facts {
        flows: [flows, 0],
        backends: backends.collect(),
        frozen: None,
    }
}

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

#[test]
fn descriptions_are_refused_with_what_would_be_right() {
    for (json, part) in [
        (r#"{}"#, "lacks the key strategy"),
        (
            r#"{"strategy":"bluegreen"}"#,
            "is no strategy: write one of \"blue-green\"",
        ),
        (
            r#"{"strategy":"blue-green","steps":["5%"]}"#,
            "of the strategy \"blue-green\" has no key \"steps\"",
        ),
        (
            r#"{"strategy":"canary","step":["5%"]}"#,
            "did you mean \"steps\"?",
        ),
        (
            r#"{"strategy":"canary","steps":["5%","5%"]}"#,
            "is not more than 5% before it",
        ),
        (
            r#"{"strategy":"canary","steps":["5"]}"#,
            "is no step: write a share",
        ),
        (
            r#"{"strategy":"canary","steps":["pause 1"]}"#,
            "is no duration",
        ),
        (r#"{"strategy":"canary","steps":["drain x"]}"#, "drain x"),
        (
            r#"{"strategy":"canary","steps":["hook ../x"]}"#,
            "is no name of a hook",
        ),
        (
            r#"{"strategy":"canary","steps":[]}"#,
            "0 steps are out of range",
        ),
        (
            r#"{"strategy":"canary","steps":["5%"],"linear":"5%"}"#,
            "both say how the share grows",
        ),
        (
            r#"{"strategy":"canary","factor":2}"#,
            "goes with exponential only",
        ),
        (
            r#"{"strategy":"canary","linear":"100%"}"#,
            "leaves one of the pools without",
        ),
        (
            r#"{"strategy":"canary","interval":"0s"}"#,
            "out of range: write 1s to 30d",
        ),
        (
            r#"{"strategy":"canary","lease":"1s"}"#,
            "out of range: write 5s to 1d",
        ),
        (
            r#"{"strategy":"canary","promote":"yes"}"#,
            "write true or false",
        ),
        (
            r#"{"strategy":"rolling","max_unavailable":0}"#,
            "are both 0",
        ),
    ] {
        let error = spec::from_json(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn a_service_that_cannot_have_a_rollout_says_why() {
    let mut service = service();
    let refused = |json: &str, service: &ServiceSpec| {
        preset::plan(&spec::from_json(json).unwrap(), service)
            .unwrap_err()
            .to_string()
    };
    let canary = r#"{"strategy":"canary"}"#;
    assert!(refused(r#"{"strategy":"rolling","surge":2}"#, &service).contains("there are 1"));
    assert!(
        refused(r#"{"strategy":"rolling","max_unavailable":3}"#, &service)
            .contains("none of the 3 ready")
    );
    assert!(
        refused(
            r#"{"strategy":"canary","steps":["drain 10.9.9.9:80"]}"#,
            &service
        )
        .contains("write one of 10.0.0.11:80")
    );
    service.green = "5%".parse().unwrap();
    assert!(refused(canary, &service).contains("the weight is 5% already"));
    service.green = Weight::ZERO;
    service.green_pool.clear();
    assert!(refused(canary, &service).contains("green has no backend that is ready"));
}

#[test]
fn growths_rise_to_just_below_all() {
    let weights = |json: &str| -> Vec<String> {
        plan(json)
            .steps
            .iter()
            .filter_map(|step| match step {
                super::Step::Weight { candidate } => Some(candidate.to_string()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(
        weights(r#"{"strategy":"canary","linear":"25%"}"#),
        ["25%", "50%", "75%"]
    );
    assert_eq!(
        weights(r#"{"strategy":"canary","exponential":"10%","factor":3}"#),
        ["10%", "30%", "90%"]
    );
    assert_eq!(weights(r#"{"strategy":"canary","linear":"1/3"}"#).len(), 2);
}
