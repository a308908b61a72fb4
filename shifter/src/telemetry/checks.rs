//! Metrics of health checks.

use super::{
    metrics::{POOLS, each_backend, word},
    text::{
        Kind::{Counter, Gauge},
        Page,
    },
};
use crate::{
    model::BackendState,
    reconcile::controller::{BackendView, ServiceView},
};

/// Of backends that are checked.
pub(super) fn families(page: &mut Page, services: &[ServiceView]) {
    let mut family = page.family(
        "shifter_backend_checks_passed_total",
        Counter,
        "Health checks of a backend that passed, since the agent's start.",
    );
    each_backend(services, |backend, labels| {
        if let Some(checks) = &backend.checks {
            family.sample(&labels, checks.passed);
        }
    });
    let mut family = page.family(
        "shifter_backend_checks_failed_total",
        Counter,
        "Health checks of a backend that failed, by reason, since the agent's start.",
    );
    each_backend(services, |backend, [a, b, c]| {
        for (reason, count) in backend.checks.iter().flat_map(|checks| &checks.failures) {
            family.sample(&[a, b, c, ("reason", reason)], *count);
        }
    });
    let mut family = page.family(
        "shifter_backend_check_seconds",
        Gauge,
        "What the last health check of a backend took.",
    );
    each_backend(services, |backend, labels| {
        if let Some(checks) = backend
            .checks
            .as_ref()
            .filter(|c| c.passed + c.failed() > 0)
        {
            family.sample(&labels, checks.took.as_secs_f64());
        }
    });
    let mut family = page.family(
        "shifter_pool_backends_up",
        Gauge,
        "Backends of a pool with health checks that are ready and not down.",
    );
    for view in services.iter().filter(|view| view.spec.health.is_some()) {
        for pool in POOLS {
            let is_up = |backend: &&BackendView| {
                backend.pool == pool
                    && backend.spec.state == BackendState::Ready
                    && backend.health != "down"
            };
            let labels = [("service", view.spec.name.as_str()), ("pool", word(pool))];
            family.sample(&labels, view.backends.iter().filter(is_up).count());
        }
    }
}
