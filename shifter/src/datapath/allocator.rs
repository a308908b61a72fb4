//! Numbers and regions that readers may still hold: given back first, used
//! again only after a grace period. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Hands out numbers from `1..limit`.
#[derive(Debug)]
pub struct Numbers {
    used: BTreeSet<u32>,
    waiting: BTreeSet<u32>,
    ripening: BTreeSet<u32>,
    limit: u32,
    next: u32,
}

impl Numbers {
    /// Numbers in `1..limit`, those of `used` taken.
    pub fn new(limit: u32, used: impl IntoIterator<Item = u32>) -> Self {
        Self {
            used: used.into_iter().collect(),
            waiting: BTreeSet::new(),
            ripening: BTreeSet::new(),
            limit,
            next: 1,
        }
    }

    /// A number that nobody holds.
    pub fn take(&mut self) -> Option<u32> {
        for _ in 1..self.limit {
            let number = self.next;
            self.next = if number + 1 >= self.limit {
                1
            } else {
                number + 1
            };
            let held = self.waiting.contains(&number) || self.ripening.contains(&number);
            if !held && self.used.insert(number) {
                return Some(number);
            }
        }
        None
    }

    /// Gives a number back; it waits for [`Numbers::ripen`] and [`Numbers::reclaim`].
    pub fn give_back(&mut self, number: u32) {
        if self.used.remove(&number) {
            self.waiting.insert(number);
        }
    }

    /// Before a grace period: what waits now can be taken after it.
    pub fn ripen(&mut self) {
        self.ripening.append(&mut self.waiting);
    }

    /// After a grace period.
    pub fn reclaim(&mut self) {
        self.ripening.clear();
    }

    /// Numbers taken.
    pub fn used(&self) -> u64 {
        self.used.len() as u64
    }
}

/// Hands out regions of an array.
#[derive(Debug)]
pub struct Regions {
    /// Free regions: offset to length.
    free: BTreeMap<u32, u32>,
    waiting: Vec<(u32, u32)>,
    ripening: Vec<(u32, u32)>,
    used: u64,
    /// Offsets and lengths are multiples of it.
    unit: u32,
}

impl Regions {
    /// Regions of `0..limit`, those of `used` (offset, length) taken.
    pub fn new(limit: u32, unit: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut regions = Self {
            free: BTreeMap::new(),
            waiting: Vec::new(),
            ripening: Vec::new(),
            used: 0,
            unit,
        };
        let mut taken: Vec<_> = used.into_iter().filter(|(_, length)| *length > 0).collect();
        taken.sort_unstable();
        let mut from = 0;
        for (offset, length) in taken {
            let length = length.next_multiple_of(unit);
            regions.used += u64::from(length);
            if offset > from {
                regions.free.insert(from, offset - from);
            }
            from = from.max(offset + length);
        }
        if from < limit {
            regions.free.insert(from, limit - from);
        }
        regions
    }

    /// Offset of a free region of at least `length`; first fit.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let length = length.max(1).next_multiple_of(self.unit);
        let (offset, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= length)
            .map(|(o, r)| (*o, *r))?;
        self.free.remove(&offset);
        if room > length {
            self.free.insert(offset + length, room - length);
        }
        self.used += u64::from(length);
        Some(offset)
    }

    /// Gives a region back; it waits for [`Regions::ripen`] and [`Regions::reclaim`].
    pub fn give_back(&mut self, offset: u32, length: u32) {
        if length > 0 {
            let length = length.next_multiple_of(self.unit);
            self.used -= u64::from(length);
            self.waiting.push((offset, length));
        }
    }

    /// Before a grace period: what waits now can be taken after it.
    pub fn ripen(&mut self) {
        self.ripening.append(&mut self.waiting);
    }

    /// After a grace period.
    pub fn reclaim(&mut self) {
        for (mut offset, mut length) in std::mem::take(&mut self.ripening) {
            if let Some(after) = self.free.remove(&(offset + length)) {
                length += after;
            }
            let before = self.free.range(..offset).next_back().map(|(o, l)| (*o, *l));
            if let Some((start, room)) = before
                && start + room == offset
            {
                offset = start;
                length += room;
            }
            self.free.insert(offset, length);
        }
    }

    /// Slots taken.
    pub fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_back_is_not_taken_before_the_grace_period() {
        let mut numbers = Numbers::new(3, []);
        assert_eq!(
            (numbers.take(), numbers.take(), numbers.take()),
            (Some(1), Some(2), None)
        );
        numbers.give_back(1);
        assert_eq!(numbers.take(), None);
        numbers.reclaim();
        assert_eq!(numbers.take(), None);
        numbers.ripen();
        assert_eq!(numbers.take(), None);
        numbers.reclaim();
        assert_eq!(numbers.take(), Some(1));
    }

    #[test]
    fn regions_given_back_grow_together_again() {
        let mut regions = Regions::new(64, 4, []);
        let offsets: Vec<_> = (0..4).map(|_| regions.take(13).unwrap()).collect();
        assert_eq!(offsets, [0, 16, 32, 48]);
        assert_eq!(regions.take(1), None);
        for offset in [16, 48, 0, 32] {
            regions.give_back(offset, 13);
        }
        assert_eq!(regions.take(1), None);
        regions.ripen();
        regions.reclaim();
        assert_eq!(regions.used(), 0);
        assert_eq!(regions.take(64), Some(0));
    }

    #[test]
    fn regions_in_use_at_the_start_stay_taken() {
        let mut regions = Regions::new(32, 4, [(8, 5), (20, 4), (0, 0)]);
        assert_eq!(regions.used(), 12);
        assert_eq!(regions.take(8), Some(0));
        assert_eq!(regions.take(8), Some(24));
        assert_eq!(regions.take(4), Some(16));
        assert_eq!(regions.take(1), None);
    }
}
