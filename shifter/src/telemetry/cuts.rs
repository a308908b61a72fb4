//! Flows that were ended on request, for metrics.

use super::text::{Kind::Counter, Page};
use crate::reconcile::controller::ServiceView;

/// Three samples for each service: it is 0 unless somebody asked.
pub(super) fn family(page: &mut Page, services: &[ServiceView]) {
    let mut family = page.family(
        "shifter_flows_ended_total",
        Counter,
        "Flows that shifter ended because it was asked to, by what for; by this agent.",
    );
    for view in services {
        for (cause, flows) in view.ended_flows {
            family.sample(&[("service", &view.spec.name), ("cause", cause)], flows);
        }
    }
}
