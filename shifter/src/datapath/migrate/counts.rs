//! What the programs before still count while flows move over, and the breakers of
//! theirs that trip meanwhile.
//!
//! Counters of the new maps begin at zero. What the maps before hold is taken out there
//! once their last program is gone, and then added: a start that goes on where one was
//! killed adds the rest, without the one count that was under way.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapInfo;
use shifter_common::{
    abi::{
        BreakerRecord, FirstFlow, FlowTimes,
        flow::SET_ENTRIES,
        signals::{SIGNAL_COUNTERS, TimesSet},
    },
    breaker::outdated,
};

use super::{
    open_map,
    records::{copy_values, lookup, possible_cpus, update},
};
use crate::{
    datapath::{DatapathError, load::failed, memory::MappedArray},
    model::signals::rescale,
};

/// Sums per CPU, in words of 64 bits.
pub const SUMS: [&str; 6] = [
    "POOL_COUNTERS",
    SIGNALS,
    "HISTOGRAMS",
    "BACKEND_COUNTERS",
    "VERDICTS",
    "EVICTED",
];
pub const BREAKERS: &str = "BREAKERS";
const SIGNALS: &str = "SIGNALS";
const FIRST_FLOW: &str = "FIRST_FLOW";
const SPLIT_ERRORS: &str = "SPLIT_ERRORS";
const FLOW_TIMES: &str = "FLOW_TIMES";

/// The generation in force of a service, by its id.
pub type InForce<'a> = &'a dyn Fn(u32) -> Option<u32>;

/// From one directory of maps to another.
pub struct Counts<'a> {
    pub from: &'a Path,
    pub to: &'a Path,
    /// One flow in so many was watched before, and is now.
    pub watched: (u32, u32),
}

impl Counts<'_> {
    /// What tripped in the maps before since this was last asked holds here as well.
    pub fn carry_trips(&self, in_force: InForce) -> Result<(), DatapathError> {
        let Some((from, to)) = self.both::<BreakerRecord>(BREAKERS)? else {
            return Ok(());
        };
        for id in 0..from.count().min(to.count()) {
            let (was, is) = (from.read(id), to.read(id));
            if let Some(generation) = in_force(id).filter(|_| is_news(&was, &is)) {
                tracing::warn!(service = id, "its breaker tripped while flows moved over");
                trip(to.at(id), &was, generation);
            }
        }
        Ok(())
    }

    /// What green is owed under the exact split; nobody chooses by the new maps yet.
    pub fn carry_split_errors(&self) -> Result<(), DatapathError> {
        let Some((from, to)) = self.files(SPLIT_ERRORS)? else {
            return Ok(());
        };
        let copied = MapInfo::from_pin(self.from.join(SPLIT_ERRORS))
            .map_err(io::Error::other)
            .and_then(|info| copy_values(&from, &to, &info, possible_cpus()?));
        copied.map_err(|error| self.failed(SPLIT_ERRORS, error))
    }

    /// Adds all that the programs before have counted. They must be gone.
    pub fn add(&self, in_force: InForce) -> Result<(), DatapathError> {
        for name in SUMS {
            if let Some((from, to)) = self.files(name)? {
                self.add_sums(name, &from, &to)
                    .map_err(|error| self.failed(name, error))?;
            }
        }
        if let Some((from, to)) = self.both::<FirstFlow>(FIRST_FLOW)? {
            for id in 0..from.count().min(to.count()) {
                let (was, is) = (from.read(id), to.read(id));
                let is_first = was.generation > is.generation
                    || (was.generation == is.generation && was.at_ns < is.at_ns);
                if is_first {
                    to.write(id, was);
                }
            }
        }
        self.carry_trips(in_force)?;
        if let Some((from, to)) = self.both::<BreakerRecord>(BREAKERS)? {
            for id in 0..from.count().min(to.count()) {
                add_breaker(from.at(id), to.at(id), in_force(id));
            }
        }
        Ok(())
    }

    /// Counters of what an id named before say nothing of what it names now.
    pub fn forget(&self, name: &str, index: u32) -> Result<(), DatapathError> {
        let Some((from, _)) = self.files(name)? else {
            return Ok(());
        };
        let words = || -> io::Result<usize> {
            let info = MapInfo::from_pin(self.from.join(name)).map_err(io::Error::other)?;
            let cpus = if name == BREAKERS {
                1
            } else {
                possible_cpus()?
            };
            Ok((info.value_size() as usize).div_ceil(8) * cpus)
        };
        let zeroed = words().and_then(|words| {
            let zeros = vec![0u64; words];
            match update(&from, (&raw const index).cast(), &zeros) {
                // Beyond its end there is nothing to forget.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(()),
                zeroed => zeroed,
            }
        });
        zeroed.map_err(|error| self.failed(name, error))
    }

    fn add_sums(&self, name: &str, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        let info = MapInfo::from_pin(self.from.join(name)).map_err(io::Error::other)?;
        let words = (info.value_size() as usize).div_ceil(8) * possible_cpus()?;
        let (mut was, mut is, zeros) = (vec![0u64; words], vec![0u64; words], vec![0u64; words]);
        for index in 0..info.max_entries() {
            let key = (&raw const index).cast();
            lookup(from, key, &mut was)?;
            if was.iter().all(|word| *word == 0) {
                continue;
            }
            if name == SIGNALS {
                let (of_cpus, _) = was.as_chunks_mut::<SIGNAL_COUNTERS>();
                rescale(of_cpus, self.watched.0, self.watched.1);
            }
            lookup(to, key, &mut is)?;
            is.iter_mut()
                .zip(&was)
                .for_each(|(is, was)| *is = is.wrapping_add(*was));
            // A packet that counts in between is lost to the sum. Taken out first: where the
            // agent is killed, counts are lost and never doubled.
            update(from, key, &zeros)?;
            update(to, key, &is)?;
        }
        Ok(())
    }

    /// A map in both; `None` where the maps before have none.
    fn files(&self, name: &str) -> Result<Option<(OwnedFd, OwnedFd)>, DatapathError> {
        if !self.from.join(name).exists() {
            return Ok(None);
        }
        let open = |directory: &Path| open_map(&directory.join(name));
        let both = open(self.from).and_then(|from| Ok((from, open(self.to)?)));
        both.map(Some).map_err(|error| self.failed(name, error))
    }

    fn both<T: Copy>(&self, name: &str) -> Result<Option<Both<T>>, DatapathError> {
        let Some((from, to)) = self.files(name)? else {
            return Ok(None);
        };
        let mapped = |fd: &OwnedFd, directory: &Path| {
            let info = MapInfo::from_pin(directory.join(name)).map_err(io::Error::other)?;
            MappedArray::new(fd, info.max_entries())
        };
        let both = mapped(&from, self.from).and_then(|from| Ok((from, mapped(&to, self.to)?)));
        both.map(Some).map_err(|error| self.failed(name, error))
    }

    fn failed(&self, name: &str, error: io::Error) -> DatapathError {
        let what = format!("carrying {name} over to {}", self.to.display());
        failed(what, error, "the next start tries it again")
    }
}

