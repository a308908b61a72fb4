//! The figures of a report in words, the same in every form of it.

use super::{PoolReport, Report};

/// A time in ns with the unit that fits.
pub fn time(ns: f64) -> String {
    match ns.abs() {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        n if n < 1e6 => format!("{:.0} µs", ns / 1e3),
        n if n < 1e9 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.1} s", ns / 1e9),
    }
}

/// Seconds with the unit that fits.
pub fn span(seconds: f64) -> String {
    // Cut, not rounded: no minute has 60 seconds.
    match seconds as u64 {
        0..60 => format!("{:.1} s", (seconds * 10.0).floor() / 10.0),
        whole @ 60..3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        whole => format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60),
    }
}

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

/// `+1 min 05 s`: from the begin on.
pub fn since(report: &Report, at_unix_ms: i64) -> String {
    let seconds = (at_unix_ms - report.began_unix_ms) as f64 / 1e3;
    format!("+{}", span(seconds.max(0.0)))
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
        span(whole)
    )
}

fn ended(report: &Report) -> String {
    match &report.cut {
        Some(rate) => format!("{}, at {rate} after a rollback", report.ended_on_request),
        None => report.ended_on_request.to_string(),
    }
}

fn measured(ns: Option<f64>) -> String {
    ns.map_or("not measured".to_owned(), time)
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
            Some(seconds) => format!("{} after {what}", span(seconds)),
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
            Some(ns) if ns < 0 => format!("its last one began {} before", time(-ns as f64)),
            Some(ns) => time(ns as f64),
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
            span(report.exposure_s)
        ),
    ));
    figures.push((
        "progress, held, paused",
        format!(
            "{}, {}, {}",
            span(report.progress_s),
            span(report.holding_s),
            span(report.paused_s)
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
        let shown: Vec<String> = times.iter().flatten().map(|ns| time(*ns)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_sixty_seconds() {
        for (seconds, text) in [
            (5.25, "5.2 s"),
            (59.97, "59.9 s"),
            (119.7, "1 min 59 s"),
            (7_199.0, "1 h 59 min"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
