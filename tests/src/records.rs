//! What the kernel's records say, read past the agent, and what the store says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use shifter::{
    datapath::{ServiceImage, backends::addr_of, memory::MappedArray, services::image_of},
    model::{PoolName, Vip},
    store::{Loaded, Store, StoredService},
};
use shifter_common::abi::{self, RingRegion, ServiceBody, ring::RING_LANES, service::head_parts};

use crate::{command::eventually, scene::open_pin, topology::Lab};

/// A service as the kernel holds it.
#[derive(Clone, Debug)]
pub struct Record {
    pub image: ServiceImage,
    /// Backends that the rings of blue and green name.
    pub pools: [BTreeSet<SocketAddr>; 2],
}

/// Every service that a head publishes, by VIP.
pub fn in_kernel(bpffs: &Path) -> Result<BTreeMap<Vip, Record>> {
    let maps = bpffs.join("shifter/maps");
    let heads: MappedArray<u64> = map(&maps, "SERVICE_HEAD", abi::MAX_SERVICES)?;
    let bodies: MappedArray<ServiceBody> = map(&maps, "SERVICE_BODY", abi::MAX_SERVICE_BODIES)?;
    let rings: MappedArray<u64> = map(&maps, "RINGS", abi::MAX_RING_SLOTS / RING_LANES)?;
    let backends: MappedArray<abi::Backend> = map(&maps, "BACKENDS", abi::MAX_BACKEND_IDS)?;
    let mut records = BTreeMap::new();
    for id in 0..heads.count() {
        let (slot, check) = head_parts(heads.read(id));
        if slot == 0 {
            continue;
        }
        let body = bodies.read(slot);
        ensure!(
            body.service == id && body.check == check,
            "head {id} names slot {slot} with check {check}, whose body is {body:?}"
        );
        let pools = body.rings.map(|region| named(&rings, &backends, region));
        let image = image_of(&body);
        records.insert(image.vip, Record { image, pools });
    }
    Ok(records)
}

fn map<T: Copy>(maps: &Path, name: &str, elements: u32) -> Result<MappedArray<T>> {
    MappedArray::new(open_pin(&maps.join(name)), elements).with_context(|| format!("map {name}"))
}

fn named(
    rings: &MappedArray<u64>,
    backends: &MappedArray<abi::Backend>,
    region: RingRegion,
) -> BTreeSet<SocketAddr> {
    (region.offset..region.offset + region.slots)
        .map(|slot| (rings.read(slot / RING_LANES) >> (16 * (slot % RING_LANES))) as u16)
        .map(|id| addr_of(&backends.read(u32::from(id)).key).0)
        .collect()
}

/// Waits until the kernel carries out what the store says, no more and no less;
/// what the store says. Records that were published without a request are
/// stored within a second.
///
/// # Panics
///
/// When they still differ after some seconds.
pub fn assert_as_stored(lab: &Lab, what: &str) -> Loaded {
    let mut compared = compare(lab);
    eventually(Duration::from_secs(5), || {
        if compared.is_err() {
            compared = compare(lab);
        }
        compared.is_ok()
    });
    compared.unwrap_or_else(|error| panic!("{what}: {error:#}"))
}

fn compare(lab: &Lab) -> Result<Loaded> {
    let kernel = in_kernel(&lab.bpffs())?;
    let loaded = Store::open(&lab.dir().join("state"))?.load()?;
    ensure!(loaded.pending.is_empty(), "pending: {:?}", loaded.pending);
    let stored: BTreeSet<_> = loaded.services.iter().map(|s| s.spec.vip).collect();
    let published: BTreeSet<_> = kernel.keys().copied().collect();
    ensure!(
        stored == published,
        "VIPs of the store {stored:?} and of the kernel {published:?}"
    );
    for service in &loaded.services {
        let record = &kernel[&service.spec.vip];
        same(service, record).with_context(|| service.spec.name.clone())?;
    }
    Ok(loaded)
}

fn same(service: &StoredService, record: &Record) -> Result<()> {
    let (spec, image) = (&service.spec, &record.image);
    let stored = (service.generation, spec.live, spec.green.threshold());
    let published = (image.generation, image.live, image.threshold);
    ensure!(
        stored == published,
        "split as stored {stored:?} and in the kernel {published:?}"
    );
    ensure!(
        (spec.affinity, spec.split, spec.seed) == (image.affinity, image.split, Some(image.seed)),
        "stored {spec:?}, in the kernel {image:?}"
    );
    for pool in [PoolName::Blue, PoolName::Green] {
        let wanted: BTreeSet<_> = spec.pool(pool).iter().map(|b| b.addr).collect();
        let ring = &record.pools[pool.index()];
        ensure!(*ring == wanted, "{pool} is {wanted:?}, its ring {ring:?}");
    }
    Ok(())
}
