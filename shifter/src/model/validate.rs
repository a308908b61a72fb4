//! What a service must be, as far as its own description shows.
//!
//! What depends on the host (is the VIP local, does DNAT stand in front of it)
//! is asked by `reconcile`.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    Affinity, BackendSpec, BackendState, PoolName, Protocol, ServiceSpec, SplitMethod, Vip,
    breaker::BreakerError,
    cohort::{self, CohortFault, CohortPlace},
};

/// Longest name of a service, in bytes.
pub const MAX_NAME: usize = 63;
/// Largest weight of a backend within its pool.
pub const MAX_BACKEND_WEIGHT: u32 = 1_000;

/// Where in the description the fault lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Name,
    Vip,
    Green,
    Split,
    Affinity,
    Breaker,
    Pool(PoolName),
    Backend(PoolName, usize),
    Cohorts(CohortPlace),
    /// A key of the checks.
    Health(&'static str),
}

/// A fault and where it lies.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("service {service:?}: {fault}")]
pub struct SpecError {
    pub service: String,
    pub place: Place,
    /// Boxed, because the longest texts make it large.
    pub fault: Box<SpecFault>,
}

/// Why a service is refused; each text says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecFault {
    #[error("a name has 1 to 63 letters, digits, '-', '_' or '.'; {0:?} has not")]
    Name(String),
    #[error("another service of this file has the same name: give each its own")]
    DuplicateName,
    #[error(
        "the VIP {vip} belongs to service {other:?}: give each service its own address, port or protocol"
    )]
    DuplicateVip { vip: Vip, other: String },
    #[error("the VIP {0} has no address: write the one that clients connect to")]
    VipUnspecified(Vip),
    #[error(
        "the VIP {0} is a multicast or broadcast address: write a unicast address of this host"
    )]
    VipMulticast(Vip),
    #[error(
        "the VIP {0} is a loopback address, which no client on the network reaches: write an address of an interface"
    )]
    VipLoopback(Vip),
    #[error("{0} has port 0: write the port that clients or servers use, 1 to 65535")]
    PortZero(SocketAddr),
    #[error("{0} is an IPv4 address written as IPv6: write it as IPv4")]
    Mapped(SocketAddr),
    #[error("{0} has a zone or is link-local: write a global or unique local address")]
    Zone(SocketAddr),
    #[error(
        "backend {0} is a loopback address, to which the kernel delivers nothing that came from the network: bind the server to an address of this host and write that"
    )]
    BackendLoopback(SocketAddr),
    #[error("backend {0} has no address: write the one that the server is bound to or reached by")]
    BackendUnspecified(SocketAddr),
    #[error("backend {0} is a multicast or broadcast address: write the address of one server")]
    BackendMulticast(SocketAddr),
    #[error("backend {backend} is of another family than the VIP {vip}: write an {right} address")]
    Family {
        backend: SocketAddr,
        vip: Vip,
        right: &'static str,
    },
    #[error(
        "backend {backend} is the VIP of service {other:?}: write the address of a server behind it (only a service's own VIP can be its backend)"
    )]
    ForeignVip { backend: SocketAddr, other: String },
    #[error(
        "backend {0} occurs twice in this pool: write it once, with a weight if it shall get more"
    )]
    BackendTwice(SocketAddr),
    #[error("backend {0} is in blue and in green: take it out of one of them")]
    BackendInBoth(SocketAddr),
    #[error(
        "backend {backend} has weight {weight}: write 1 to 1000 (state = \"drain\" gives it no new flows)"
    )]
    BackendWeight { backend: SocketAddr, weight: u32 },
    #[error("the live pool {0} has no backend: name at least one, or make the other pool live")]
    LiveEmpty(PoolName),
    #[error("{pool} would get {share} of new flows but has no backend: add one, or give it 0%")]
    WeightToEmpty { pool: PoolName, share: String },
    #[error(
        "{pool} would get {share} of new flows but none of its backends is ready: set one to state = \"ready\", or give it 0%"
    )]
    WeightToUnready { pool: PoolName, share: String },
    #[error(
        "split \"exact\" counts flows, affinity {affinity:?} keeps clients: write split = \"hash\", or affinity = \"flow\""
    )]
    ExactClients { affinity: String },
    #[error("affinity \"client/{bits}\" is longer than an IPv4 address: write 1 to 32 bits")]
    Prefix { bits: u8 },
    #[error("breaker: {0}")]
    Breaker(BreakerError),
    #[error(transparent)]
    Cohort(CohortFault),
    #[error(
        "health.min_healthy is {min}, but {pool} has {backends} in all, so it could never be given traffic: write {backends} or less, or name more backends"
    )]
    MinHealthy {
        pool: PoolName,
        min: u32,
        backends: usize,
    },
}

