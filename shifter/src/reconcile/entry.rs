//! One service as the reconciler keeps it.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use shifter_common::{
    abi::service::{LOCAL_BACKENDS, THRESHOLD_ONE},
    hash::siphash13,
};

use super::{backends::Backends, clock::Clock};
use crate::{
    datapath::{BackendId, CohortSet, DeadManImage, ServiceId, ServiceImage},
    model::{
        Affinity, PoolName, Seed, ServiceSpec, SplitMethod, Weight, file, weight::threshold_share,
    },
    store::{Promoted, Row, StoredDeadMan},
};

/// Publications whose time is remembered, for the time to the first flow.
const PUBLISHED_KEPT: usize = 16;

/// An armed dead-man.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadMan {
    pub image: DeadManImage,
    pub stored: StoredDeadMan,
}

/// What writes on the weight change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    pub live: PoolName,
    pub green: Weight,
    pub cohorts_on: bool,
    pub dead_man: Option<DeadMan>,
    pub promoted: Option<Promoted>,
}

/// What new flows are shared by: shares observed under another say nothing
/// about this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sharing {
    threshold: u64,
    live: PoolName,
    split: SplitMethod,
    affinity: Affinity,
    /// Pools that have a backend for new flows.
    carries: [bool; 2],
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: ServiceId,
    /// With a seed.
    pub spec: ServiceSpec,
    pub vip_backend: BackendId,
    /// Ids in the order of the spec's pools.
    pub pools: [Vec<BackendId>; 2],
    pub rings: Arc<[Vec<BackendId>; 2]>,
    /// Of everything but the split.
    pub base_hash: u64,
    pub generation: u32,
    /// The generation of the last write: what came after it has left the desired
    /// state as it was.
    pub written: u32,
    /// Backends that their checks have found down.
    pub down: BTreeSet<SocketAddr>,
    /// Those of them that the rings leave out.
    pub out: BTreeSet<SocketAddr>,
    pub dead_man: Option<DeadMan>,
    pub promoted: Option<Promoted>,
    pub settle_until_ns: u64,
    pub local_backends: [Vec<BackendId>; 2],
    /// Prefixes of the cohorts in the kernel.
    pub cohort_set: CohortSet,
    /// DNAT stands in front of the VIP, as last asked.
    pub translated: bool,
    /// `(generation, CLOCK_MONOTONIC ns)`, newest last.
    pub published: VecDeque<(u32, u64)>,
    /// What the window of observed shares was begun under.
    pub observed: Option<Sharing>,
    /// The store has not what the kernel has.
    pub dirty: bool,
    /// The store has the same desired state under an older generation.
    pub republished: bool,
}

/// Hash of a text, the same for ever.
pub fn hash_text(text: &str) -> u64 {
    text.as_bytes()
        .chunks(8)
        .fold(text.len() as u64, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            siphash13([0, 0], [hash, u64::from_le_bytes(word)])
        })
}

/// Hash of everything in a spec but its split.
pub fn base_hash(spec: &ServiceSpec) -> u64 {
    let mut spec = spec.clone();
    spec.live = PoolName::Blue;
    spec.green = Weight::ZERO;
    spec.cohorts_on = true;
    // As numbers, not as text: there may be thousands, and a rollback waits
    // where this is asked.
    let cohorts = std::mem::take(&mut spec.cohorts);
    let hash = hash_text(&file::spec_to_json(&spec));
    cohorts.iter().fold(hash, |hash, cohort| {
        let pool = cohort.pool.map_or(2, |pool| pool.index() as u64);
        let named = siphash13([0, 3], [hash, hash_text(&cohort.name), pool]);
        cohort.prefixes.iter().fold(named, |hash, prefix| {
            let [low, high, bits] = prefix.words();
            siphash13([0, 3], [hash, low, high, bits])
        })
    })
}

