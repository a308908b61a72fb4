//! Cohorts: named client prefixes whose new flows get a pool, whatever the weight.
//!
//! The longest prefix of a service that holds the client decides, as in a
//! routing table (RFC 4632 §5.1).

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use shifter_common::abi::cohort::MAX_COHORT_PREFIXES;

use super::{
    PoolName, ServiceSpec,
    text::{TextError, plural},
};

/// Cohorts of one service, at most.
pub const MAX_COHORTS: usize = 256;

/// A client prefix; bits behind its length are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    addr: IpAddr,
    bits: u8,
}

/// Named prefixes and the pool that their clients get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CohortSpec {
    pub name: String,
    /// `None`: the candidate, whichever pool that is.
    pub pool: Option<PoolName>,
    /// At least one.
    pub prefixes: Arc<[Prefix]>,
}

/// One prefix as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rule {
    pub prefix: Prefix,
    /// `None`: the candidate.
    pub pool: Option<PoolName>,
    /// Place of the cohort in its service's list.
    pub cohort: u16,
}

/// Why cohorts are refused; each text says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CohortFault {
    #[error("there are {0} cohorts: a service has 256 at most")]
    TooMany(usize),
    #[error("a cohort's name has 1 to 63 letters, digits, '-', '_' or '.'; {0:?} has not")]
    Name(String),
    #[error("two cohorts are called {0:?}: give each its own name")]
    NameTwice(String),
    #[error(
        "cohort {0:?} has no prefix: write at least one, as prefixes = [\"10.1.0.0/16\"], or take the cohort out"
    )]
    Empty(String),
    #[error("cohort {cohort:?} names {prefix} twice: write it once")]
    Twice { cohort: String, prefix: Prefix },
    #[error(
        "{prefix} is in cohorts {first:?} and {second:?}: leave it in one of them (of different lengths, the longest decides)"
    )]
    InBoth {
        prefix: Prefix,
        first: String,
        second: String,
    },
    #[error("{prefix} is an IPv4 prefix written as IPv6: write it as IPv4")]
    Mapped { prefix: Prefix },
    #[error(
        "no prefix of cohort {cohort:?} is {family}, as the VIP is, so that it would hold no client: write {family} prefixes (those of the other family may stay beside them)"
    )]
    Family {
        cohort: String,
        family: &'static str,
    },
    #[error("the cohorts have {0} prefixes: 65,536 is the most")]
    TooManyPrefixes(usize),
    #[error(
        "cohort {cohort:?} would give {pool} its clients' new flows, but {pool} has no backend: add one, take the cohort out, or write cohorts_on = false"
    )]
    PoolEmpty { cohort: String, pool: PoolName },
}

/// Where a fault of cohorts lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CohortPlace {
    /// The list.
    All,
    /// The cohort at this place.
    Cohort(usize),
    /// A prefix of it.
    Prefix(usize, usize),
}

const RIGHT: &str =
    "address/length or an address, as \"10.1.0.0/16\", \"2001:db8:1::/48\" or \"192.0.2.7\"";

/// The address that is nobody's, as a prefix.
pub const NOBODY: Prefix = Prefix {
    addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    bits: 128,
};

impl Prefix {
    /// The first `bits` bits of an address; `None` where it has fewer.
    pub fn cut(addr: IpAddr, bits: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(ip) if bits <= 32 => IpAddr::V4(Ipv4Addr::from_bits(
                ip.to_bits() & mask(u128::from(u32::MAX), 32, bits) as u32,
            )),
            IpAddr::V6(ip) if bits <= 128 => IpAddr::V6(Ipv6Addr::from_bits(
                ip.to_bits() & mask(u128::MAX, 128, bits),
            )),
            _ => return None,
        };
        Some(Self { addr, bits })
    }

    /// Its address, the bits behind the length zero.
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Its length in bits of its own family.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Itself as numbers; no two prefixes have the same.
    pub fn words(&self) -> [u64; 3] {
        let (bits, family) = match self.addr {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 4),
            IpAddr::V6(ip) => (ip.to_bits(), 6),
        };
        let length = u64::from(self.bits) << 8 | family;
        [bits as u64, (bits >> 64) as u64, length]
    }

    /// Whether a client lies in it.
    pub fn contains(&self, client: IpAddr) -> bool {
        client.is_ipv4() == self.addr.is_ipv4()
            && Self::cut(client, self.bits).is_some_and(|cut| cut.addr == self.addr)
    }
}

