//! The answer to a write on one service: receipt, the four numbers, the dead-man.

use crate::model::duration;
use serde::Serialize;

use crate::proto::{DeadMan, Receipt, Service, Weights};

use super::{
    EXIT_DONE,
    client::Client,
    failure::Failure,
    screen::{Screen, Style},
    text,
};

/// A receipt beside the service as it stands.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    receipt: Receipt,
    weights: Option<Weights>,
    dead_man: Option<DeadMan>,
}

/// Prints a receipt with what the service's weight is now. The service is read
/// once more; where that fails the receipt is printed all the same.
pub(super) async fn print(
    receipt: Receipt,
    client: &Client,
    screen: &mut Screen<'_>,
) -> Result<u8, Failure> {
    let service = match client.read(Some(&receipt.service)).await {
        Ok(services) => services.into_iter().next(),
        Err(failure) => {
            screen.message(&format!("the four numbers could not be read: {failure}"));
            None
        }
    };
    if screen.json() {
        let service = service.unwrap_or_default();
        screen.json_value(&Answer {
            receipt,
            weights: service.weights,
            dead_man: service.dead_man,
        })?;
    } else {
        for line in lines(&receipt, service.as_ref(), screen) {
            screen.line(&line)?;
        }
    }
    Ok(EXIT_DONE)
}

fn lines(receipt: &Receipt, service: Option<&Service>, screen: &Screen<'_>) -> Vec<String> {
    let name = &receipt.service;
    let share = text::percent(receipt.green_share);
    let mut lines = vec![match receipt.unchanged {
        true => format!(
            "{name}: unchanged, {share} of new flows go to green, generation {}",
            receipt.generation
        ),
        false => format!(
            "{name}: {share} of new flows go to green, generation {}",
            receipt.generation
        ),
    }];
    let weights = service.and_then(|service| service.weights.as_ref());
    let mut say = |what: &str, text: String| lines.push(format!("  {what:<11} {text}"));
    if !receipt.unchanged {
        let moved = text::percent(receipt.moved_share);
        say("moved", format!("{moved} of the hash space"));
    }
    if let Some(weights) = weights {
        say("configured", weights.configured.clone());
    }
    say("programmed", programmed(receipt, weights));
    if let Some(first) = &receipt.first_flow {
        let after = duration::short(first.after_ns as f64);
        say("first flow", format!("after {after}"));
    }
    if let Some(weights) = weights {
        let observed = weights.observed.unwrap_or_default();
        say("observed", text::observed(&observed));
        say("carried", text::carried(weights));
    }
    if let Some(dead_man) = service.and_then(|service| service.dead_man.as_ref()) {
        let keep = match dead_man.passed {
            true => String::new(),
            false => format!(" unless `shifter confirm {name}` keeps the weight"),
        };
        say("dead-man", format!("{}{keep}", text::dead_man(dead_man)));
    }
    for warning in &receipt.warnings {
        lines.push(format!(
            "{} {warning}",
            screen.paint(Style::Loud, "warning:")
        ));
    }
    lines
}

fn programmed(receipt: &Receipt, weights: Option<&Weights>) -> String {
    let share = weights.map_or(receipt.green_share, |weights| weights.programmed_share);
    let share = text::percent(share);
    match receipt.unchanged {
        true => share,
        false => format!(
            "{share} in {}, answered in {}",
            duration::short(receipt.programmed_ns as f64),
            duration::short(receipt.total_ns as f64)
        ),
    }
}
