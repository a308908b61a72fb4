//! What an apply would do: resolved, checked and compared, nothing changed.

use std::{
    collections::{BTreeSet, HashMap},
    io::Read as _,
    net::SocketAddr,
};

use super::{
    asked::Asked,
    changes::details,
    controller::{Change, ControlError},
    entry::{Entry, adoption, base_hash, threshold_moved},
    health::standing_down,
    reconciler::{Core, Reconciler},
    split::big_shift,
};
use crate::{
    datapath::{BackendId, Census},
    health::offer::offer,
    model::{
        BackendState, PoolName, Seed, ServiceSpec,
        validate::{self, Place, SpecError, SpecFault},
        weight::threshold_share,
    },
    ring::{self, Member},
};

/// One service of an apply.
pub struct Step {
    /// With a seed.
    pub spec: ServiceSpec,
    pub base_hash: u64,
    pub translated: bool,
    /// Backends that checks have found down, of those that it names.
    pub down: BTreeSet<SocketAddr>,
    /// Set where pools or seed changed.
    pub rings: Option<LocalRings>,
    /// Other than the split changed.
    pub whole: bool,
    pub change: Change,
    /// For the receipt.
    pub warnings: Vec<String>,
    /// The dead-man stays as it is: only backends change.
    pub keep_dead_man: bool,
    /// As the audit calls it.
    pub action: &'static str,
    pub rigour: Rigour,
}

/// What a change is refused for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rigour {
    Whole,
    /// Not for what force lets through.
    Forced,
    /// Of a rollback: neither for the host nor for the store.
    WayBack,
}

/// Rings whose slots hold 1 + the place of the backend in blue then green,
/// because ids are given only when the plan is carried out.
pub struct LocalRings {
    pub rings: [Vec<u16>; 2],
}

impl Step {
    pub fn is_unchanged(&self) -> bool {
        self.change.action == "unchanged"
    }
}

fn invalid(error: &SpecError) -> ControlError {
    ControlError::Invalid(error.to_string())
}

/// Refuses what is wrong whatever the host and other services are.
pub(super) fn check_specs(specs: &[ServiceSpec]) -> Result<(), ControlError> {
    if specs.is_empty() {
        return Err(ControlError::Invalid(
            "the request names no service: give at least one".into(),
        ));
    }
    for spec in specs {
        validate::service(spec).map_err(|error| invalid(&error))?;
    }
    validate::set(specs).map_err(|(_, error)| invalid(&error))
}

/// A fresh seed.
fn random_seed() -> Result<Seed, ControlError> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| {
            ControlError::Internal(format!(
                "reading /dev/urandom for a seed failed ({error}): is /dev there?"
            ))
        })?;
    let number = u128::from_ne_bytes(bytes);
    Ok(Seed([number as u64, (number >> 64) as u64]))
}

impl Reconciler {
    /// Checks all services and says what each would change.
    pub(super) fn prepare(
        &self,
        core: &Core,
        specs: &[ServiceSpec],
        rigour: Rigour,
        asked: &Asked,
        census: &Census,
    ) -> Result<Vec<Step>, ControlError> {
        let batch: HashMap<&str, ()> = specs.iter().map(|s| (s.name.as_str(), ())).collect();
        specs
            .iter()
            .map(|spec| {
                check_neighbours(core, spec, &batch)?;
                self.step(core, spec, rigour, asked, census)
            })
            .collect()
    }

    fn step(
        &self,
        core: &Core,
        spec: &ServiceSpec,
        rigour: Rigour,
        asked: &Asked,
        census: &Census,
    ) -> Result<Step, ControlError> {
        let entry = core.services.get(&spec.name);
        let mut spec = spec.clone();
        spec.seed = match (spec.seed, entry) {
            (Some(seed), _) => Some(seed),
            (None, Some(entry)) => entry.spec.seed,
            (None, None) => Some(random_seed()?),
        };
        let mut step = Step {
            base_hash: base_hash(&spec),
            translated: entry.is_some_and(|e| e.translated),
            down: entry.map_or_else(BTreeSet::new, |e| standing_down(&spec, &e.down)),
            rings: None,
            whole: false,
            change: Change {
                service: spec.name.clone(),
                action: "unchanged",
                ..Change::default()
            },
            warnings: Vec::new(),
            keep_dead_man: false,
            action: "apply",
            rigour,
            spec,
        };
        if let Some(entry) = entry {
            let carried = census.services.get(&entry.id).copied().unwrap_or_default();
            step.change.flows_that_stay = carried[0] + carried[1];
            if entry.spec == step.spec {
                return Ok(step);
            }
            step.change.action = "update";
        } else {
            step.change.action = "create";
        }
        self.check_host(entry, &mut step, asked)?;
        self.check_health(entry, &step)?;
        step.whole = entry.is_none_or(|e| e.base_hash != step.base_hash);
        self.measure(core, entry, &mut step);
        step.change.details = details(entry, &step);
        let live = step.spec.live;
        if !validate::has_ready(&step.spec, live) {
            step.warnings.push(format!(
                "service {:?}: none of the backends of the live pool {live} is ready",
                step.spec.name
            ));
        }
        step.change.warnings.extend(step.warnings.iter().cloned());
        Ok(step)
    }

