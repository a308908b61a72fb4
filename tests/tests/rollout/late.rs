//! A green that answers its handshake late, by more and by less than the least effect.
//! Both servers are behind one forwarder.

use std::time::Duration;

use serde_json::Value;
use shifter_tests::{
    agent::{Agent, Settings, number},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests::Requests, server, tunnel::Tunnel},
};

use super::{NAME, begin, report, service, text};

/// How a rollout that the sequential judge watches ends, and its report.
fn judged(late: Duration, interval: &str) -> (Option<i32>, Value) {
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let tunnel = Tunnel::behind(&lab, [Duration::ZERO, late]).unwrap();
    let at = Side::BOTH.map(|side| tunnel.at(side, 7_000));
    let _servers = Side::BOTH.map(|side| {
        let i = side as usize;
        server::start_at(&lab, &tunnel.inner[i], &[at[i]], side.identity()).unwrap()
    });
    let mut settings = Settings::hook("tc");
    settings.more += "watch_one_in = 1\n";
    let agent = Agent::start(&lab, settings).unwrap();
    let mut service = service(&lab);
    (service.blue, service.green) = (vec![at[0]], vec![at[1]]);
    agent.apply(&[service]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 300).unwrap();
    begin(
        &agent,
        &format!(
            r#"canary --steps 50% --interval {interval} --gates [{{"judge":"sequential","alpha":"0.1%"}}]"#
        ),
    );
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    let report = report(&agent);
    println!("{}\n{}", text(&watched), report["pools"]);
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    for pool in report["pools"].as_array().unwrap() {
        assert!(number(&pool["attempts"]) >= 100, "{report}");
    }
    (watched.status.code(), report)
}

#[test]
fn green_3_ms_later_is_noticed() {
    need!();
    let (code, report) = judged(Duration::from_millis(3), "60s");
    assert_eq!(code, Some(5), "{report}");
    let why = report["outcome_text"].as_str().unwrap();
    for part in [
        "gate \"sequential\" failed",
        "the candidate is worse: handshake: median of candidate",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!(report["outcome"], "rolled back");
    let [live, late] = [0, 1].map(|pool| report["pools"][pool]["handshake_ns"][0].as_f64());
    assert!(late.unwrap() - live.unwrap() > 2e6, "{report}");
}

#[test]
fn green_a_tenth_of_a_millisecond_later_is_no_alarm() {
    need!();
    let (code, report) = judged(Duration::from_micros(100), "8s");
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["outcome"], "promoted");
}