/// Checks one service by itself.
pub fn service(spec: &ServiceSpec) -> Result<(), SpecError> {
    let refuse = |place, fault| {
        Err(SpecError {
            service: spec.name.clone(),
            place,
            fault: Box::new(fault),
        })
    };
    if !name_is_right(&spec.name) {
        return refuse(Place::Name, SpecFault::Name(spec.name.clone()));
    }
    if let Err(fault) = vip(spec.vip) {
        return refuse(Place::Vip, fault);
    }
    if let (Affinity::Client(Some(bits @ 33..)), true) = (spec.affinity, spec.vip.addr.is_ipv4()) {
        return refuse(Place::Affinity, SpecFault::Prefix { bits });
    }
    if let Some(breaker) = spec.breaker {
        let checked = match spec.vip.protocol {
            Protocol::Tcp => breaker.check(),
            Protocol::Udp => Err(BreakerError::Udp),
        };
        if let Err(error) = checked {
            return refuse(Place::Breaker, SpecFault::Breaker(error));
        }
    }
    if spec.split == SplitMethod::Exact && spec.affinity != Affinity::Flow {
        let affinity = spec.affinity.to_string();
        return refuse(Place::Split, SpecFault::ExactClients { affinity });
    }
    for pool in [PoolName::Blue, PoolName::Green] {
        let mut seen = HashSet::new();
        for (index, backend) in spec.pool(pool).iter().enumerate() {
            let place = Place::Backend(pool, index);
            if let Err(fault) = self::backend(backend, spec.vip) {
                return refuse(place, fault);
            }
            if !seen.insert(backend.addr) {
                return refuse(place, SpecFault::BackendTwice(backend.addr));
            }
        }
    }
    let blue: HashSet<SocketAddr> = spec.blue_pool.iter().map(|b| b.addr).collect();
    let twice = |backend: &BackendSpec| blue.contains(&backend.addr);
    if let Some(index) = spec.green_pool.iter().position(twice) {
        let fault = SpecFault::BackendInBoth(spec.green_pool[index].addr);
        return refuse(Place::Backend(PoolName::Green, index), fault);
    }
    if let Err((place, fault)) = cohort::check(spec) {
        return refuse(Place::Cohorts(place), SpecFault::Cohort(fault));
    }
    if let Some(health) = &spec.health {
        for pool in [PoolName::Blue, PoolName::Green] {
            let (min, backends) = (health.min_healthy, spec.pool(pool).len());
            if backends > 0 && (min as usize) > backends {
                let fault = SpecFault::MinHealthy {
                    pool,
                    min,
                    backends,
                };
                return refuse(Place::Health("min_healthy"), fault);
            }
        }
    }
    split(spec)
}

/// Checks that no pool gets a share that it cannot carry. A live pool without
/// a ready backend is let through: it is what was there before.
pub fn split(spec: &ServiceSpec) -> Result<(), SpecError> {
    let refuse = |place, fault| {
        Err(SpecError {
            service: spec.name.clone(),
            place,
            fault: Box::new(fault),
        })
    };
    if spec.pool(spec.live).is_empty() {
        return refuse(Place::Pool(spec.live), SpecFault::LiveEmpty(spec.live));
    }
    let pool = spec.live.other();
    let weight = match pool {
        PoolName::Green => spec.green,
        PoolName::Blue => spec.green.complement(),
    };
    if weight.threshold() == 0 {
        return Ok(());
    }
    let share = weight.to_string();
    if spec.pool(pool).is_empty() {
        return refuse(Place::Green, SpecFault::WeightToEmpty { pool, share });
    }
    if !has_ready(spec, pool) {
        return refuse(Place::Green, SpecFault::WeightToUnready { pool, share });
    }
    Ok(())
}

