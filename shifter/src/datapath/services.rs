//! Services: bodies, rings and the heads that publish them.

use std::collections::{BTreeSet, HashMap};

use aya::maps::{HashMap as BpfHashMap, MapData};
use shifter_common::{
    abi::{self, AddressKey, BLUE, GREEN, RingRegion, ServiceBody, ring::RING_LANES, service::*},
    select::ring_slot,
};

use super::{
    BackendId, BreakerImage, CohortSet, DatapathError, DeadManImage, ServiceId, ServiceImage,
    allocator::{Numbers, Regions},
    backends::{Known, Plain, Whose, addr_of, is_not_there, vip_key},
    load::failed,
    memory::MappedArray,
};
use crate::{
    fault,
    model::{Affinity, PoolName, Seed, SplitMethod, Vip},
};

/// Everything that makes a service visible to packets.
pub struct Services {
    pub heads: MappedArray<u64>,
    pub bodies: MappedArray<ServiceBody>,
    pub rings: MappedArray<u64>,
    pub vips: BpfHashMap<MapData, Plain<AddressKey>, u32>,
    slots: Numbers,
    regions: Regions,
    /// VIPs by address, for the marks that fragments are counted by.
    addresses: HashMap<AddressKey, u32>,
    check: u32,
}

impl Services {
    /// Takes over what is published.
    pub fn adopt(
        heads: MappedArray<u64>,
        bodies: MappedArray<ServiceBody>,
        rings: MappedArray<u64>,
        vips: BpfHashMap<MapData, Plain<AddressKey>, u32>,
    ) -> Self {
        let mut services = Self {
            slots: Numbers::new(bodies.count(), []),
            regions: Regions::new(0, RING_LANES, []),
            heads,
            bodies,
            rings,
            vips,
            addresses: HashMap::new(),
            check: 0,
        };
        let mut slots = Vec::new();
        let mut regions = Vec::new();
        for id in 0..services.heads.count() {
            let Some(body) = services.body(id as ServiceId) else {
                continue;
            };
            let (slot, check) = head_parts(services.heads.read(id));
            slots.push(slot);
            regions.extend(body.rings.map(|ring| (ring.offset, ring.slots)));
            services.check = services.check.max(check);
            *services
                .addresses
                .entry(address_mark(&body.vip))
                .or_default() += 1;
        }
        services.mend_vips();
        services.slots = Numbers::new(services.bodies.count(), slots);
        let limit = services.rings.count() * RING_LANES;
        services.regions = Regions::new(limit, RING_LANES, regions);
        services
    }

    /// An agent may have been killed between a head and its VIP: every record
    /// in force has its VIP, and no VIP is without a record.
    fn mend_vips(&mut self) {
        let ids: Vec<_> = self.ids().collect();
        for id in ids {
            let Some(body) = self.body(id) else { continue };
            for (key, value) in [
                (body.vip, u32::from(id)),
                (address_mark(&body.vip), u32::MAX),
            ] {
                if self
                    .vips
                    .get(&Plain(key), 0)
                    .is_ok_and(|known| known == value)
                {
                    continue;
                }
                if let Err(error) = self.vips.insert(Plain(key), value, 0) {
                    tracing::error!(%error, vip = %addr_of(&body.vip).0, "mending a VIP failed");
                }
            }
        }
        let stray: Vec<_> = self
            .vips
            .iter()
            .flatten()
            .filter(|(key, id)| match u16::try_from(*id) {
                Ok(id) => self.body(id).is_none_or(|body| body.vip != key.0),
                Err(_) => !self.addresses.contains_key(&key.0),
            })
            .map(|(key, _)| key)
            .collect();
        for key in stray {
            // Gone meanwhile: that is what is wanted.
            let _ = self.vips.remove(&key);
        }
    }

