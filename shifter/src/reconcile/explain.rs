//! Explain: which pool and backend a client gets, in the order a packet meets the rules.

use std::net::{IpAddr, SocketAddr};

use shifter_common::{
    abi::service::{AFFINITY_CLIENT, AFFINITY_FLOW, THRESHOLD_ONE},
    select,
};

use super::{
    controller::{ControlError, Explanation, FlowView},
    entry::Entry,
    reconciler::{Reconciler, lock},
    write::find,
};
use crate::{
    datapath::BackendId,
    model::{Affinity, PoolName, SplitMethod, cohort, weight::threshold_share},
};

/// Ports that clients use by default (net.ipv4.ip_local_port_range).
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

impl Reconciler {
    pub(super) fn do_explain(
        &self,
        name: &str,
        client: IpAddr,
        port: Option<u16>,
    ) -> Result<Explanation, ControlError> {
        let entry = find(&lock(&self.core).services, name)?.clone();
        let vip = entry.spec.vip;
        if client.is_ipv4() != vip.addr.is_ipv4() {
            return Err(ControlError::Invalid(format!(
                "client {client} is of another family than the VIP {vip}: it cannot reach it"
            )));
        }
        let mut why = vec![format!("the VIP {vip} belongs to service {name:?}")];
        if self.facts.is_local(client) {
            why.push(format!(
                "{client} is an address of this host: traffic from this host itself does not cross an interface with a hook and is not shifted; what follows is what another client with this address would get"
            ));
        }
        if let Some(port) = port
            && let Some(explanation) = self.pinned(&entry, SocketAddr::new(client, port), &mut why)
        {
            return Ok(explanation);
        }
        match port {
            Some(port) => why.push(format!("{client}:{port} has no live flow: a new one is chosen")),
            None => why.push(format!(
                "without a port, live flows of {client} are not looked at: `shifter get flows` lists them; a new one is chosen"
            )),
        }
        self.settling(&entry, &mut why);
        let forced = self.forced(&entry, client, &mut why);
        let hash = match (&forced, port) {
            // Which port it is makes no difference to the pool.
            (Some(_), None) => affinity_hash(&entry, client, *PORTS.start()),
            _ => self.hash(&entry, client, port, &mut why),
        };
        let (pool, backend, cohort) = self.choose(&entry, forced, hash, &mut why);
        if !self.facts.is_local(client) {
            why.push("traffic from this host itself is not shifted".into());
        }
        Ok(Explanation {
            pool,
            backend: self.addr(backend).unwrap_or(vip.addr),
            pinned: false,
            flow: None,
            cohort,
            why,
        })
    }

    fn addr(&self, id: Option<BackendId>) -> Option<SocketAddr> {
        lock(&self.core).backends.get(id?).map(|slot| slot.addr)
    }

    fn pinned(
        &self,
        entry: &Entry,
        client: SocketAddr,
        why: &mut Vec<String>,
    ) -> Option<Explanation> {
        let row = self
            .datapath
            .find_flow(entry.id, client, entry.spec.vip.protocol)?;
        let backend = self.addr(Some(row.backend)).unwrap_or(entry.spec.vip.addr);
        why.push(format!(
            "{client} has a live flow ({}{}) chosen under generation {}: it stays on {} backend {backend} until it ends, whatever the weight",
            row.state,
            match (row.adopted, row.cohort) {
                (true, _) => ", taken over",
                (false, true) => ", forced by a cohort",
                (false, false) => "",
            },
            row.generation,
            row.pool,
        ));
        Some(Explanation {
            pool: row.pool,
            backend,
            pinned: true,
            flow: Some(FlowView {
                service: entry.spec.name.clone(),
                backend,
                row,
            }),
            cohort: None,
            why: std::mem::take(why),
        })
    }

    fn settling(&self, entry: &Entry, why: &mut Vec<String>) {
        let now_ns = self.clock.monotonic_ns();
        if entry.settle_until_ns > now_ns {
            why.push(format!(
                "the service is settling for {} s more: a client that a socket of this host knows stays there, and UDP without a flow goes to the live pool {}",
                (entry.settle_until_ns - now_ns).div_ceil(1_000_000_000),
                entry.spec.live
            ));
        }
    }

    /// The selection hash; without a port, that of a port whose pool most ports get.
    fn hash(&self, entry: &Entry, client: IpAddr, port: Option<u16>, why: &mut Vec<String>) -> u64 {
        let hash = |port| affinity_hash(entry, client, port);
        if let Some(port) = port {
            return hash(port);
        }
        let is_exact = entry.spec.split == SplitMethod::Exact;
        if is_exact || entry.spec.affinity != Affinity::Flow {
            return hash(0);
        }
        let threshold = self.threshold_in_force(entry);
        let green = |port: &u16| select::pool_of(hash(*port), threshold) == PoolName::Green.index();
        let count = PORTS.filter(green).count();
        let all = PORTS.count();
        let mostly_green = count * 2 > all;
        why.push(format!(
            "affinity flow: it depends on the client's port; of ports {} to {}, {:.2}% get green",
            PORTS.start(),
            PORTS.end(),
            count as f64 / all as f64 * 100.0
        ));
        let example = PORTS.filter(|p| green(p) == mostly_green).min();
        let example = example.unwrap_or(*PORTS.start());
        why.push(format!("as an example, port {example}:"));
        hash(example)
    }