/// `all` without the bits behind the first `bits` of `width`.
const fn mask(all: u128, width: u32, bits: u8) -> u128 {
    match all.checked_shl(width - bits as u32) {
        Some(mask) => mask & all,
        None => 0,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let fault = || TextError {
            text: text.to_owned(),
            what: "client prefix",
            right: RIGHT,
        };
        let (addr, length) = match text.split_once('/') {
            Some((addr, length)) => (addr, Some(length)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| fault())?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let bits = match length {
            None => whole,
            // "+8" and "08" are numbers too, but nobody's prefixes.
            Some(length) => length
                .parse()
                .ok()
                .filter(|bits: &u8| bits.to_string() == length)
                .ok_or_else(fault)?,
        };
        let prefix = Self::cut(addr, bits).ok_or_else(fault)?;
        if prefix.addr == addr {
            Ok(prefix)
        } else {
            Err(PrefixError::HostBits {
                text: text.to_owned(),
                prefix,
            })
        }
    }
}

/// Why a text is no prefix.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PrefixError {
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("{text:?} has bits behind its length: write \"{prefix}\"")]
    HostBits { text: String, prefix: Prefix },
}

/// The cohort that holds a client, by its longest prefix.
pub fn longest(cohorts: &[CohortSpec], client: IpAddr) -> Option<(&CohortSpec, Prefix)> {
    cohorts
        .iter()
        .flat_map(|cohort| cohort.prefixes.iter().map(move |prefix| (cohort, *prefix)))
        .filter(|(_, prefix)| prefix.contains(client))
        .max_by_key(|(_, prefix)| prefix.bits)
}

/// What the kernel is told: prefixes of the VIP's family, sorted.
pub fn rules(spec: &ServiceSpec) -> Vec<Rule> {
    let mut rules: Vec<Rule> = spec
        .cohorts
        .iter()
        .zip(0u16..)
        .flat_map(|(cohort, number)| {
            cohort.prefixes.iter().map(move |prefix| Rule {
                prefix: *prefix,
                pool: cohort.pool,
                cohort: number,
            })
        })
        .filter(|rule| rule.prefix.addr.is_ipv4() == spec.vip.addr.is_ipv4())
        .collect();
    rules.sort_unstable();
    rules
}

impl CohortSpec {
    /// Pool that it gives its clients where `live` is live.
    pub fn pool_when(&self, live: PoolName) -> PoolName {
        self.pool.unwrap_or(live.other())
    }

    /// Prefixes of the VIP's family, and of the other.
    pub fn counts(&self, vip_is_ipv4: bool) -> (usize, usize) {
        let is = |prefix: &&Prefix| prefix.addr.is_ipv4() == vip_is_ipv4;
        let own = self.prefixes.iter().filter(is).count();
        (own, self.prefixes.len() - own)
    }
}

/// Checks a service's cohorts.
pub fn check(spec: &ServiceSpec) -> Result<(), (CohortPlace, CohortFault)> {
    let cohorts = &spec.cohorts;
    if cohorts.len() > MAX_COHORTS {
        return Err((CohortPlace::All, CohortFault::TooMany(cohorts.len())));
    }
    let count: usize = cohorts.iter().map(|cohort| cohort.prefixes.len()).sum();
    if count > MAX_COHORT_PREFIXES as usize {
        return Err((CohortPlace::All, CohortFault::TooManyPrefixes(count)));
    }
    let mut seen: HashMap<Prefix, usize> = HashMap::with_capacity(count);
    for (index, cohort) in cohorts.iter().enumerate() {
        let at = CohortPlace::Cohort(index);
        let name = cohort.name.clone();
        if !super::validate::name_is_right(&name) {
            return Err((at, CohortFault::Name(name)));
        }
        if cohorts[..index].iter().any(|other| other.name == name) {
            return Err((at, CohortFault::NameTwice(name)));
        }
        if cohort.prefixes.is_empty() {
            return Err((at, CohortFault::Empty(name)));
        }
        for (number, prefix) in cohort.prefixes.iter().enumerate() {
            let at = CohortPlace::Prefix(index, number);
            let prefix = *prefix;
            if matches!(prefix.addr, IpAddr::V6(ip) if prefix.bits >= 96 && ip.to_ipv4_mapped().is_some())
            {
                return Err((at, CohortFault::Mapped { prefix }));
            }
            match seen.insert(prefix, index) {
                None => {}
                Some(first) if first == index => {
                    return Err((
                        at,
                        CohortFault::Twice {
                            cohort: name,
                            prefix,
                        },
                    ));
                }
                Some(first) => {
                    let first = cohorts[first].name.clone();
                    let fault = CohortFault::InBoth {
                        prefix,
                        first,
                        second: name,
                    };
                    return Err((at, fault));
                }
            }
        }
        if cohort.counts(spec.vip.addr.is_ipv4()).0 == 0 {
            let family = if spec.vip.addr.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            return Err((
                at,
                CohortFault::Family {
                    cohort: name,
                    family,
                },
            ));
        }
    }
    pools(spec)
}

