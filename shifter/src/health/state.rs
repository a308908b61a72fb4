//! When a backend is up or down: after so many checks in a row.

/// What is known of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Health {
    /// Too few checks so far; counts as up.
    #[default]
    Unknown,
    Up,
    Down,
}

impl Health {
    /// "unknown", "up" or "down".
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A backend between its checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    health: Health,
    /// Checks in a row that ended as the last one did.
    row: u32,
    passed_last: bool,
}

impl State {
    /// One that begins as this.
    pub fn new(health: Health) -> Self {
        Self {
            health,
            ..Self::default()
        }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes in a check; whether the backend became something else by it.
    pub fn note(&mut self, passed: bool, rise: u32, fall: u32) -> bool {
        self.row = if self.row > 0 && self.passed_last == passed {
            self.row.saturating_add(1)
        } else {
            1
        };
        self.passed_last = passed;
        let (needed, next) = if passed {
            (rise, Health::Up)
        } else {
            (fall, Health::Down)
        };
        let is_news = self.row >= needed && self.health != next;
        if is_news {
            self.health = next;
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The healths after each of these checks: `+` passed, `-` failed.
    fn run(mut state: State, checks: &str, rise: u32, fall: u32) -> String {
        checks
            .chars()
            .map(|check| {
                let before = state.health();
                let is_news = state.note(check == '+', rise, fall);
                assert_eq!(is_news, before != state.health());
                match state.health() {
                    Health::Unknown => '?',
                    Health::Up => 'u',
                    Health::Down => 'd',
                }
            })
            .collect()
    }

    #[test]
    fn a_new_backend_is_unknown_until_rise_or_fall_is_reached() {
        assert_eq!(run(State::default(), "++++", 3, 2), "??uu");
        assert_eq!(run(State::default(), "---", 3, 2), "?dd");
        assert_eq!(run(State::default(), "-+", 1, 3), "?u");
        assert_eq!(run(State::default(), "-", 2, 1), "d");
    }

    #[test]
    fn a_backend_that_flaps_below_the_thresholds_stays_what_it_is() {
        assert_eq!(run(State::default(), "-+-+-+-+", 2, 2), "????????");
        let up = State::new(Health::Up);
        assert_eq!(run(up, "--+--+--+", 2, 3), "uuuuuuuuu");
        let down = State::new(Health::Down);
        assert_eq!(run(down, "+-+-+-+-", 2, 3), "dddddddd");
    }

    #[test]
    fn it_takes_rise_checks_to_come_back_and_fall_to_go_again() {
        let down = State::new(Health::Down);
        assert_eq!(run(down, "+++---++", 2, 3), "duuuuddu");
    }

    #[test]
    fn whatever_came_before_a_full_row_decides() {
        // All sequences of 12 checks, against the rule in other words.
        for bits in 0..1u32 << 12 {
            let checks: Vec<bool> = (0..12).map(|i| bits >> i & 1 == 1).collect();
            let (rise, fall) = (2, 3);
            let mut state = State::default();
            let mut expected = Health::Unknown;
            for end in 1..=checks.len() {
                state.note(checks[end - 1], rise, fall);
                let last = |n: usize, passed| {
                    end >= n && checks[end - n..end].iter().all(|check| *check == passed)
                };
                if last(rise as usize, true) {
                    expected = Health::Up;
                } else if last(fall as usize, false) {
                    expected = Health::Down;
                }
                assert_eq!(state.health(), expected, "{checks:?} up to {end}");
            }
        }
    }
}
