//! Which backends of a service are offered new flows, given which are down.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::model::{BackendSpec, BackendState, OnPoolDown, PoolName, ServiceSpec};

/// A pool as health checks leave it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PoolHealth {
    /// It has a backend that takes new flows, or none that is ready.
    #[default]
    Carries,
    /// All that are ready are down: the other pool gets its new flows.
    GivesAway,
    /// All that are ready are down, and its new flows stay, as if none were checked.
    Holds,
}

/// What health checks make of a service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    /// Backends that get no new flows because they are down.
    pub out: BTreeSet<SocketAddr>,
    /// Of blue and green.
    pub pools: [PoolHealth; 2],
}

/// Applies `on_pool_down`. Where both pools are down, both hold: flows that go to
/// dead backends are no worse than flows that go nowhere, and it may be the check
/// that is wrong.
pub fn offer(spec: &ServiceSpec, down: &BTreeSet<SocketAddr>) -> Offer {
    let Some(health) = &spec.health else {
        return Offer::default();
    };
    let is_lost = |pool| {
        let mut ready = ready(spec.pool(pool)).peekable();
        ready.peek().is_some() && ready.all(|backend| down.contains(&backend.addr))
    };
    let has_up = |pool| ready(spec.pool(pool)).any(|backend| !down.contains(&backend.addr));
    let mut offer = Offer::default();
    for pool in [PoolName::Blue, PoolName::Green] {
        let pool_health = if !is_lost(pool) {
            PoolHealth::Carries
        } else if health.on_pool_down == OnPoolDown::Other && has_up(pool.other()) {
            PoolHealth::GivesAway
        } else {
            PoolHealth::Holds
        };
        offer.pools[pool.index()] = pool_health;
        let dead = spec.pool(pool).iter().map(|backend| backend.addr);
        let dead = dead.filter(|addr| down.contains(addr));
        if pool_health != PoolHealth::Holds {
            offer.out.extend(dead);
        }
    }
    offer
}

fn ready(pool: &[BackendSpec]) -> impl Iterator<Item = &BackendSpec> {
    pool.iter()
        .filter(|backend| backend.state == BackendState::Ready)
}

/// Backends of a pool that are ready and not down.
pub fn healthy(spec: &ServiceSpec, pool: PoolName, down: &BTreeSet<SocketAddr>) -> usize {
    ready(spec.pool(pool))
        .filter(|backend| !down.contains(&backend.addr))
        .count()
}

/// Backends of a pool that are ready.
pub fn ready_count(spec: &ServiceSpec, pool: PoolName) -> usize {
    ready(spec.pool(pool)).count()
}

#[cfg(test)]
mod tests {
    use super::{PoolHealth::*, *};
    use crate::model::file::{Format, parse_services};

    fn spec(on_pool_down: &str) -> ServiceSpec {
        let text = format!(
            r#"
            [[service]]
            name = "web"
            vip = "203.0.113.10:80/tcp"
            green = "50%"
            [service.pools]
            blue = ["10.0.0.1:80", "10.0.0.2:80", {{ addr = "10.0.0.3:80", state = "drain" }}]
            green = ["10.0.1.1:80"]
            [service.health]
            type = "tcp"
            on_pool_down = "{on_pool_down}""#
        );
        parse_services(&text, "f", Format::Toml).unwrap().remove(0)
    }

    /// Backends by their last two numbers: 01 is 10.0.0.1, 11 is 10.0.1.1.
    fn set(of: &[u8]) -> BTreeSet<SocketAddr> {
        of.iter()
            .map(|n| SocketAddr::from(([10, 0, n / 10, n % 10], 80)))
            .collect()
    }

    #[test]
    fn what_is_down_leaves_and_a_pool_without_any_gives_away_or_holds() {
        // (on_pool_down, down, out, pools)
        for (on, down, out, pools) in [
            ("other", &[][..], &[][..], [Carries, Carries]),
            ("other", &[1], &[1], [Carries, Carries]),
            ("other", &[1, 2], &[1, 2], [GivesAway, Carries]),
            ("other", &[11], &[11], [Carries, GivesAway]),
            ("other", &[1, 2, 11], &[], [Holds, Holds]),
            ("other", &[3], &[3], [Carries, Carries]),
            ("other", &[1, 2, 3], &[1, 2, 3], [GivesAway, Carries]),
            ("hold", &[1], &[1], [Carries, Carries]),
            ("hold", &[1, 2], &[], [Holds, Carries]),
            ("hold", &[1, 11], &[1], [Carries, Holds]),
            ("hold", &[1, 2, 11], &[], [Holds, Holds]),
        ] {
            let offer = offer(&spec(on), &set(down));
            assert_eq!(offer.out, set(out), "{on} {down:?}");
            assert_eq!(offer.pools, pools, "{on} {down:?}");
        }
    }

    #[test]
    fn a_pool_without_a_ready_backend_is_not_what_checks_have_brought_down() {
        let mut spec = spec("other");
        for backend in &mut spec.blue_pool {
            backend.state = BackendState::Drain;
        }
        let offer = offer(&spec, &set(&[1, 2, 3]));
        assert_eq!(offer.pools, [Carries, Carries]);
    }

    #[test]
    fn without_checks_nothing_is_out_whatever_was_down() {
        let mut spec = spec("other");
        spec.health = None;
        assert_eq!(offer(&spec, &set(&[1, 2])), Offer::default());
    }

    #[test]
    fn healthy_ones_are_ready_and_not_down() {
        let spec = spec("other");
        let count = |pool, down: &[u8]| healthy(&spec, pool, &set(down));
        assert_eq!(count(PoolName::Blue, &[]), 2);
        assert_eq!(count(PoolName::Blue, &[1, 3]), 1);
        assert_eq!(count(PoolName::Green, &[11]), 0);
        assert_eq!(ready_count(&spec, PoolName::Blue), 2);
    }
}
