//! Whether cohorts are in force, for metrics.

use super::text::{Kind::Gauge, Page};
use crate::reconcile::controller::ServiceView;

/// A sample for each service that has cohorts.
pub(super) fn family(page: &mut Page, services: &[ServiceView]) {
    let mut family = page.family(
        "shifter_service_cohorts_on",
        Gauge,
        "1 where the service's cohorts are in force, 0 where they are suspended.",
    );
    for view in services.iter().filter(|view| !view.cohorts.is_empty()) {
        let on = u64::from(view.cohorts == "on");
        family.sample(&[("service", &view.spec.name)], on);
    }
}
