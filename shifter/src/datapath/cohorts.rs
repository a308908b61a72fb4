//! Cohorts in the kernel: sets of prefixes in one trie.
//!
//! A trie cannot be replaced whole under its readers. So a set is written under
//! an id that no service names, published by the head's one store with the body
//! that names it, and the set before it is taken out after a grace period. The
//! locks here are not those of a publication: a rollback waits for no set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use aya::maps::{
    MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use shifter_common::abi::{
    BLUE, CohortAddress, CohortRule, GREEN,
    cohort::{
        COHORT_CANDIDATE, COHORT_HEAD_BITS, MAX_COHORT_ELEMENTS, MAX_COHORT_SETS, NO_COHORT_SET,
    },
};

use super::{
    CohortSet, DatapathError,
    allocator::Numbers,
    backends::{Plain, address_bytes, is_not_there},
    kernel::lock,
    load::failed,
};
use crate::{
    fault,
    model::{
        PoolName, Prefix,
        cohort::{self, Rule},
    },
};

/// Prefixes that are written or taken out under one hold of the lock.
const CHUNK: usize = 256;

type Trie = LpmTrie<MapData, Plain<CohortAddress>, Plain<CohortRule>>;

/// The trie and the sets in it.
pub(super) struct Cohorts {
    trie: Mutex<Trie>,
    sets: Mutex<Sets>,
}

struct Sets {
    numbers: Numbers,
    rules: BTreeMap<CohortSet, Arc<[Rule]>>,
    /// Given up, and still to be taken out.
    dropped: BTreeSet<CohortSet>,
}

impl Cohorts {
    /// Takes over what is there. Sets that no service names were left by an
    /// agent that died before it published them, or before it took them out.
    pub fn adopt(trie: Trie, named: &BTreeSet<CohortSet>) -> Result<Self, DatapathError> {
        let mut rules: BTreeMap<CohortSet, Vec<Rule>> = BTreeMap::new();
        let reading = |error: MapError| failed("reading the prefixes of cohorts", error, "");
        for element in trie.iter() {
            let (key, Plain(rule)) = element.map_err(reading)?;
            let (set, rule) = rule_of(&key, rule);
            rules.entry(set).or_default().push(rule);
        }
        // Those that a service names are taken even where their prefixes were lost with
        // the map: another service's set must not come under their number.
        let taken = rules.keys().chain(named).copied();
        let sets: BTreeSet<u32> = taken
            .filter(|set| *set != NO_COHORT_SET)
            .map(u32::from)
            .collect();
        let dropped: BTreeSet<CohortSet> = rules
            .keys()
            .copied()
            .filter(|set| !named.contains(set))
            .collect();
        if !dropped.is_empty() {
            tracing::warn!(
                sets = dropped.len(),
                "taking out sets of cohorts that no service names"
            );
        }
        let sorted = |(set, mut rules): (CohortSet, Vec<Rule>)| {
            rules.sort_unstable();
            (set, rules.into())
        };
        Ok(Self {
            trie: Mutex::new(trie),
            sets: Mutex::new(Sets {
                numbers: Numbers::new(MAX_COHORT_SETS, sets),
                rules: rules.into_iter().map(sorted).collect(),
                dropped,
            }),
        })
    }

    /// Writes a set that no packet looks at yet.
    pub fn write(&self, rules: &[Rule]) -> Result<CohortSet, DatapathError> {
        if rules.is_empty() {
            return Ok(NO_COHORT_SET);
        }
        let Some(number) = lock(&self.sets).numbers.take() else {
            return Err(DatapathError::Full {
                what: "sets of cohorts",
                limit: u64::from(MAX_COHORT_SETS),
                remedy: "wait a second: sets that were replaced are freed then",
            });
        };
        let set = number as CohortSet;
        // From here on it is taken out again, whatever happens.
        lock(&self.sets).rules.insert(set, rules.into());
        for chunk in rules.chunks(CHUNK) {
            if let Err(error) = self.write_chunk(set, chunk) {
                self.drop(set);
                return Err(error);
            }
            fault::point("cohorts-half");
        }
        fault::point("cohorts-written");
        Ok(set)
    }