    /// The record in force.
    pub fn body(&self, id: ServiceId) -> Option<ServiceBody> {
        let (slot, check) = head_parts(self.heads.read(u32::from(id)));
        if slot == 0 || slot >= self.bodies.count() {
            return None;
        }
        let body = self.bodies.read(slot);
        (body.service == u32::from(id) && body.check == check).then_some(body)
    }

    /// Ids with a record in force.
    pub fn ids(&self) -> impl Iterator<Item = ServiceId> + '_ {
        (0..self.heads.count())
            .map(|id| id as ServiceId)
            .filter(|id| self.body(*id).is_some())
    }

    /// Fills a body and publishes it by one store.
    pub fn publish(
        &mut self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
        known: &mut Known,
    ) -> Result<u64, DatapathError> {
        let id = u32::from(image.id);
        let old = self.body(image.id);
        let vip = vip_key(&image.vip);
        if let Some(old) = &old
            && old.vip != vip
        {
            return Err(DatapathError::Refused(format!(
                "service id {id} belongs to {}: delete that service first",
                addr_of(&old.vip).0
            )));
        }
        let regions = match (rings, &old) {
            (Some(rings), _) => self.write_rings(rings)?,
            (None, Some(old)) => old.rings,
            (None, None) => Default::default(),
        };
        fault::point("rings-written");
        let Some(slot) = self.slots.take() else {
            if rings.is_some() {
                self.give_back_rings(&regions);
            }
            return Err(DatapathError::Full {
                what: "service records",
                limit: u64::from(abi::MAX_SERVICE_BODIES),
                remedy: "wait a second: records that were replaced are freed then",
            });
        };
        self.check = self.check.wrapping_add(1).max(1);
        self.bodies
            .write(slot, body_of(image, vip, regions, self.check));
        // The body is whole before the head names it.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let (old_slot, _) = head_parts(self.heads.read(id));
        fault::point("before-head");
        self.heads.write(id, head_word(slot, self.check));
        fault::point("after-head");
        let published_ns = super::monotonic_ns();
        if let Some(old) = old {
            self.slots.give_back(old_slot);
            if rings.is_some() {
                self.give_back_rings(&old.rings);
            }
        } else {
            self.open(id, &vip, known)?;
        }
        Ok(published_ns)
    }

    /// Lets packets to the VIP find the service.
    fn open(&mut self, id: u32, vip: &AddressKey, known: &mut Known) -> Result<(), DatapathError> {
        let opened = self.vips.insert(Plain(*vip), id, 0).and_then(|()| {
            let mark = address_mark(vip);
            *self.addresses.entry(mark).or_default() += 1;
            self.vips.insert(Plain(mark), u32::MAX, 0)
        });
        match opened {
            Ok(()) => {
                known.add(Whose::Vip, vip);
                Ok(())
            }
            Err(error) => {
                self.heads.write(id, 0);
                Err(failed(format!("writing VIP {}", addr_of(vip).0), error, ""))
            }
        }
    }

    /// Takes the VIP out of service.
    pub fn delete(&mut self, id: ServiceId, known: &mut Known) -> Result<(), DatapathError> {
        let Some(body) = self.body(id) else {
            return Ok(());
        };
        let vip = body.vip;
        match self.vips.remove(&Plain(vip)) {
            Ok(()) => {}
            Err(error) if is_not_there(&error) => {}
            Err(error) => {
                return Err(failed(
                    format!("removing VIP {}", addr_of(&vip).0),
                    error,
                    "",
                ));
            }
        }
        let mark = address_mark(&vip);
        let is_last = self.addresses.get(&mark) == Some(&1);
        if is_last {
            match self.vips.remove(&Plain(mark)) {
                Ok(()) => {}
                Err(error) if is_not_there(&error) => {}
                Err(error) => return Err(failed("removing a VIP's address", error, "")),
            }
        }
        // What can fail is done: an attempt that failed is made again as a whole.
        if is_last {
            self.addresses.remove(&mark);
        } else if let Some(users) = self.addresses.get_mut(&mark) {
            *users -= 1;
        }
        let (slot, _) = head_parts(self.heads.read(u32::from(id)));
        self.heads.write(u32::from(id), 0);
        known.remove(Whose::Vip, &vip);
        self.slots.give_back(slot);
        self.give_back_rings(&body.rings);
        Ok(())
    }

    /// Restores the counts of bits after a start.
    pub fn count_known(&self, known: &mut Known) {
        for id in self.ids() {
            if let Some(body) = self.body(id) {
                known.add(Whose::Vip, &body.vip);
            }
        }
    }

    fn write_rings(
        &mut self,
        rings: &[Vec<BackendId>; 2],
    ) -> Result<[RingRegion; 2], DatapathError> {
        let mut regions = [RingRegion::default(); 2];
        for (region, ring) in regions.iter_mut().zip(rings) {
            if ring.is_empty() {
                continue;
            }
            let Some(offset) = self.regions.take(ring.len() as u32) else {
                let taken = regions;
                self.give_back_rings(&taken);
                return Err(DatapathError::Full {
                    what: "ring slots",
                    limit: u64::from(abi::MAX_RING_SLOTS),
                    remedy: "use fewer backends, or smaller weights within a pool",
                });
            };
            *region = RingRegion {
                offset,
                slots: ring.len() as u32,
            };
            for (i, lanes) in ring.chunks(RING_LANES as usize).enumerate() {
                let word = lanes
                    .iter()
                    .enumerate()
                    .fold(0, |word, (lane, id)| word | u64::from(*id) << (16 * lane));
                self.rings.write(offset / RING_LANES + i as u32, word);
            }
        }
        Ok(regions)
    }

    fn give_back_rings(&mut self, rings: &[RingRegion; 2]) {
        for ring in rings {
            self.regions.give_back(ring.offset, ring.slots);
        }
    }

    /// Backend of the slot that a ring hash leads to, open or not.
    pub fn ring_choice(&self, id: ServiceId, pool: PoolName, ring_hash: u32) -> Option<BackendId> {
        let region = self.body(id)?.rings[pool.index()];
        if region.slots == 0 {
            return None;
        }
        let slot = region.offset + ring_slot(ring_hash, region.slots);
        let word = self.rings.read(slot / RING_LANES);
        Some((word >> (16 * (slot % RING_LANES))) as BackendId)
    }

    /// Rings in force.
    pub fn rings_of(&self, id: ServiceId) -> Option<[Vec<BackendId>; 2]> {
        let lane = |slot: u32| {
            let word = self.rings.read(slot / RING_LANES);
            (word >> (16 * (slot % RING_LANES))) as BackendId
        };
        let body = self.body(id)?;
        let ring =
            |region: RingRegion| (0..region.slots).map(|i| lane(region.offset + i)).collect();
        Some(body.rings.map(ring))
    }

    /// Sets of cohorts that records in force name.
    pub fn cohort_sets(&self) -> BTreeSet<CohortSet> {
        self.ids()
            .filter_map(|id| self.body(id))
            .map(|body| body.cohort_set as CohortSet)
            .collect()
    }

    /// Before a grace period.
    pub fn ripen(&mut self) {
        self.slots.ripen();
        self.regions.ripen();
    }

    /// After a grace period.
    pub fn reclaim(&mut self) {
        self.slots.reclaim();
        self.regions.reclaim();
    }

    /// Ring slots taken.
    pub fn ring_slots(&self) -> u64 {
        self.regions.used()
    }
}