/// Whether a backend of the pool is offered new flows.
pub fn has_ready(spec: &ServiceSpec, pool: PoolName) -> bool {
    spec.pool(pool)
        .iter()
        .any(|b| b.state == BackendState::Ready)
}

/// Checks services of one request or file against each other.
pub fn set(specs: &[ServiceSpec]) -> Result<(), (usize, SpecError)> {
    let mut names = HashSet::new();
    let mut vips: HashMap<(SocketAddr, Protocol), &str> = HashMap::new();
    let refuse = |index: usize, place, fault| {
        Err((
            index,
            SpecError {
                service: specs[index].name.clone(),
                place,
                fault: Box::new(fault),
            },
        ))
    };
    for (index, spec) in specs.iter().enumerate() {
        if !names.insert(spec.name.as_str()) {
            return refuse(index, Place::Name, SpecFault::DuplicateName);
        }
        if let Some(other) = vips.insert((spec.vip.addr, spec.vip.protocol), &spec.name) {
            let (vip, other) = (spec.vip, other.to_owned());
            return refuse(index, Place::Vip, SpecFault::DuplicateVip { vip, other });
        }
    }
    for (index, spec) in specs.iter().enumerate() {
        for pool in [PoolName::Blue, PoolName::Green] {
            for (at, backend) in spec.pool(pool).iter().enumerate() {
                match vips.get(&(backend.addr, spec.vip.protocol)) {
                    Some(other) if *other != spec.name => {
                        let fault = SpecFault::ForeignVip {
                            backend: backend.addr,
                            other: (*other).to_owned(),
                        };
                        return refuse(index, Place::Backend(pool, at), fault);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

pub(super) fn name_is_right(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn vip(vip: Vip) -> Result<(), SpecFault> {
    address(vip.addr)?;
    let ip = vip.ip();
    if ip.is_unspecified() {
        Err(SpecFault::VipUnspecified(vip))
    } else if is_many(ip) {
        Err(SpecFault::VipMulticast(vip))
    } else if ip.is_loopback() {
        Err(SpecFault::VipLoopback(vip))
    } else {
        Ok(())
    }
}

fn backend(backend: &BackendSpec, vip: Vip) -> Result<(), SpecFault> {
    let addr = backend.addr;
    address(addr)?;
    if addr.is_ipv4() != vip.addr.is_ipv4() {
        let right = if vip.addr.is_ipv4() { "IPv4" } else { "IPv6" };
        return Err(SpecFault::Family {
            backend: addr,
            vip,
            right,
        });
    }
    if addr.ip().is_unspecified() {
        return Err(SpecFault::BackendUnspecified(addr));
    }
    if is_many(addr.ip()) {
        return Err(SpecFault::BackendMulticast(addr));
    }
    if addr.ip().is_loopback() {
        return Err(SpecFault::BackendLoopback(addr));
    }
    let weight = backend.weight;
    if !(1..=MAX_BACKEND_WEIGHT).contains(&weight) {
        return Err(SpecFault::BackendWeight {
            backend: addr,
            weight,
        });
    }
    Ok(())
}

fn address(addr: SocketAddr) -> Result<(), SpecFault> {
    if addr.port() == 0 {
        return Err(SpecFault::PortZero(addr));
    }
    if let SocketAddr::V6(v6) = addr {
        if v6.ip().to_ipv4_mapped().is_some() {
            return Err(SpecFault::Mapped(addr));
        }
        if v6.scope_id() != 0 || v6.ip().is_unicast_link_local() {
            return Err(SpecFault::Zone(addr));
        }
    }
    Ok(())
}

fn is_many(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
