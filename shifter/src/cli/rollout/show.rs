//! A rollout as a page.

use crate::model::duration;
use crate::{
    cli::{
        failure::Failure,
        screen::{Screen, Style},
    },
    proto::Rollout,
};

/// Prints it.
pub fn show(rollout: &Rollout, screen: &mut Screen<'_>) -> Result<(), Failure> {
    if screen.json() {
        return Ok(screen.json_value(rollout)?);
    }
    for line in lines(rollout, screen) {
        screen.line(&line)?;
    }
    Ok(())
}

fn lines(rollout: &Rollout, screen: &Screen<'_>) -> Vec<String> {
    let number = match rollout.id {
        0 => "a rollout".to_owned(),
        id => format!("rollout {id}"),
    };
    let style = match rollout.state.as_str() {
        "holding" | "rolling back" | "rolled back" => Style::Loud,
        _ => Style::Bold,
    };
    let mut lines = vec![format!(
        "{number} of {}: {}",
        rollout.service,
        screen.paint(style, &rollout.state)
    )];
    let mut say = |what: &str, text: String| lines.push(format!("  {what:<11} {text}"));
    let candidate = rollout.candidate();
    say(
        "strategy",
        format!("{}, candidate {}", rollout.strategy, candidate.word()),
    );
    if !rollout.why.is_empty() {
        say("why", rollout.why.clone());
    }
    say("weight", format!("{} of new flows", rollout.weight));
    if !rollout.over {
        let expected = match rollout.expected_seconds {
            0.0 => String::new(),
            expected => format!(" of {}", duration::about(expected)),
        };
        say(
            "in step",
            format!("{}{expected}", duration::about(rollout.spent_seconds)),
        );
        say("lease", duration::about(rollout.lease_seconds));
    }
    for gate in &rollout.gates {
        let verdict = match gate.verdict.as_str() {
            "" => "has not judged in this step",
            verdict => verdict,
        };
        let reason = match gate.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        say("gate", format!("{} {verdict}{reason}", gate.name));
    }
    for (index, step) in rollout.steps.iter().enumerate() {
        let number = index as u32 + 1;
        let mark = match number.cmp(&rollout.step) {
            _ if rollout.id == 0 => " ",
            std::cmp::Ordering::Less => "✓",
            std::cmp::Ordering::Equal if !rollout.over => "▸",
            _ => " ",
        };
        lines.push(format!("  {mark} {number:>3}  {step}"));
    }
    lines
}
