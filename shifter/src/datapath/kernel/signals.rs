//! How pools do, as the programs count it, and what breakers have counted.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use shifter_common::{
    abi::{
        BreakerRecord, MAX_SERVICES, PoolCounters, ServiceBody,
        signals::{HISTOGRAMS as KINDS, *},
    },
    breaker::{half_of, outdated},
    histogram::BUCKETS,
};

use super::lock;
use crate::{
    datapath::{
        BreakerState, DatapathError, ServiceId, Trip, backends::Plain, load::failed,
        memory::MappedArray, monotonic_ns,
    },
    model::signals::{Histogram, PoolSignals, rescale},
};

/// The maps behind it.
pub(super) struct Signals {
    pub counts: Mutex<PerCpuArray<MapData, Plain<SignalCounts>>>,
    pub histograms: Mutex<PerCpuArray<MapData, Plain<HistogramCounts>>>,
    pub breakers: MappedArray<BreakerRecord>,
    /// One flow in so many is watched for what is sent again.
    pub watched_one_in: u32,
}

impl Signals {
    /// Of blue and green.
    pub fn of(
        &self,
        id: ServiceId,
        pools: &[PoolCounters; 2],
    ) -> Result<[PoolSignals; 2], DatapathError> {
        let expired = self.breakers.read(u32::from(id)).expired;
        let [blue, green] = pools;
        Ok([
            self.of_pool(id, 0, blue, expired[0])?,
            self.of_pool(id, 1, green, expired[1])?,
        ])
    }

    fn of_pool(
        &self,
        id: ServiceId,
        pool: u32,
        packets: &PoolCounters,
        expired: u64,
    ) -> Result<PoolSignals, DatapathError> {
        let counts = self.counts(u32::from(id) * 2 + pool)?;
        let watched = u64::from(self.watched_one_in);
        let histogram = |kind| self.histogram(id, pool, kind);
        Ok(PoolSignals {
            attempts: counts[ATTEMPTS],
            answered: counts[ANSWERED],
            syn_retransmits: counts[SYN_RETRANSMITS],
            unanswered: counts[UNANSWERED] + expired,
            refused: counts[REFUSED],
            resets_before_data: counts[RESETS_BEFORE_DATA],
            resets_after_data: counts[RESETS_AFTER_DATA],
            client_resets: counts[CLIENT_RESETS],
            client_retransmits: counts[CLIENT_RETRANSMITS] * watched,
            backend_retransmits: counts[BACKEND_RETRANSMITS] * watched,
            ended: counts[ENDED],
            bytes: packets.forward_bytes + packets.reply_bytes,
            handshake: histogram(HANDSHAKE)?,
            first_byte: histogram(FIRST_BYTE)?,
            duration: histogram(DURATION)?,
        })
    }

    fn counts(&self, index: u32) -> Result<SignalCounts, DatapathError> {
        let values = lock(&self.counts)
            .get(&index, 0)
            .map_err(|error| failed("reading a pool's signals", error, ""))?;
        let mut sums = [0; SIGNAL_COUNTERS];
        for Plain(counts) in values.iter() {
            sums.iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
        }
        Ok(sums)
    }

    /// Empty where the service has none.
    fn histogram(&self, id: ServiceId, pool: u32, kind: u32) -> Result<Histogram, DatapathError> {
        let mut sum = Histogram::default();
        if u32::from(id) >= HISTOGRAM_SERVICES {
            return Ok(sum);
        }
        let values = lock(&self.histograms)
            .get(&histogram_index(u32::from(id), pool, kind), 0)
            .map_err(|error| failed("reading a histogram", error, ""))?;
        for Plain(counts) in values.iter() {
            sum.0
                .iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
        }
        Ok(sum)
    }

    /// What the breaker of a service has counted under the record in force.
    pub fn breaker(&self, body: &ServiceBody) -> Option<BreakerState> {
        if body.breaker_window_ns == 0 {
            return None;
        }
        let record = self.breakers.read(body.service);
        let (mut attempts, mut failures) = (record.attempts, record.failures);
        let half = half_of(monotonic_ns(), body.breaker_window_ns);
        let is_old = record.generation != u64::from(body.generation);
        let (even, odd) = outdated(record.half, half.max(record.half));
        for (index, is_outdated) in [even, odd].into_iter().enumerate() {
            if is_old || is_outdated {
                (attempts[index], failures[index]) = (0, 0);
            }
        }
        Some(BreakerState {
            attempts: attempts[0] + attempts[1],
            failures: failures[0] + failures[1],
            trip: (record.tripped != 0).then_some(Trip {
                generation: record.tripped as u32,
                at_ns: record.tripped_at_ns,
                attempts: record.trip_counts[0],
                failures: record.trip_counts[1],
            }),
        })
    }

    /// Counts a handshake that the agent frees unanswered.
    pub fn count_expired(&self, service: u16, pool: usize) {
        if u32::from(service) >= self.breakers.count() || pool > 1 {
            return;
        }
        let record = self.breakers.at(u32::from(service));
        // SAFETY: within the mapping, aligned to 8, and only ever used as a word.
        let count = unsafe { AtomicU64::from_ptr(&raw mut (*record).expired[pool]) };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted of one flow in `before` becomes a count of one in as many as
    /// now: its estimate stays, and never falls. A segment that is counted in between is lost.
    pub fn rescale(&self, before: u32) -> Result<(), DatapathError> {
        let failed = |error: MapError| failed("rescaling a pool's signals", error, "");
        let mut all = lock(&self.counts);
        for index in 0..2 * MAX_SERVICES {
            let values = all.get(&index, 0).map_err(failed)?;
            let is_counted = |Plain(counts): &Plain<SignalCounts>| {
                counts[CLIENT_RETRANSMITS] | counts[BACKEND_RETRANSMITS] != 0
            };
            if !values.iter().any(is_counted) {
                continue;
            }
            let mut of_cpus: Vec<SignalCounts> = values.iter().map(|Plain(c)| *c).collect();
            rescale(&mut of_cpus, before, self.watched_one_in);
            let values: Vec<_> = of_cpus.into_iter().map(Plain).collect();
            let values =
                PerCpuValues::try_from(values).map_err(|error| failed(MapError::IoError(error)))?;
            all.set(index, values, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// A service's begin anew.
    pub fn zero(&self, id: ServiceId) -> Result<(), DatapathError> {
        let id = u32::from(id);
        self.breakers.write(id, BreakerRecord::default());
        for pool in 0..2 {
            zero(&self.counts, id * 2 + pool, [0; SIGNAL_COUNTERS])?;
            for kind in (0..KINDS).filter(|_| id < HISTOGRAM_SERVICES) {
                zero(
                    &self.histograms,
                    histogram_index(id, pool, kind),
                    [0; BUCKETS],
                )?;
            }
        }
        Ok(())
    }
}

/// Writes zeros for all CPUs.
fn zero<T: Copy + 'static>(
    counters: &Mutex<PerCpuArray<MapData, Plain<T>>>,
    index: u32,
    zero: T,
) -> Result<(), DatapathError> {
    let failed = |error: MapError| failed("setting a pool's signals to zero", error, "");
    let mut counters = lock(counters);
    let cpus = counters.get(&index, 0).map_err(failed)?.len();
    let zeros = PerCpuValues::try_from(vec![Plain(zero); cpus])
        .map_err(|error| failed(MapError::IoError(error)))?;
    counters.set(index, zeros, 0).map_err(failed)
}
