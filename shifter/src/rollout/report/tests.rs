//! Reports of a made-up rollout: figures, and every form of them.

use super::*;
use crate::{
    model::{
        PoolName,
        file::{Format, parse_services},
    },
    rollout::{Event, Facts as TickFacts, preset, spec, step},
};

/// Ten minutes: 5% for five, then 25%, in whose second minute green breaks.
pub fn report() -> Report {
    let text = "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n[service.pools]\nblue = [\"10.0.0.11:80\"]\ngreen = [\"10.0.1.11:80\"]\n";
    let service = parse_services(text, "f", Format::Toml).unwrap().remove(0);
    let json = r#"{"strategy":"canary","steps":["5%","25%"],"interval":"5m","gates":[{"judge":"sequential"}]}"#;
    let spec = spec::from_json(json).unwrap();
    let plan = preset::plan(&spec, &service).unwrap();
    let state = State::new(1, 0);
    let abort = Event::Abort {
        reason: "gate \"sequential\" failed: green fails 10.2% <b>".into(),
    };
    let (state, _) = step(&plan, state, Event::Tick(TickFacts::default()), 1_000);
    let (state, effects) = step(&plan, state, abort, 420_000);
    let (mut state, _) = step(&plan, state, Event::Done { id: effects[0].id }, 420_001);
    state.cut_before = 7;
    let mut windows = Vec::new();
    for second in 1..=420u64 {
        let weight = if second <= 300 { "5%" } else { "25%" };
        let green = if second <= 300 { 5 } else { 25 };
        let mut signals = <[PoolSignals; 2]>::default();
        signals[0].attempts = 100 - green + second % 7;
        signals[1].attempts = green + second % 2;
        signals[1].resets_before_data = u64::from(second > 360) * (2 + second % 2);
        for (pool, count) in [(0, 40), (1, 10)] {
            let bucket = 20 + (second % 3) as usize + 4 * pool * usize::from(second > 360);
            signals[pool].handshake.0[bucket] = count;
            signals[pool].handshake.0[bucket + 12] = 1;
            signals[pool].first_byte.0[40] = count;
        }
        windows.push(Window {
            at_unix_ms: 1_000_000 + second as i64 * 1_000,
            ms: 1_000,
            step: usize::from(second > 300) * 2 + 1,
            weight: weight.into(),
            signals,
            flows: [300, 3 * green],
        });
    }
    let note = |at: i64, kind: &str, text: &str| Happened {
        at_unix_ms: 1_000_000 + at * 1_000,
        kind: kind.into(),
        text: text.into(),
    };
    let notes = [
        note(0, "weight", "green has 5% of new flows"),
        note(0, "step", "step 2 of 5: analyse for 5m"),
        note(100, "paused", "paused"),
        note(130, "resumed", "resumed"),
        note(200, "holding", "gate \"sequential\": no data"),
        note(210, "goes on", "it goes on"),
        note(300, "weight", "green has 25% of new flows"),
        note(300, "step", "step 4 of 5: analyse for 5m"),
        note(
            420,
            "rolling back",
            "gate \"sequential\" failed: green fails 10.2% <b>",
        ),
        note(420, "over", "rolled back"),
    ];
    Report::new(&Facts {
        id: 7,
        service: "web",
        spec: &spec,
        plan: &plan,
        state: &state,
        actor: "uid 0 pid 1",
        reason: "release 7",
        began_unix_ms: 1_000_000,
        ended_unix_ms: 1_420_010,
        notes: &notes,
        windows: &windows,
        times: RollbackTimes {
            programmed_ns: Some(214_000),
            first_flow_ns: Some(3_100_000),
            last_candidate_flow_ns: Some(-8_000_000),
            candidate_flows_after: Some(0),
        },
        cut_now: 7,
        ended_now: 0,
    })
}

#[test]
fn a_report_says_what_was_counted() {
    let report = report();
    assert_eq!(
        (report.outcome.as_str(), report.reset_by_shifter),
        ("rolled back", 0)
    );
    assert_eq!((report.paused_s, report.holding_s), (30.0, 10.0));
    assert!((report.progress_s - 380.01).abs() < 0.001);
    assert!((report.exposure_s - (300.0 * 0.05 + 120.0 * 0.25)).abs() < 1e-6);
    let green = &report.pools[PoolName::Green.index()];
    assert_eq!(green.failures, 60 * 2 + 30);
    let [low, high] = green.failure_interval.unwrap();
    let share = green.failure_share.unwrap();
    assert!(low < share && share < high, "{low} {share} {high}");
    assert_eq!(report.pools[0].failures, 0);
    let detection = report.detection.unwrap();
    assert_eq!(detection.after_first_failure_s, Some(59.0));
    assert_eq!(detection.failures, green.failures);
    assert_eq!(report.undrained_flows, 75);
    assert!(report.points.len() <= POINTS);
    let seen: u64 = report.points.iter().map(|point| point.attempts[1]).sum();
    assert_eq!(seen, green.attempts);
}

#[test]
fn every_form_has_the_figures_and_html_is_whole_and_safe() {
    let report = report();
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    let (markdown, html) = (report.markdown(), report.html());
    // Times may differ in their last bit.
    assert_eq!(
        (again.markdown(), again.html()),
        (markdown.clone(), html.clone())
    );
    for part in [
        "214 µs",
        "3.1 ms",
        "8.0 ms before",
        "2.7",
        "flows reset by shifter",
    ] {
        assert!(markdown.contains(part) && html.contains(part), "{part}");
    }
    assert!(!html.contains("10.2% <b>"), "escaped");
    assert_eq!(html.matches("<svg").count(), 5);
    for foreign in ["<script", "http:", "https:", "@import", "url("] {
        assert!(!html.contains(foreign), "{foreign}");
    }
}

#[test]
fn without_windows_it_says_so() {
    let mut report = report();
    report.points.clear();
    report.unmeasured = Some("no window of signals was stored".into());
    assert!(report.html().contains("No plots: no window"));
}
