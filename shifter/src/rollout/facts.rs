//! What a step can wait for, as it was when it was looked at.

use std::net::SocketAddr;

/// Health of a backend, as far as somebody checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Health {
    /// By a check that began after the step was entered.
    Up,
    Down,
    /// No check has told yet since the step was entered.
    Awaited,
    /// Nobody checks it.
    #[default]
    Unknown,
}

/// One backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendFacts {
    pub backend: SocketAddr,
    /// Live flows on it.
    pub flows: u64,
    pub health: Health,
}

/// Flows and backends of a service at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Live flows, `[blue, green]`.
    pub flows: [u64; 2],
    pub backends: Vec<BackendFacts>,
    /// Why nothing may be written but a way back.
    pub frozen: Option<String>,
}

impl Facts {
    /// Live flows on these backends.
    pub fn flows_on(&self, backends: &[SocketAddr]) -> u64 {
        let named = |facts: &&BackendFacts| backends.contains(&facts.backend);
        self.backends.iter().filter(named).map(|b| b.flows).sum()
    }

    /// Those of the backends whose health is this one.
    pub fn those(&self, backends: &[SocketAddr], health: Health) -> Vec<SocketAddr> {
        let are =
            |facts: &&BackendFacts| backends.contains(&facts.backend) && facts.health == health;
        let backends = self.backends.iter().filter(are);
        backends.map(|facts| facts.backend).collect()
    }
}