/// "Some VIP has this address."
fn address_mark(vip: &AddressKey) -> AddressKey {
    AddressKey {
        port: [0; 2],
        protocol: 0,
        ..*vip
    }
}

fn body_of(
    image: &ServiceImage,
    vip: AddressKey,
    rings: [RingRegion; 2],
    check: u32,
) -> ServiceBody {
    let mut flags = 0;
    if image.live == PoolName::Green {
        flags |= SERVICE_LIVE_GREEN;
    }
    if image.live_has_vip {
        flags |= SERVICE_LIVE_HAS_VIP;
    }
    if image.split == SplitMethod::Exact {
        flags |= SERVICE_EXACT;
    }
    if image.cohorts_on && image.cohort_set != 0 {
        flags |= SERVICE_COHORTS;
    }
    let (affinity, affinity_prefix) = match image.affinity {
        Affinity::Flow => (AFFINITY_FLOW, 0),
        Affinity::Client(None) => (AFFINITY_CLIENT, 128),
        Affinity::Client(Some(prefix)) => (AFFINITY_CLIENT, prefix),
    };
    let mut local_backends = [[0; LOCAL_BACKENDS]; 2];
    for (places, ids) in local_backends.iter_mut().zip(&image.local_backends) {
        for (place, id) in places.iter_mut().zip(ids) {
            *place = *id;
        }
    }
    let dead_man = image.dead_man.unwrap_or(DeadManImage {
        safe_threshold: 0,
        deadline_ns: 0,
    });
    let breaker = image.breaker.unwrap_or(BreakerImage {
        window_ns: 0,
        max_failures: 0,
        min_attempts: 0,
        max_ratio: 0,
    });
    ServiceBody {
        check,
        service: u32::from(image.id),
        generation: image.generation,
        flags,
        threshold: image.threshold,
        safe_threshold: dead_man.safe_threshold,
        deadline_ns: dead_man.deadline_ns,
        settle_until_ns: image.settle_until_ns,
        seed: image.seed.0,
        desired_hash: image.desired_hash,
        rings,
        vip,
        vip_backend: image.vip_backend,
        affinity,
        affinity_prefix,
        local_backends,
        cohort_set: u32::from(image.cohort_set),
        pad: [0; 3],
        breaker_window_ns: breaker.window_ns,
        breaker_failures: breaker.max_failures,
        breaker_attempts: breaker.min_attempts,
        breaker_ratio: breaker.max_ratio,
        pad_end: 0,
    }
}