    /// Refuses to give a pool more than before that too few backends are up for.
    fn check_health(&self, entry: Option<&Entry>, step: &Step) -> Result<(), ControlError> {
        let spec = &step.spec;
        let before = entry.map(|e| e.spec.green.threshold());
        let after = spec.green.threshold();
        let gains = [
            (
                PoolName::Blue,
                spec.green.complement(),
                before.is_none_or(|b| after < b),
            ),
            (
                PoolName::Green,
                spec.green,
                before.is_none_or(|b| after > b),
            ),
        ];
        for (pool, weight, gains) in gains {
            if gains && weight.threshold() > 0 {
                self.check_healthy(spec, &step.down, pool, &weight.to_string())?;
            }
        }
        self.check_cohorts_healthy(entry.map(|e| &e.spec), spec, &step.down)
    }

    /// Refuses what the host is not fit for.
    fn check_host(
        &self,
        entry: Option<&Entry>,
        step: &mut Step,
        asked: &Asked,
    ) -> Result<(), ControlError> {
        let spec = &step.spec;
        let (name, vip) = (&spec.name, spec.vip);
        if !spec.vip_routed && !self.facts.is_local(vip.ip()) {
            let text = format!("service {name:?}: {}", self.vip_not_local(vip.ip()));
            if step.rigour != Rigour::WayBack {
                return Err(ControlError::Precondition(text));
            }
            step.warnings.push(text);
        }
        step.translated = asked.is_translated(&vip);
        let was = entry.map(Entry::adoption);
        if adoption(spec, step.translated) == "refused" && was != Some("refused") {
            let stands = match &asked.filter_problem {
                None => "stands".to_owned(),
                Some(problem) => {
                    format!("may stand, for the packet filter is not known whole ({problem}),")
                }
            };
            let text = format!(
                "service {name:?}: DNAT {stands} in front of {vip} (as for a published container port) and the live pool {live} does not hold the VIP itself, so flows that are under way would be cut: name {addr} in {live}, or apply with force",
                live = spec.live,
                addr = vip.addr,
            );
            if step.rigour == Rigour::Whole {
                return Err(ControlError::Precondition(text));
            }
            step.warnings.push(text);
        }
        for backend in spec.blue_pool.iter().chain(&spec.green_pool) {
            for warning in asked.answer(backend.addr, vip.protocol).warnings {
                step.warnings
                    .push(format!("backend {}: {warning}", backend.addr));
            }
        }
        Ok(())
    }

    /// What is wrong and the line that mends it.
    pub(super) fn vip_not_local(&self, ip: std::net::IpAddr) -> String {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let interface = self.facts.interface_for(ip);
        format!(
            "the VIP {ip} is not an address of this host: `ip addr add {ip}/{bits} dev {}`, or set vip_routed = true if it is routed here",
            interface.as_deref().unwrap_or("IFACE")
        )
    }

    /// Rings where they change, and the share that moves.
    fn measure(&self, core: &Core, entry: Option<&Entry>, step: &mut Step) {
        let spec = &step.spec;
        let after = spec.green.threshold();
        let before = entry.map_or(after, |e| e.programmed_threshold(&*self.clock));
        step.change.moved_share = threshold_moved(before, after);
        let out = offer(spec, &step.down).out;
        let same_rings = entry.is_some_and(|e| {
            e.spec.seed == spec.seed
                && e.spec.blue_pool == spec.blue_pool
                && e.spec.green_pool == spec.green_pool
                && e.out == out
        });
        if !same_rings {
            let rings = build_local(spec, &out);
            let old = local_before(core, entry, spec);
            let stay = [
                1.0 - threshold_share(before.max(after)),
                threshold_share(before.min(after)),
            ];
            for pool in [0, 1] {
                if stay[pool] > 0.0 {
                    let moved = ring::moved_share(&old[pool], &rings[pool]);
                    step.change.moved_share += stay[pool] * moved;
                }
            }
            step.rings = Some(LocalRings { rings });
        }
        if entry.is_some() {
            let warning = big_shift(spec.live, before, after);
            step.change.warnings.extend(warning);
        }
    }
}

