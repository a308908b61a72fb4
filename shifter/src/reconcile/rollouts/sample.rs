//! Signals of a rollout's pools, second by second: sums for gates, windows for the store.

use crate::{
    model::signals::PoolSignals,
    rollout::{Window, window::add},
};

/// A window of the store is so long at first, in ms…
const SHORT_MS: u64 = 1_000;
/// …for so much of the rollout, and so long from then on.
const SHORT_FOR_MS: i64 = 15 * 60_000;
const LONG_MS: u64 = 10_000;
/// Of an old rollout a row of the store is this part of its age, so that its rows
/// grow with the logarithm of its age: about 900, 300, and 400 for each time that
/// it becomes 2.7 times as old.
const PARTS_OF_AGE: i64 = 400;
/// Windows that wait for a store that fails.
const WAITING: usize = 3_600;

/// See the module.
#[derive(Default)]
pub struct Sampler {
    /// The last reading of the kernel's sums.
    last: Option<[PoolSignals; 2]>,
    last_ns: u64,
    step: usize,
    /// Under way; its signals are what came since the last window.
    window: Window,
    /// Full windows that become one row.
    gathered: Option<Window>,
    /// To be stored.
    pub full: Vec<Window>,
    /// Why the kernel's signals could not be read.
    pub problem: Option<String>,
    /// Somebody else has ended the rollout while no agent ran.
    pub taken_back: Option<String>,
}

/// What the sampler is told beside the signals.
pub struct At {
    /// When the reading began and was done, CLOCK_MONOTONIC.
    pub began_ns: u64,
    pub monotonic_ns: u64,
    pub unix_ms: i64,
    pub began_unix_ms: i64,
    pub step: usize,
    pub weight: String,
    pub flows: [u64; 2],
}

impl Sampler {
    /// Goes on in a step, after a restart.
    pub fn resume(&mut self, step: usize) {
        self.step = step;
    }

    /// Takes a reading in; the window that is full with it. One that was made beside
    /// the last may be the older of the two: the next one has what it would tell.
    pub fn take(&mut self, reading: [PoolSignals; 2], at: At) -> Option<Window> {
        if self.last.is_some() && at.began_ns < self.last_ns {
            return None;
        }
        if at.step != self.step {
            self.close(&at);
            self.step = at.step;
        }
        let passed_ns = at.monotonic_ns.saturating_sub(self.last_ns);
        if let Some(last) = &self.last {
            for pool in 0..2 {
                let more = reading[pool].since(&last[pool]);
                add(&mut self.window.signals[pool], &more);
            }
            self.window.ms += passed_ns / 1_000_000;
        }
        self.last = Some(reading);
        self.last_ns = at.monotonic_ns;
        self.window.flows = at.flows;
        let is_long = at.unix_ms - at.began_unix_ms > SHORT_FOR_MS;
        let wanted_ms = if is_long { LONG_MS } else { SHORT_MS };
        // The loop comes round a little early or late.
        match self.window.ms + 100 >= wanted_ms {
            true => self.close(&at),
            false => None,
        }
    }

    /// The window under way is full.
    fn close(&mut self, at: &At) -> Option<Window> {
        let mut window = std::mem::take(&mut self.window);
        if window.ms == 0 {
            return None;
        }
        window.at_unix_ms = at.unix_ms;
        window.step = self.step;
        window.weight.clone_from(&at.weight);
        window.flows = at.flows;
        self.gather(window.clone(), at.unix_ms - at.began_unix_ms);
        Some(window)
    }

    fn gather(&mut self, window: Window, age_ms: i64) {
        if self
            .gathered
            .as_ref()
            .is_some_and(|g| g.step != window.step)
        {
            self.flush();
        }
        let gathered = match self.gathered.take() {
            None => window,
            Some(before) => before.followed_by(window),
        };
        let is_full = gathered.ms as i64 >= age_ms / PARTS_OF_AGE;
        self.gathered = Some(gathered);
        if is_full {
            self.flush();
        }
    }

    /// What is gathered is to be stored, however short it is.
    pub fn flush(&mut self) {
        if self.full.len() < WAITING {
            self.full.extend(self.gathered.take());
        }
    }
}

impl Sampler {
    /// Windows that the store did not take, older than those that wait.
    pub fn put_back(&mut self, mut windows: Vec<Window>) {
        windows.append(&mut self.full);
        windows.truncate(WAITING);
        self.full = windows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64, step: usize) -> At {
        At {
            began_ns: second * 1_000_000_000,
            monotonic_ns: second * 1_000_000_000,
            unix_ms: second as i64 * 1_000,
            began_unix_ms: 0,
            step,
            weight: "5%".into(),
            flows: [1, 2],
        }
    }

    fn reading(attempts: u64) -> [PoolSignals; 2] {
        let signals = PoolSignals {
            attempts,
            ..PoolSignals::default()
        };
        [signals.clone(), signals]
    }

    #[test]
    fn windows_hold_what_came_since_the_first_reading_and_end_with_their_step() {
        let mut sampler = Sampler::default();
        let mut attempts = Vec::new();
        for (second, step, sum) in [(1, 0, 100), (2, 0, 110), (3, 0, 130), (4, 1, 135)] {
            let window = sampler.take(reading(sum), at(second, step));
            attempts.extend(window.map(|window| (window.step, window.signals[1].attempts)));
        }
        assert_eq!(attempts, [(0, 10), (0, 20), (1, 5)]);
        assert_eq!(sampler.full.len(), 3);
    }

    #[test]
    fn an_old_rollout_is_kept_in_longer_rows_and_judged_as_before() {
        let mut sampler = Sampler::default();
        let (mut rows, mut judged) = (0, 0);
        let mut stored = 0;
        let month = 30 * 86_400;
        for second in (0..=month).step_by(5) {
            judged += usize::from(sampler.take(reading(second), at(second, 0)).is_some());
            rows += sampler.full.len();
            stored += sampler
                .full
                .drain(..)
                .map(|w| w.signals[0].attempts)
                .sum::<u64>();
        }
        assert!(judged as u64 >= month / 10 - 1, "{judged}");
        assert!(rows < 5_000, "{rows}");
        sampler.flush();
        stored += sampler.full[0].signals[0].attempts;
        assert_eq!(stored, month);
        // A step is a row of its own.
        sampler.take(reading(month + 20), at(month + 20, 0));
        sampler.take(reading(month + 25), at(month + 25, 1));
        assert_eq!(sampler.full.last().unwrap().step, 0);
    }

    #[test]
    fn counters_that_begin_anew_are_no_window_of_their_own() {
        let mut sampler = Sampler::default();
        sampler.take(reading(1_000), at(1, 0));
        let window = sampler.take(reading(5), at(2, 0)).unwrap();
        assert_eq!(window.signals[0].attempts, 0);
    }

    #[test]
    fn a_reading_that_was_made_beside_another_is_left_to_the_next() {
        let mut sampler = Sampler::default();
        sampler.take(reading(100), at(1, 0));
        sampler.take(reading(130), at(3, 0));
        // Begun before the last was done, and slower.
        let overtaken = At {
            began_ns: 2_000_000_000,
            ..at(4, 0)
        };
        assert_eq!(sampler.take(reading(120), overtaken), None);
        let window = sampler.take(reading(150), at(5, 0)).unwrap();
        assert_eq!((window.signals[1].attempts, window.ms), (20, 2_000));
    }
}