/// What a body says, in the words of the model.
pub fn image_of(body: &ServiceBody) -> ServiceImage {
    let (addr, protocol) = addr_of(&body.vip);
    let local = |pool: usize| {
        body.local_backends[pool]
            .iter()
            .copied()
            .filter(|id| *id != 0)
            .collect()
    };
    ServiceImage {
        id: body.service as ServiceId,
        vip: Vip { addr, protocol },
        vip_backend: body.vip_backend,
        generation: body.generation,
        threshold: body.threshold,
        dead_man: (body.deadline_ns != 0).then_some(DeadManImage {
            safe_threshold: body.safe_threshold,
            deadline_ns: body.deadline_ns,
        }),
        breaker: (body.breaker_window_ns != 0).then_some(BreakerImage {
            window_ns: body.breaker_window_ns,
            max_failures: body.breaker_failures,
            min_attempts: body.breaker_attempts,
            max_ratio: body.breaker_ratio,
        }),
        live: if body.flags & SERVICE_LIVE_GREEN != 0 {
            PoolName::Green
        } else {
            PoolName::Blue
        },
        live_has_vip: body.flags & SERVICE_LIVE_HAS_VIP != 0,
        split: if body.flags & SERVICE_EXACT != 0 {
            SplitMethod::Exact
        } else {
            SplitMethod::Hash
        },
        affinity: match (body.affinity, body.affinity_prefix) {
            (AFFINITY_CLIENT, 128) => Affinity::Client(None),
            (AFFINITY_CLIENT, prefix) => Affinity::Client(Some(prefix)),
            _ => Affinity::Flow,
        },
        seed: Seed(body.seed),
        desired_hash: body.desired_hash,
        settle_until_ns: body.settle_until_ns,
        local_backends: [local(BLUE), local(GREEN)],
        cohort_set: body.cohort_set as CohortSet,
        cohorts_on: body.flags & SERVICE_COHORTS != 0,
    }
}