/// Hash of the desired state, for the record in the kernel.
pub fn desired_hash(base_hash: u64, live: PoolName, threshold: u64, cohorts_on: bool) -> u64 {
    let suspended = u64::from(!cohorts_on) << 1;
    let live = live.index() as u64;
    siphash13([0, 1], [base_hash, live | suspended, threshold])
}

/// Whether the kernel carries out this spec, whatever the split.
pub fn is_of(image: &ServiceImage, spec: &ServiceSpec) -> bool {
    let on = image.cohorts_on || image.cohort_set == 0 && spec.cohorts_on;
    image.desired_hash == desired_hash(base_hash(spec), image.live, image.threshold, on)
}

impl Entry {
    pub fn split(&self) -> Split {
        Split {
            live: self.spec.live,
            green: self.spec.green,
            cohorts_on: self.spec.cohorts_on,
            dead_man: self.dead_man,
            promoted: self.promoted,
        }
    }

    pub fn set_split(&mut self, split: Split) {
        self.spec.live = split.live;
        self.spec.green = split.green;
        self.spec.cohorts_on = split.cohorts_on;
        self.dead_man = split.dead_man;
        self.promoted = split.promoted;
    }

    pub fn sharing(&self) -> Sharing {
        Sharing {
            threshold: self.spec.green.threshold(),
            live: self.spec.live,
            split: self.spec.split,
            affinity: self.spec.affinity,
            carries: self.rings.each_ref().map(|ring| !ring.is_empty()),
        }
    }

    pub fn seed(&self) -> Seed {
        // An entry is made with a seed; zero is a key like any other.
        self.spec.seed.unwrap_or(Seed([0, 0]))
    }

    pub fn image(&self) -> ServiceImage {
        ServiceImage {
            id: self.id,
            vip: self.spec.vip,
            vip_backend: self.vip_backend,
            generation: self.generation,
            threshold: self.spec.green.threshold(),
            dead_man: self.dead_man.map(|d| d.image),
            breaker: self.spec.breaker.as_ref().map(super::breaker::image),
            live: self.spec.live,
            live_has_vip: self.spec.pool_has_vip(self.spec.live),
            split: self.spec.split,
            affinity: self.spec.affinity,
            seed: self.seed(),
            desired_hash: self.desired_hash(),
            settle_until_ns: self.settle_until_ns,
            local_backends: self.local_backends.clone(),
            cohort_set: self.cohort_set,
            cohorts_on: self.spec.cohorts_on && self.cohort_set != 0,
        }
    }

    fn desired_hash(&self) -> u64 {
        let spec = &self.spec;
        desired_hash(
            self.base_hash,
            spec.live,
            spec.green.threshold(),
            spec.cohorts_on,
        )
    }

    /// Whether cohorts stay in force where the live pool gets everything: only
    /// where there are none, so that nothing changes.
    pub fn cohorts_after_return(&self) -> bool {
        self.spec.cohorts.is_empty()
    }

    /// Everything to one pool, with no dead-man, as after a rollback. An earlier
    /// promote is not undone by it where that pool is live.
    pub fn way_back(&self, live: PoolName) -> Split {
        Split {
            live,
            green: live.all(),
            cohorts_on: self.cohorts_after_return(),
            dead_man: None,
            promoted: self.promoted.filter(|_| live == self.spec.live),
        }
    }