/// Refuses what clashes with services that the request does not name.
fn check_neighbours(
    core: &Core,
    spec: &ServiceSpec,
    batch: &HashMap<&str, ()>,
) -> Result<(), ControlError> {
    let refuse = |place, fault| {
        Err(invalid(&SpecError {
            service: spec.name.clone(),
            place,
            fault: Box::new(fault),
        }))
    };
    let vip = spec.vip;
    if let Some(entry) = core.services.get(&spec.name)
        && entry.spec.vip != vip
    {
        return Err(ControlError::Invalid(format!(
            "service {:?}: its VIP is {} and does not change: delete the service first, or give the one with {vip} another name",
            spec.name, entry.spec.vip
        )));
    }
    let key = (vip.addr, vip.protocol);
    match core.vips.get(&key) {
        Some(other) if *other != spec.name => {
            let other = other.clone();
            return refuse(Place::Vip, SpecFault::DuplicateVip { vip, other });
        }
        _ => {}
    }
    let own = core.services.get(&spec.name).map(|e| e.id);
    let users = core
        .backends
        .id(vip.addr, vip.protocol)
        .and_then(|id| core.backends.get(id))
        .filter(|slot| slot.users.keys().any(|user| Some(*user) != own));
    if users.is_some() {
        let other = core.services.values().find(|e| {
            e.spec.name != spec.name
                && !batch.contains_key(e.spec.name.as_str())
                && e.spec.vip.protocol == vip.protocol
                && [PoolName::Blue, PoolName::Green]
                    .iter()
                    .any(|pool| e.spec.pool(*pool).iter().any(|b| b.addr == vip.addr))
        });
        if let Some(other) = other {
            return Err(ControlError::Invalid(format!(
                "service {:?}: the VIP {vip} is a backend of service {:?}: take it out there first, or write another VIP",
                spec.name, other.spec.name
            )));
        }
    }
    for pool in [PoolName::Blue, PoolName::Green] {
        for (index, backend) in spec.pool(pool).iter().enumerate() {
            match core.vips.get(&(backend.addr, vip.protocol)) {
                Some(other) if *other != spec.name => {
                    let fault = SpecFault::ForeignVip {
                        backend: backend.addr,
                        other: other.clone(),
                    };
                    return refuse(Place::Backend(pool, index), fault);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Both rings of a spec with local numbers.
fn build_local(spec: &ServiceSpec, out: &BTreeSet<SocketAddr>) -> [Vec<u16>; 2] {
    let blue = 1 + spec.blue_pool.len() as u16;
    let green = blue + spec.green_pool.len() as u16;
    rings_of(spec, &[(1..blue).collect(), (blue..green).collect()], out)
}

/// Both rings of a spec whose backends have these ids, without those that are out.
pub(super) fn rings_of(
    spec: &ServiceSpec,
    ids: &[Vec<BackendId>; 2],
    out: &BTreeSet<SocketAddr>,
) -> [Vec<BackendId>; 2] {
    let seed = spec.seed.unwrap_or(Seed([0, 0])).0;
    [PoolName::Blue, PoolName::Green].map(|pool| {
        let backends = spec.pool(pool).iter().zip(&ids[pool.index()]);
        let members: Vec<Member> = backends
            .map(|(backend, id)| Member {
                id: *id,
                weight: backend.weight,
                key: ring::member_key(backend.addr),
                ready: backend.state == BackendState::Ready && !out.contains(&backend.addr),
            })
            .collect();
        ring::build(seed, &members)
    })
}

/// The rings before, in the numbers of the new spec. Before its creation a
/// service is what listens on the VIP itself.
fn local_before(core: &Core, entry: Option<&Entry>, spec: &ServiceSpec) -> [Vec<u16>; 2] {
    let numbers: HashMap<SocketAddr, u16> = spec
        .blue_pool
        .iter()
        .chain(&spec.green_pool)
        .zip(1u16..)
        .map(|(b, number)| (b.addr, number))
        .collect();
    let number = |addr: SocketAddr| numbers.get(&addr).copied().unwrap_or(0);
    let Some(entry) = entry else {
        return [vec![number(spec.vip.addr)], vec![number(spec.vip.addr)]];
    };
    let mut of_id: HashMap<BackendId, u16> = HashMap::new();
    entry.rings.each_ref().map(|ring| {
        ring.iter()
            .map(|id| {
                *of_id
                    .entry(*id)
                    .or_insert_with(|| core.backends.get(*id).map_or(0, |slot| number(slot.addr)))
            })
            .collect()
    })
}
