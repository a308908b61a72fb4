//! Maglev rings: which backend of a pool owns which part of the hash space.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, §3.4, with turns in proportion to weight. Pure and
//! deterministic in the backends' keys and the seed, so that hosts which share
//! them agree; the order in which backends are named plays no part.

use shifter_common::hash::siphash13;

/// As `datapath::BackendId`; the ring knows nothing else of the datapath.
type BackendId = u16;

/// Slots for each backend of the smallest weight, at least, while
/// [`MAX_WEIGHTED_SLOTS`] allows.
pub const SLOTS_PER_BACKEND: usize = 100;
/// Weights that differ much ask for many slots; beyond this many they get
/// what their number asks for.
pub const MAX_WEIGHTED_SLOTS: usize = 65_521;

/// Largest primes below 2^7, 2^8, …, 2^21. Sizes go in steps, because a ring
/// of another size shares little with the one before.
const SIZES: [u32; 15] = [
    127, 251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287,
    1_048_573, 2_097_143,
];

/// One backend of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: BackendId,
    /// At least 1.
    pub weight: u32,
    /// The same on every host: address and port. See [`member_key`].
    pub key: [u64; 4],
    /// Offered new flows. Others count for the ring's size, so that a drain
    /// moves only what the drained backend owned.
    pub ready: bool,
}

/// Stable key of a backend's address and port.
pub fn member_key(addr: std::net::SocketAddr) -> [u64; 4] {
    let (octets, family) = match addr.ip() {
        std::net::IpAddr::V4(ip) => (ip.to_ipv6_mapped().octets(), 4),
        std::net::IpAddr::V6(ip) => (ip.octets(), 6),
    };
    let [low, high] = shifter_common::hash::address_words(&octets);
    [low, high, u64::from(addr.port()), family]
}

/// Number of slots for a pool, ready or not; 0 for none.
pub fn slots(members: &[Member]) -> usize {
    let Some(least) = members.iter().map(|m| m.weight.max(1)).min() else {
        return 0;
    };
    let sum: u64 = members.iter().map(|m| u64::from(m.weight.max(1))).sum();
    let by_weight = sum.div_ceil(u64::from(least)) as usize * SLOTS_PER_BACKEND;
    let wanted = by_weight
        .min(MAX_WEIGHTED_SLOTS)
        .max(members.len() * SLOTS_PER_BACKEND);
    let fits = SIZES.iter().find(|size| **size as usize >= wanted);
    fits.copied().unwrap_or(SIZES[SIZES.len() - 1]) as usize
}

/// Backend id per slot; empty when no member is ready.
///
/// # Example
///
/// ```
/// use shifter::ring::{Member, build, member_key};
/// let member = |id, addr: &str| Member {
///     id,
///     weight: 1,
///     key: member_key(addr.parse().unwrap()),
///     ready: true,
/// };
/// let ring = build([1, 2], &[member(7, "10.0.0.1:80"), member(9, "10.0.0.2:80")]);
/// assert_eq!(ring.len(), 251);
/// ```
pub fn build(seed: [u64; 2], members: &[Member]) -> Vec<BackendId> {
    let size = slots(members) as u32;
    let mut ready: Vec<&Member> = members.iter().filter(|m| m.ready).collect();
    ready.sort_by_key(|m| m.key);
    match ready.as_slice() {
        [] => Vec::new(),
        [only] => vec![only.id; size as usize],
        _ => fill(seed, size, &ready),
    }
}

/// One backend on its walk over the slots.
struct Walk {
    next: u32,
    skip: u32,
    weight: u64,
    credit: u64,
    id: BackendId,
}

fn fill(seed: [u64; 2], size: u32, ready: &[&Member]) -> Vec<BackendId> {
    let mut walks: Vec<Walk> = ready.iter().map(|m| walk(seed, size, m)).collect();
    let most = walks.iter().map(|w| w.weight).max().unwrap_or(1);
    // 0 is NO_BACKEND and so marks a slot that is free.
    let mut ring = vec![0; size as usize];
    let mut left = size;
    loop {
        for walk in &mut walks {
            walk.credit += walk.weight;
            if walk.credit < most {
                continue;
            }
            walk.credit -= most;
            while ring[walk.next as usize] != 0 {
                walk.step(size);
            }
            ring[walk.next as usize] = walk.id;
            walk.step(size);
            left -= 1;
            if left == 0 {
                return ring;
            }
        }
    }
}

impl Walk {
    fn step(&mut self, size: u32) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

fn walk(seed: [u64; 2], size: u32, member: &Member) -> Walk {
    let [a, b, c, d] = member.key;
    let offset = siphash13(seed, [a, b, c, d, 0]);
    let skip = siphash13(seed, [a, b, c, d, 1]);
    Walk {
        next: (offset % u64::from(size)) as u32,
        skip: (skip % u64::from(size - 1)) as u32 + 1,
        weight: u64::from(member.weight.max(1)),
        credit: 0,
        id: member.id,
    }
}

/// Share of the hash space whose owner differs between two rings, estimated
/// at 4,096 evenly spaced points.
pub fn moved_share(before: &[BackendId], after: &[BackendId]) -> f64 {
    const POINTS: u32 = 4_096;
    if before == after {
        return 0.0;
    }
    let owner = |ring: &[BackendId], point: u32| {
        let hash = point * (u32::MAX / POINTS) + u32::MAX / POINTS / 2;
        ring.get(shifter_common::select::ring_slot(hash, ring.len() as u32) as usize)
            .copied()
    };
    let moved = (0..POINTS)
        .filter(|point| owner(before, *point) != owner(after, *point))
        .count();
    moved as f64 / f64::from(POINTS)
}

#[cfg(test)]
mod tests {
    use std::iter;