    fn write_chunk(&self, set: CohortSet, rules: &[Rule]) -> Result<(), DatapathError> {
        let mut trie = lock(&self.trie);
        for rule in rules {
            let (key, value) = element_of(set, rule);
            trie.insert(&key, Plain(value), 0).map_err(|error| {
                if is_full(&error) {
                    DatapathError::Full {
                        what: "prefixes of cohorts, those being replaced among them",
                        limit: u64::from(MAX_COHORT_ELEMENTS),
                        remedy: "write fewer prefixes, or apply them one after the other",
                    }
                } else {
                    let what = format!("writing the cohort prefix {}", rule.prefix);
                    failed(what, error, "memory may be short")
                }
            })?;
        }
        Ok(())
    }

    /// Gives a set up; it is taken out once no service names it, after a grace period.
    pub fn drop(&self, set: CohortSet) {
        if set != NO_COHORT_SET {
            lock(&self.sets).dropped.insert(set);
        }
    }

    /// Whether sets that were given up still take room.
    pub fn has_dropped(&self) -> bool {
        !lock(&self.sets).dropped.is_empty()
    }

    /// What a set holds, sorted.
    pub fn rules(&self, set: CohortSet) -> Arc<[Rule]> {
        let sets = lock(&self.sets);
        sets.rules.get(&set).cloned().unwrap_or_default()
    }

    /// Prefixes in sets that are not given up.
    pub fn used(&self) -> u64 {
        let sets = lock(&self.sets);
        let kept = sets
            .rules
            .iter()
            .filter(|(set, _)| !sets.dropped.contains(set));
        kept.map(|(_, rules)| rules.len() as u64).sum()
    }

    /// Before a grace period: what can be taken out after it. `named`: by services.
    pub fn ripen(&self, named: impl FnOnce() -> BTreeSet<CohortSet>) -> Vec<CohortSet> {
        let mut sets = lock(&self.sets);
        sets.numbers.ripen();
        if sets.dropped.is_empty() {
            return Vec::new();
        }
        let dropped = sets.dropped.clone();
        drop(sets);
        dropped.difference(&named()).copied().collect()
    }

    /// After a grace period.
    pub fn reclaim(&self, ripe: &[CohortSet]) {
        lock(&self.sets).numbers.reclaim();
        for set in ripe {
            if let Err(error) = self.take_out(*set) {
                tracing::warn!(set, %error, "taking a set of cohorts out failed; it is tried again");
                continue;
            }
            let mut sets = lock(&self.sets);
            sets.rules.remove(set);
            sets.dropped.remove(set);
            sets.numbers.give_back(u32::from(*set));
        }
    }

    fn take_out(&self, set: CohortSet) -> Result<(), MapError> {
        for chunk in self.rules(set).chunks(CHUNK) {
            let mut trie = lock(&self.trie);
            for rule in chunk {
                match trie.remove(&element_of(set, rule).0) {
                    Err(error) if !is_not_there(&error) => return Err(error),
                    _ => {}
                }
            }
            drop(trie);
            fault::point("cohorts-out");
        }
        Ok(())
    }
}

fn is_full(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOSPC),
        _ => false,
    }
}

fn element_of(set: CohortSet, rule: &Rule) -> (Key<Plain<CohortAddress>>, CohortRule) {
    let (addr, family) = address_bytes(rule.prefix.addr());
    let bits = COHORT_HEAD_BITS + u32::from(rule.prefix.bits());
    let key = Key::new(bits, Plain(CohortAddress::new(set, family, addr)));
    let pool = rule
        .pool
        .map_or(COHORT_CANDIDATE, |pool| pool.index() as u16);
    let cohort = rule.cohort;
    (key, CohortRule { pool, cohort })
}

fn rule_of(key: &Key<Plain<CohortAddress>>, rule: CohortRule) -> (CohortSet, Rule) {
    let Plain(address) = key.data();
    let addr = if address.family == 4 {
        let [a, b, c, d, ..] = address.addr;
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(address.addr)
    };
    let bits = key.prefix_len().saturating_sub(COHORT_HEAD_BITS) as u8;
    let prefix = Prefix::cut(addr, bits).unwrap_or(cohort::NOBODY);
    let pool = match usize::from(rule.pool) {
        BLUE => Some(PoolName::Blue),
        GREEN => Some(PoolName::Green),
        _ => None,
    };
    let rule = Rule {
        prefix,
        pool,
        cohort: rule.cohort,
    };
    (u16::from_be_bytes(address.set), rule)
}