/// A map of the ones before, and the one that takes its place.
type Both<T> = (MappedArray<T>, MappedArray<T>);

/// A breaker's record without what it has counted: that is added in the end.
pub fn trip_alone(record: &BreakerRecord) -> BreakerRecord {
    BreakerRecord {
        tripped: record.tripped,
        tripped_at_ns: record.tripped_at_ns,
        trip_counts: record.trip_counts,
        ..BreakerRecord::default()
    }
}

/// Whether a breaker tripped in the maps before since it was copied.
fn is_news(was: &BreakerRecord, is: &BreakerRecord) -> bool {
    was.tripped != 0 && was.tripped_at_ns > is.tripped_at_ns
}

fn word<'a>(at: *mut u64) -> &'a AtomicU64 {
    // SAFETY: callers give an aligned word of a mapping that outlives the call, which is
    // only ever used as a word.
    unsafe { AtomicU64::from_ptr(at) }
}

/// The word that is read for a decision is written last.
fn trip(to: *mut BreakerRecord, was: &BreakerRecord, generation: u32) {
    // SAFETY: within the mapping.
    let words = unsafe {
        [
            (&raw mut (*to).tripped_at_ns, was.tripped_at_ns),
            (&raw mut (*to).trip_counts[0], was.trip_counts[0]),
            (&raw mut (*to).trip_counts[1], was.trip_counts[1]),
            (&raw mut (*to).tripped, u64::from(generation)),
        ]
    };
    for (at, value) in words {
        word(at).store(value, Ordering::Release);
    }
}

/// Brings a record to a later half of its window, as the next packet would.
fn turn(to: *mut BreakerRecord, before: u64, now: u64) {
    let (even, odd) = outdated(before, now);
    for (half, is_outdated) in [even, odd].into_iter().enumerate() {
        if is_outdated {
            // SAFETY: within the mapping.
            let words = unsafe { [&raw mut (*to).attempts[half], &raw mut (*to).failures[half]] };
            for at in words {
                word(at).store(0, Ordering::Relaxed);
            }
        }
    }
    // SAFETY: within the mapping.
    let half = unsafe { &raw mut (*to).half };
    // Where a packet has turned it already, that stands.
    let _ = word(half).compare_exchange(before, now, Ordering::AcqRel, Ordering::Relaxed);
}

