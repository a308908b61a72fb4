//! What health checks have said of every backend.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use super::{
    entry::Entry,
    reconciler::{Reconciler, lock},
};
use crate::health::{Checked, Look, probe::Outcome, state::Health};

/// What the checks of one backend have said.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Standing {
    pub health: Health,
    /// By the wall clock; 0: before this agent began to check.
    pub since_unix_ms: i64,
    /// Of the last check, where it failed.
    pub reason: String,
    pub passed: u64,
    /// When the last check that passed began, by the clock of the boot; 0: none has.
    pub passed_began_ns: u64,
    /// By kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// What the last check took.
    pub took: Duration,
}

impl Standing {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Of every backend of every service with checks.
#[derive(Default)]
pub(super) struct Board {
    services: HashMap<String, HashMap<SocketAddr, Standing>>,
}

impl Board {
    pub fn get(&self, service: &str, backend: SocketAddr) -> Option<&Standing> {
        self.services.get(service)?.get(&backend)
    }

    pub fn note(&mut self, checked: &Checked, now_unix_ms: i64, now_ns: u64) {
        let backends = match self.services.get_mut(&checked.service) {
            Some(backends) => backends,
            None => self.services.entry(checked.service.clone()).or_default(),
        };
        let is_new = !backends.contains_key(&checked.backend);
        let standing = backends.entry(checked.backend).or_default();
        let is_old_news = is_new && !checked.is_news && checked.health != Health::Unknown;
        let is_other = is_new || standing.health != checked.health;
        if checked.is_news || is_other && !is_old_news {
            standing.since_unix_ms = now_unix_ms;
        }
        standing.health = checked.health;
        standing.took = checked.took;
        match &checked.outcome {
            Outcome::Passed => {
                standing.passed += 1;
                let age_ns = checked.age.as_nanos() as u64;
                standing.passed_began_ns = now_ns.saturating_sub(age_ns);
                standing.reason.clear();
            }
            Outcome::Failed { kind, text } => {
                *standing.failures.entry(kind).or_default() += 1;
                standing.reason.clone_from(text);
            }
        }
    }

    pub fn keep(&mut self, look: &Look) {
        for name in &look.without {
            self.services.remove(name);
        }
        for checked in &look.services {
            if let Some(backends) = self.services.get_mut(&checked.service) {
                backends.retain(|addr, _| checked.backends.contains(addr));
            }
        }
        if look.is_whole {
            let named: HashSet<&str> = look.services.iter().map(|t| t.service.as_str()).collect();
            self.services
                .retain(|name, _| named.contains(name.as_str()));
        }
    }
}

impl Reconciler {
    /// What the checks of a backend say; `None` where it is not checked.
    pub(super) fn standing(&self, entry: &Entry, addr: SocketAddr) -> Option<Standing> {
        entry.spec.health.as_ref()?;
        let known = lock(&self.health).get(&entry.spec.name, addr).cloned();
        let is_down = entry.down.contains(&addr);
        let mut standing = known.unwrap_or_else(|| Standing {
            reason: if is_down {
                "it was down when the agent started".to_owned()
            } else {
                String::new()
            },
            ..Standing::default()
        });
        if is_down {
            // Kept from before, or about to be told.
            standing.health = Health::Down;
        }
        Some(standing)
    }
}
