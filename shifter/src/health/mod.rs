//! Health checks of backends, from this host.
//!
//! What a check's outcome means ([`state`], [`offer`]) and when the next one is
//! due ([`schedule`]) is pure: time and lots are arguments. [`probe`] asks the
//! backends; [`checker`] does so in turn and tells who [`Watched`] them.

pub mod checker;
pub mod offer;
pub mod probe;
pub mod schedule;
pub mod state;

use std::{collections::BTreeSet, net::SocketAddr};

use crate::model::HealthSpec;
use probe::Outcome;

/// The backends of a service that are checked.
#[derive(Clone, PartialEq, Debug)]
pub struct CheckedService {
    pub service: String,
    pub spec: HealthSpec,
    /// Those in maint are left alone.
    pub backends: BTreeSet<SocketAddr>,
    /// Backends of green.
    pub green: BTreeSet<SocketAddr>,
    /// Those of them that are out of their ring for being down.
    pub down: BTreeSet<SocketAddr>,
}

/// Services as they are now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Look {
    /// To look on from.
    pub version: u64,
    /// All services with checks are here; otherwise those that changed.
    pub is_whole: bool,
    pub services: Vec<CheckedService>,
    /// Changed services that have no checks, or are there no more.
    pub without: Vec<String>,
}

/// One check that has ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    pub service: String,
    pub backend: SocketAddr,
    pub outcome: Outcome,
    pub took: std::time::Duration,
    /// Since it began.
    pub age: std::time::Duration,
    /// What the backend is now.
    pub health: state::Health,
    /// It was something else before.
    pub is_news: bool,
}

/// Whose backends are checked, and who is told.
pub trait Watched: Send + Sync + 'static {
    /// What has changed since a version; 0: everything.
    fn look(&self, since: u64) -> Look;
    /// Rises whenever services may have changed.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
    /// A check has ended. Waits for nothing.
    fn note(&self, checked: &Checked);
    /// Backends of this service are down now, all others are not: brings it into
    /// force. May take some ms. False: it failed, and is to be tried again.
    fn settle(&self, service: &str, down: &BTreeSet<SocketAddr>) -> bool;
}