/// Checks that cohorts that are on give flows to pools that have a backend.
pub fn pools(spec: &ServiceSpec) -> Result<(), (CohortPlace, CohortFault)> {
    let wrong = |cohort: &CohortSpec| {
        let pool = cohort.pool_when(spec.live);
        spec.cohorts_on && spec.pool(pool).is_empty()
    };
    match spec.cohorts.iter().position(wrong) {
        None => Ok(()),
        Some(index) => {
            let cohort = &spec.cohorts[index];
            let pool = cohort.pool_when(spec.live);
            let cohort = cohort.name.clone();
            Err((
                CohortPlace::Cohort(index),
                CohortFault::PoolEmpty { cohort, pool },
            ))
        }
    }
}

/// What changes from some cohorts to others, one line each.
pub fn details(before: &ServiceSpec, after: &ServiceSpec, lines: &mut Vec<String>) {
    let find = |spec: &'_ ServiceSpec, name: &str| spec.cohorts.iter().position(|c| c.name == name);
    let count = |cohort: &CohortSpec| plural_prefixes(cohort.prefixes.len());
    let pool = |cohort: &CohortSpec| {
        cohort
            .pool
            .map_or("candidate".to_owned(), |pool| pool.to_string())
    };
    let first = lines.len();
    for cohort in &after.cohorts {
        let name = &cohort.name;
        let Some(was) = find(before, name).map(|index| &before.cohorts[index]) else {
            lines.push(format!(
                "cohort {name}: + {} to {}",
                count(cohort),
                pool(cohort)
            ));
            continue;
        };
        if was.prefixes != cohort.prefixes {
            lines.push(format!(
                "cohort {name}: {} -> {} ({} new, {} gone)",
                count(was),
                cohort.prefixes.len(),
                missing(&cohort.prefixes, &was.prefixes),
                missing(&was.prefixes, &cohort.prefixes),
            ));
        }
        if was.pool != cohort.pool {
            lines.push(format!("cohort {name}: {} -> {}", pool(was), pool(cohort)));
        }
    }
    for cohort in before
        .cohorts
        .iter()
        .filter(|c| find(after, &c.name).is_none())
    {
        lines.push(format!("cohort {}: - {}", cohort.name, count(cohort)));
    }
    let word = |spec: &ServiceSpec| if spec.cohorts_on { "on" } else { "suspended" };
    let has = !before.cohorts.is_empty() && !after.cohorts.is_empty();
    if has && before.cohorts_on != after.cohorts_on {
        lines.push(format!("cohorts: {} -> {}", word(before), word(after)));
    }
    if lines.len() > first {
        lines.push(
            "cohorts: how many clients come from these prefixes is not known; new flows of theirs go by the new list, pinned ones stay"
                .to_owned(),
        );
    }
}

fn plural_prefixes(count: usize) -> String {
    match count {
        1 => "1 prefix".to_owned(),
        count => format!("{}es", plural(count as u64, "prefix").trim_end_matches('s')),
    }
}

/// How many of `these` are not among `those`.
fn missing(these: &[Prefix], those: &[Prefix]) -> usize {
    let those: std::collections::HashSet<&Prefix> = those.iter().collect();
    these
        .iter()
        .filter(|prefix| !those.contains(prefix))
        .count()
}

#[cfg(test)]
#[path = "cohort_tests.rs"]
mod tests;