    fn choose(
        &self,
        entry: &Entry,
        forced: Option<(PoolName, String)>,
        hash: u64,
        why: &mut Vec<String>,
    ) -> (PoolName, Option<BackendId>, Option<String>) {
        let threshold = self.threshold_in_force(entry);
        if let Some(trip) = self.trip_in_force(entry) {
            why.push(super::breaker::reason(entry, &trip));
        } else if forced.is_none() && entry.dead_man_passed(&*self.clock) {
            why.push(format!(
                "the dead-man's deadline has passed: green has {:.4}% and not the configured {}",
                threshold_share(threshold) * 100.0,
                entry.spec.green
            ));
        }
        let (pool, cohort) = match forced {
            Some((pool, cohort)) => (pool, Some(cohort)),
            None => (pool_by_threshold(entry, hash, threshold, why), None),
        };
        let slot = select::ring_hash(hash);
        if let Some(id) = self.datapath.ring_choice(entry.id, pool, slot) {
            why.push(format!("the ring of {pool} names this backend"));
            return (pool, Some(id), cohort);
        }
        let other = pool.other();
        if let Some(id) = self.datapath.ring_choice(entry.id, other, slot) {
            why.push(format!(
                "{pool} has no backend for new flows: the ring of {other} names this one"
            ));
            return (other, Some(id), cohort);
        }
        why.push("neither pool has a backend for new flows: the packet is dropped and counted (no_backend)".into());
        (pool, None, cohort)
    }

    /// The pool that a cohort forces, and the cohort's name.
    fn forced(
        &self,
        entry: &Entry,
        client: IpAddr,
        why: &mut Vec<String>,
    ) -> Option<(PoolName, String)> {
        let spec = &entry.spec;
        let Some((cohort, prefix)) = cohort::longest(&spec.cohorts, client) else {
            why.push("no cohort rule".into());
            return None;
        };
        let name = &cohort.name;
        let held = format!("cohort {name:?} holds {client} by its longest prefix {prefix}");
        let has_tripped = self.trip_in_force(entry).is_some();
        if has_tripped || entry.cohorts_word(&*self.clock) != "on" {
            let since = match spec.cohorts_on {
                true if has_tripped => "the breaker has tripped",
                true => "the dead-man's deadline has passed",
                false => "since a rollback, a promote or by request",
            };
            why.push(format!("{held}, but cohorts are suspended ({since})"));
            return None;
        }
        let pool = cohort.pool_when(spec.live);
        let role = match cohort.pool {
            None => ", the candidate",
            Some(_) => "",
        };
        why.push(format!("{held}: {pool}{role}, whatever the weight"));
        Some((pool, name.clone()))
    }
}

/// Pool by hash; under the exact split the one that more of the next flows get.
fn pool_by_threshold(entry: &Entry, hash: u64, threshold: u64, why: &mut Vec<String>) -> PoolName {
    let share = threshold_share(threshold) * 100.0;
    let is_exact = entry.spec.split == SplitMethod::Exact;
    let is_green = if is_exact {
        2 * threshold >= THRESHOLD_ONE
    } else {
        select::pool_of(hash, threshold) == PoolName::Green.index()
    };
    let pool = if is_green {
        PoolName::Green
    } else {
        PoolName::Blue
    };
    if is_exact {
        why.push(format!(
            "split exact: each CPU counts new flows and gives green {share:.4}% of them, whoever the client is; more of the next ones go to {pool}"
        ));
        return pool;
    }
    let side = match pool {
        PoolName::Green => "below",
        PoolName::Blue => "not below",
    };
    why.push(format!(
        "affinity {}: the hash is at {:.4}%, {side} green's {share:.4}%: {pool}",
        entry.spec.affinity,
        threshold_share(hash & 0xffff_ffff) * 100.0,
    ));
    pool
}

fn affinity_hash(entry: &Entry, client: IpAddr, port: u16) -> u64 {
    let mut octets = [0; 16];
    let family = match client {
        IpAddr::V4(ip) => {
            octets[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            octets = ip.octets();
            6
        }
    };
    let whole = if family == 4 { 32 } else { 128 };
    let (affinity, prefix) = match entry.spec.affinity {
        Affinity::Flow => (AFFINITY_FLOW, whole),
        Affinity::Client(bits) => (AFFINITY_CLIENT, bits.unwrap_or(whole)),
    };
    select::affinity_hash(
        entry.seed().0,
        affinity,
        prefix,
        &octets,
        port.to_be_bytes(),
        family,
    )
}