    /// "on" or "suspended", as the kernel acts now; "" without cohorts.
    pub fn cohorts_word(&self, clock: &dyn Clock) -> &'static str {
        match (self.spec.cohorts.is_empty(), self.spec.cohorts_on) {
            (true, _) => "",
            (false, true) if !self.dead_man_passed(clock) => "on",
            _ => "suspended",
        }
    }

    pub fn row(&self, whole: bool) -> Row<'_> {
        Row {
            spec: &self.spec,
            whole,
            generation: self.generation,
            written: self.written,
            dead_man: self.dead_man.map(|d| d.stored),
            promoted: self.promoted,
        }
    }

    pub fn etag(&self) -> String {
        let etag = siphash13([0, 2], [self.desired_hash(), u64::from(self.written)]);
        format!("{etag:016x}")
    }

    /// Past the deadline of its dead-man.
    pub fn dead_man_passed(&self, clock: &dyn Clock) -> bool {
        self.dead_man
            .is_some_and(|d| d.image.deadline_ns <= clock.boot_ns())
    }

    /// Threshold that the kernel acts on now.
    pub fn programmed_threshold(&self, clock: &dyn Clock) -> u64 {
        match self.dead_man {
            Some(dead_man) if self.dead_man_passed(clock) => dead_man.image.safe_threshold,
            _ => self.spec.green.threshold(),
        }
    }

    /// Share of new flows that goes to green by a threshold: a pool without a backend
    /// for them gives its own to the other.
    pub fn share_of(&self, threshold: u64) -> f64 {
        match self.rings.each_ref().map(|ring| ring.is_empty()) {
            [true, false] => 1.0,
            [false, true] => 0.0,
            _ => threshold_share(threshold),
        }
    }

    pub fn note_published(&mut self, at_ns: u64) {
        self.published.push_back((self.generation, at_ns));
        if self.published.len() > PUBLISHED_KEPT {
            self.published.pop_front();
        }
    }

    /// When the generation was published, if that is still known.
    pub fn published_ns(&self, generation: u32) -> Option<u64> {
        let mut published = self.published.iter();
        published.find(|(g, _)| *g == generation).map(|(_, at)| *at)
    }

    /// How flows without an entry are taken over.
    pub fn adoption(&self) -> &'static str {
        adoption(&self.spec, self.translated)
    }

    /// `web: blue live, green 5%`, for the audit.
    pub fn describe(&self) -> String {
        describe(&self.spec, self.dead_man.is_some())
    }

    /// All backends that it names.
    pub fn named(&self) -> Vec<BackendId> {
        let mut named = vec![self.vip_backend];
        named.extend(self.pools.iter().flatten());
        named
    }
}

/// A split in words.
pub fn describe(spec: &ServiceSpec, dead_man: bool) -> String {
    let guarded = if dead_man { ", dead-man armed" } else { "" };
    let suspended = match spec.cohorts.is_empty() || spec.cohorts_on {
        true => "",
        false => ", cohorts suspended",
    };
    format!(
        "{} live, green {}{suspended}{guarded}",
        spec.live, spec.green
    )
}

/// See [`Entry::adoption`].
pub fn adoption(spec: &ServiceSpec, translated: bool) -> &'static str {
    if spec.pool_has_vip(spec.live) {
        "vip"
    } else if translated {
        "refused"
    } else if spec.pool(spec.live).len() == 1 {
        "single"
    } else {
        "hash"
    }
}

/// What a case means for flows under way that no socket of this host shows.
pub fn adoption_meaning(case: &str) -> &'static str {
    match case {
        "vip" => "flows under way stay on the server at the VIP, untouched",
        "single" => "flows under way go on to the one backend of the live pool",
        "refused" => {
            "flows under way are cut: DNAT stands in front of the VIP and the live pool does not hold it"
        }
        _ => {
            "flows under way that no socket of this host shows are spread over the live pool by hash; those that meet another server than before are reset"
        }
    }
}

/// Backends of each pool whose sockets can be looked up, without the VIP.
pub fn local_backends(
    pools: &[Vec<BackendId>; 2],
    vip: BackendId,
    backends: &Backends,
) -> [Vec<BackendId>; 2] {
    pools.each_ref().map(|pool| {
        pool.iter()
            .copied()
            .filter(|id| *id != vip && backends.get(*id).is_some_and(|s| s.is_local()))
            .take(LOCAL_BACKENDS)
            .collect()
    })
}

/// Threshold difference as a share.
pub fn threshold_moved(before: u64, after: u64) -> f64 {
    before.abs_diff(after) as f64 / THRESHOLD_ONE as f64
}
