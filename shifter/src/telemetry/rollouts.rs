//! Metrics of rollouts: those under way, and figures over all that are over.

use super::text::{Kind::Gauge, Page};
use crate::{
    model::Weight,
    reconcile::{
        Controller,
        controller::{ControlError, RolloutView},
    },
};

/// Rollouts looked at; the newest of each service counts.
const LOOKED_AT: u32 = 1_000;
/// States that a rollout under way can have.
const STATES: [&str; 4] = ["running", "holding", "paused", "rolling back"];

/// Nothing is shown before the first rollout.
pub(super) fn families(page: &mut Page, controller: &dyn Controller) -> Result<(), ControlError> {
    let rollouts = controller.rollouts("", LOOKED_AT)?;
    let figures = controller.rollout_figures()?;
    if rollouts.is_empty() && figures.outcomes.is_empty() {
        return Ok(());
    }
    let running: Vec<&RolloutView> = rollouts.iter().filter(|r| !r.is_over).collect();
    let mut family = page.family(
        "shifter_rollout_state",
        Gauge,
        "1 for the state that a rollout under way is in.",
    );
    for rollout in &running {
        for state in STATES {
            let labels = [("service", rollout.service.as_str()), ("state", state)];
            family.sample(&labels, u8::from(rollout.state == state));
        }
    }
    let mut family = page.family(
        "shifter_rollout_step",
        Gauge,
        "Step that a rollout under way is in, from 1.",
    );
    for rollout in &running {
        family.sample(&[("service", &rollout.service)], rollout.step + 1);
    }
    let mut family = page.family(
        "shifter_rollout_weight_ratio",
        Gauge,
        "Share of the candidate that a rollout under way has set.",
    );
    for rollout in &running {
        let weight: Option<Weight> = rollout.weight.parse().ok();
        let labels = [("service", rollout.service.as_str())];
        family.sample(&labels, weight.map_or(0.0, Weight::share));
    }
    let mut family = page.family(
        "shifter_rollouts_ended",
        Gauge,
        "Rollouts that are over and still kept, by outcome.",
    );
    for (outcome, count) in &figures.outcomes {
        family.sample(&[("outcome", outcome)], count);
    }
    if figures.reported > 0 {
        let share = figures.without_interruption as f64 / figures.reported as f64;
        page.family(
            "shifter_rollouts_without_interruption_ratio",
            Gauge,
            "Share of rollouts in which shifter cut nothing and no new flow failed.",
        )
        .sample(&[], share);
    }
    if let Some(mean_ns) = figures.rollback_mean_ns {
        page.family(
            "shifter_rollout_rollback_mean_seconds",
            Gauge,
            "Mean time from the decision to roll back to the kernel.",
        )
        .sample(&[], mean_ns / 1e9);
    }
    Ok(())
}