/// Takes out what was counted, and adds what is of the generation in force and of the
/// present window.
fn add_breaker(from: *mut BreakerRecord, to: *mut BreakerRecord, in_force: Option<u32>) {
    // SAFETY: within the mappings; nobody writes the first any more.
    let (was, is) = unsafe { (std::ptr::read_volatile(from), std::ptr::read_volatile(to)) };
    // Taken out first: where the agent is killed, counts are lost and never doubled.
    // SAFETY: within the mapping; nobody else writes there any more.
    unsafe { std::ptr::write_volatile(from, trip_alone(&was)) };
    let is_counting = is.generation == was.generation;
    if in_force.map(u64::from) == Some(was.generation) {
        if is_counting && was.half > is.half {
            turn(to, is.half, was.half);
        }
        let (even, odd) = match is_counting {
            true => outdated(was.half, is.half.max(was.half)),
            false => (false, false),
        };
        for (half, is_outdated) in [even, odd].into_iter().enumerate() {
            if !is_outdated {
                // SAFETY: within the mapping.
                let (attempts, failures) =
                    unsafe { (&raw mut (*to).attempts[half], &raw mut (*to).failures[half]) };
                word(attempts).fetch_add(was.attempts[half], Ordering::Relaxed);
                word(failures).fetch_add(was.failures[half], Ordering::Relaxed);
            }
        }
        if !is_counting {
            // SAFETY: within the mapping.
            let (half, generation) = unsafe { (&raw mut (*to).half, &raw mut (*to).generation) };
            word(half).store(was.half, Ordering::Relaxed);
            // Where a packet began to count, its count stands.
            let _ = word(generation).compare_exchange(
                is.generation,
                was.generation,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
    for pool in 0..2 {
        // SAFETY: within the mapping.
        let expired = unsafe { &raw mut (*to).expired[pool] };
        word(expired).fetch_add(was.expired[pool], Ordering::Relaxed);
    }
}

/// The times of flows that lay where others come.
pub struct Times(Option<OwnedFd>);

impl Times {
    pub fn open(maps: &Path) -> Self {
        Self(open_map(&maps.join(FLOW_TIMES)).ok())
    }

    /// Forgets those of a place, and with them its set's: the kernel writes no less.
    /// A flow without times is counted in no histogram, one with another's wrongly.
    pub fn forget(&self, set: u32, position: u32) {
        const WORDS: usize = size_of::<TimesSet>() / 8;
        const EACH: usize = size_of::<FlowTimes>() / 8;
        let Some(map) = &self.0 else { return };
        let (key, mut times) = ((&raw const set).cast(), [0u64; WORDS]);
        let at = (position as usize & (SET_ENTRIES - 1)) * EACH;
        // Sets beyond those that have times are not there.
        if lookup(map, key, &mut times).is_ok() && times[at..at + EACH] != [0; EACH] {
            let _ = update(map, key, &[0; WORDS]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: BreakerRecord = BreakerRecord {
        generation: 7,
        half: 10,
        attempts: [50, 40],
        failures: [5, 4],
        tripped: 0,
        tripped_at_ns: 0,
        trip_counts: [0; 2],
        expired: [2, 3],
        pad: [0; 4],
    };

    fn added(mut was: BreakerRecord, mut is: BreakerRecord, in_force: u32) -> BreakerRecord {
        add_breaker(&raw mut was, &raw mut is, Some(in_force));
        let (first, kept) = (is, trip_alone(&was));
        assert_eq!(was, kept, "counts are taken out");
        add_breaker(&raw mut was, &raw mut is, Some(in_force));
        assert_eq!(
            (is.attempts, is.failures, is.expired),
            (first.attempts, first.failures, first.expired),
            "a second time adds nothing"
        );
        first
    }

    #[test]
    fn what_both_have_counted_is_summed_within_the_window() {
        let here = BreakerRecord {
            attempts: [1, 2],
            failures: [1, 1],
            expired: [0, 1],
            ..COUNTED
        };
        let sum = added(COUNTED, here, 7);
        assert_eq!((sum.attempts, sum.failures), ([51, 42], [6, 5]));
        assert_eq!(sum.expired, [2, 4]);
        // Half 11: what was counted in 9 has left the window.
        let later = BreakerRecord { half: 11, ..here };
        let sum = added(COUNTED, later, 7);
        assert_eq!((sum.attempts, sum.failures), ([51, 2], [6, 1]));
    }

    #[test]
    fn counts_of_a_generation_that_is_gone_are_none_of_the_new_one() {
        let sum = added(COUNTED, BreakerRecord::default(), 8);
        assert_eq!((sum.attempts, sum.failures), ([0; 2], [0; 2]));
        assert_eq!(sum.expired, [2, 3]);
        let sum = added(COUNTED, BreakerRecord::default(), 7);
        assert_eq!(
            sum,
            BreakerRecord {
                expired: [2, 3],
                ..COUNTED
            }
        );
    }

    #[test]
    fn a_trip_is_news_once() {
        let was = BreakerRecord {
            tripped: 7,
            tripped_at_ns: 1_000,
            trip_counts: [60, 30],
            ..COUNTED
        };
        let mut is = BreakerRecord::default();
        assert!(is_news(&was, &is));
        trip(&raw mut is, &was, 9);
        assert_eq!(
            (is.tripped, is.tripped_at_ns, is.trip_counts),
            (9, 1_000, [60, 30])
        );
        assert!(!is_news(&was, &is));
        assert!(!is_news(&COUNTED, &is));
        assert!(
            !is_news(&was, &trip_alone(&was)),
            "it was there when it was copied"
        );
    }
}
