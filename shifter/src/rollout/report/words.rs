//! The figures of a report in words, the same in every form of it.

use super::{PoolReport, Report};
use crate::model::duration::{about, short};

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0%".to_owned(),
        p if p < 0.01 => format!("{p:.4}%"),
        p if p < 1.0 => format!("{p:.2}%"),
        p => format!("{p:.1}%"),
    }
}

/// `+1m05s`: from the begin on.
pub fn since(report: &Report, at_unix_ms: i64) -> String {
    let seconds = (at_unix_ms - report.began_unix_ms) as f64 / 1e3;
    format!("+{}", about(seconds.max(0.0)))
}

/// The outcome as a sentence.
pub fn headline(report: &Report) -> String {
    let whole = (report.ended_unix_ms - report.began_unix_ms).max(0) as f64 / 1e3;
    let exposed = match report.exposure {
        Some(share) => format!(
            "{} had {} new flows, {} of all",
            report.candidate,
            report.exposed_flows,
            percent(share)
        ),
        None => "no new flow was counted".to_owned(),
    };
    format!(
        "{} rollout of {} to {}, {} after {}. {exposed}.",
        report.strategy,
        report.service,
        report.candidate,
        report.outcome_text,
        about(whole)
    )
}

fn ended(report: &Report) -> String {
    match &report.cut {
        Some(rate) => format!("{}, at {rate} after a rollback", report.ended_on_request),
        None => report.ended_on_request.to_string(),
    }
}

fn measured(ns: Option<f64>) -> String {
    ns.map_or("not measured".to_owned(), short)
}

/// What there is to say, as pairs of what and how much.
pub fn figures(report: &Report) -> Vec<(&'static str, String)> {
    let mut figures = vec![
        ("outcome", report.outcome_text.clone()),
        (
            "flows reset by shifter",
            format!(
                "{} (packets of the host that it dropped and established flows that it evicted meanwhile; it sends no RST unless asked to)",
                report.reset_by_shifter
            ),
        ),
    ];
    if report.cut.is_some() || report.ended_on_request > 0 {
        figures.push(("flows ended on request, so far", ended(report)));
    }
    if let Some(detection) = &report.detection {
        let after = |seconds: Option<f64>, what: &str| match seconds {
            Some(seconds) => format!("{} after {what}", about(seconds)),
            None => format!("no {what} before"),
        };
        figures.push((
            "time to detect",
            format!(
                "{}, {} ({} of {} flows of {} had failed)",
                after(detection.after_first_failure_s, "its first failure"),
                after(detection.after_first_flow_s, "its first flow"),
                detection.failures,
                detection.attempts,
                report.candidate
            ),
        ));
        let times = &report.rollback;
        figures.push((
            "decided → programmed",
            measured(times.programmed_ns.map(|ns| ns as f64)),
        ));
        figures.push((
            "decided → first new flow",
            measured(times.first_flow_ns.map(|ns| ns as f64)),
        ));
        let last = match times.last_candidate_flow_ns {
            Some(ns) if ns < 0 => format!("its last one began {} before", short(-ns as f64)),
            Some(ns) => short(ns as f64),
            None => "not measured".to_owned(),
        };
        figures.push(("decided → no new flow on the candidate", last));
        if let Some(after) = times.candidate_flows_after {
            figures.push((
                "flows of the candidate chosen afterwards",
                after.to_string(),
            ));
        }
    }
    figures.push((
        "exposure",
        format!(
            "{} flows, {}; {} at 100% would be the same",
            report.exposed_flows,
            report.exposure.map_or("no share known".to_owned(), percent),
            about(report.exposure_s)
        ),
    ));
    figures.push((
        "progress, held, paused",
        format!(
            "{}, {}, {}",
            about(report.progress_s),
            about(report.holding_s),
            about(report.paused_s)
        ),
    ));
    figures.push((
        "flows still on the pool without new ones, at the end",
        report.undrained_flows.to_string(),
    ));
    figures.push((
        "flows left when a wait for a drain was over",
        report.left_behind.to_string(),
    ));
    if let Some(why) = &report.unmeasured {
        figures.push(("not measured", why.clone()));
    }
    figures.push((
        "begun by",
        match report.reason.as_str() {
            "" => report.actor.clone(),
            reason => format!("{}: {reason}", report.actor),
        },
    ));
    figures
}

/// The cells of a pool's row.
pub fn pool_cells(report: &Report, pool: &PoolReport) -> Vec<String> {
    let role = match pool.pool == report.candidate {
        true => "candidate",
        false => "other",
    };
    let share = match (pool.failure_share, pool.failure_interval) {
        (Some(share), Some([low, high])) => {
            format!("{} ({} to {})", percent(share), percent(low), percent(high))
        }
        _ => "no flows".to_owned(),
    };
    let times = |times: &[Option<f64>; 3]| -> String {
        let shown: Vec<String> = times.iter().flatten().map(|ns| short(*ns)).collect();
        match shown.is_empty() {
            true => "no data".to_owned(),
            false => shown.join(", "),
        }
    };
    vec![
        format!("{} ({role})", pool.pool),
        pool.attempts.to_string(),
        pool.failures.to_string(),
        share,
        times(&pool.handshake_ns),
        times(&pool.first_byte_ns),
    ]
}