    use shifter_common::select::{RING_TRIES, next_ring_hash, ring_slot};

    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights
            .iter()
            .enumerate()
            .map(|(i, weight)| Member {
                id: i as BackendId + 1,
                weight: *weight,
                key: member_key(
                    format!("10.0.{}.{}:80", i / 250, i % 250 + 1)
                        .parse()
                        .unwrap(),
                ),
                ready: true,
            })
            .collect()
    }

    fn count(ring: &[BackendId], id: BackendId) -> f64 {
        ring.iter().filter(|slot| **slot == id).count() as f64
    }

    #[test]
    fn shares_are_in_proportion_to_weight_within_two_percent() {
        for weights in [
            vec![1; 2],
            vec![1; 7],
            vec![1; 100],
            vec![1, 2],
            vec![3, 5, 7],
            vec![1, 10],
            vec![100, 1, 50, 1000],
            (1..=40).collect(),
        ] {
            let sum: u32 = weights.iter().sum();
            for seed in 0..20 {
                let members = members(&weights);
                let ring = build([seed, 1], &members);
                for member in &members {
                    let share = count(&ring, member.id) / ring.len() as f64;
                    let wanted = f64::from(member.weight) / f64::from(sum);
                    let off = (share - wanted).abs() / wanted;
                    assert!(off <= 0.02, "{weights:?}: {} is off by {off}", member.id);
                }
            }
        }
    }

    #[test]
    fn draining_a_backend_moves_little_beyond_what_it_owned() {
        for n in [2usize, 3, 5, 10, 50] {
            for seed in 0..10 {
                let mut members = members(&vec![1; n]);
                let before = build([seed, 2], &members);
                members[n / 2].ready = false;
                let after = build([seed, 2], &members);
                assert_eq!(before.len(), after.len());
                let gone = members[n / 2].id;
                assert!(!after.contains(&gone));
                let astray = before
                    .iter()
                    .zip(&after)
                    .filter(|(b, a)| **b != gone && b != a)
                    .count() as f64;
                let astray = astray / before.len() as f64;
                assert!(astray < 0.13, "{n} backends: {astray} moved besides");
            }
        }
    }

    #[test]
    fn hosts_agree_whatever_the_order_and_the_ids() {
        let there: Vec<Member> = members(&[1, 2, 3, 4]);
        let mut here = there.clone();
        here.reverse();
        for member in &mut here {
            member.id += 100;
        }
        let a = build([3, 4], &there);
        let b: Vec<BackendId> = build([3, 4], &here).iter().map(|id| id - 100).collect();
        assert_eq!(a, b);
        assert_ne!(a, build([3, 5], &there));
    }

    #[test]
    fn a_pool_without_a_ready_backend_has_no_ring() {
        assert!(build([1, 1], &[]).is_empty());
        let mut one = members(&[1]);
        assert_eq!(build([1, 1], &one), vec![1; 127]);
        one[0].ready = false;
        assert!(build([1, 1], &one).is_empty());
    }

    #[test]
    fn every_backend_has_at_least_a_hundred_slots_and_sizes_are_prime() {
        for size in SIZES {
            let limit = (f64::from(size)).sqrt() as u32;
            assert!((2..=limit).all(|d| size % d != 0), "{size} is no prime");
        }
        for n in [1, 2, 9, 100, 1_000] {
            assert!(slots(&members(&vec![1; n])) >= n * SLOTS_PER_BACKEND);
        }
    }

    #[test]
    fn nearly_every_hash_leads_on_to_another_backend() {
        // By chance all owners are one for 1 hash in 848 where one backend weighs nine
        // times as much as the other; for 1 in 2e11 where it weighs twice as much.
        for (weights, most) in [
            (vec![1, 1], 0),
            (vec![1, 1, 1], 0),
            (vec![1, 2], 0),
            (vec![1, 9], 800),
        ] {
            let mut all = 0;
            for seed in 0..100 {
                let ring = build([seed, 5], &members(&weights));
                let size = ring.len() as u32;
                let all_one = |i: &u32| {
                    let hash = siphash13([3, 4], [u64::from(*i)]) as u32;
                    let mut owners =
                        iter::successors(Some(hash), |hash| Some(next_ring_hash(*hash)))
                            .take(RING_TRIES as usize)
                            .map(|hash| ring[ring_slot(hash, size) as usize]);
                    let first = owners.next();
                    owners.all(|owner| Some(owner) == first)
                };
                let alone = (0..4_096).filter(all_one).count();
                assert!(alone <= 20, "{weights:?}, seed {seed}: {alone} of 4096");
                all += alone;
            }
            assert!(all <= most, "{weights:?}: {all} of 409600");
        }
    }

    #[test]
    fn a_thousand_backends_take_a_moment_only() {
        let members = members(&vec![1; 1_000]);
        let begun = std::time::Instant::now();
        let ring = build([1, 2], &members);
        assert_eq!(ring.len(), 131_071);
        // Measured at about 10 ms; the bound leaves room for a busy machine.
        assert!(begun.elapsed().as_millis() < 1_000);
    }

    #[test]
    fn the_moved_share_of_a_ring_is_what_moved() {
        let members = members(&[1, 1]);
        let both = build([1, 2], &members);
        assert_eq!(moved_share(&both, &both), 0.0);
        let one = vec![members[0].id; both.len()];
        assert!((moved_share(&both, &one) - 0.5).abs() < 0.02);
        assert_eq!(moved_share(&[], &one), 1.0);
    }
}
