//! Reads what the standard test harness prints, while it is printed.

use std::time::{Duration, Instant};

/// One test with its time, where tests run one after another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timed {
    pub name: String,
    pub took: Duration,
}

/// What was read so far.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub failed: Vec<String>,
    /// Name and the panic's message, of those that failed.
    pub panics: Vec<(String, String)>,
    /// Name and reason.
    pub ignored: Vec<(String, String)>,
    pub timed: Vec<Timed>,
    line: String,
    /// A test that was announced and has no result yet.
    pending: Option<(String, Instant)>,
    /// The test whose own output is being repeated, and what of it is being read.
    repeated: Option<(String, Repeated)>,
}

/// Where in the repeated output of a test that failed a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Repeated {
    BeforePanic,
    /// So many lines of the message were taken.
    Panic(usize),
    AfterPanic,
}

/// Lines of a panic's message that are kept, and characters of each.
const PANIC: (usize, usize) = (4, 500);

impl Report {
    /// Takes the next piece of output, as it arrives.
    pub fn feed(&mut self, piece: &str, now: Instant) {
        for character in piece.chars() {
            if character == '\n' {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, now);
            } else {
                self.line.push(character);
                if self.pending.is_none() {
                    self.pending = announced(&self.line).map(|name| (name, now));
                }
            }
        }
    }

    /// Takes in what another command came to, which has ended as this one has.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.panics.extend(other.panics);
        self.ignored.extend(other.ignored);
        self.timed.extend(other.timed);
    }

    /// Tells of the end of the output; a test without a result has failed.
    pub fn finish(&mut self, now: Instant) {
        let line = std::mem::take(&mut self.line);
        self.take_line(&line, now);
        if let Some((name, _)) = self.pending.take() {
            self.failed.push(format!("{name} (ended without a result)"));
        }
    }

    fn take_line(&mut self, line: &str, now: Instant) {
        self.take_repeated(line);
        let result = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
            .map(|(name, result)| (Some(name), result))
            // With --nocapture a test's own output comes between name and result.
            .unwrap_or((None, line));
        match result {
            (_, "ok") => {
                if let Some((name, since)) = self.name_of(result.0, now) {
                    self.passed += 1;
                    let took = now.duration_since(since);
                    self.timed.push(Timed { name, took });
                }
            }
            (_, "FAILED") => {
                if let Some((name, _)) = self.name_of(result.0, now) {
                    self.failed.push(name);
                }
            }
            (Some(_), ignored) if ignored.starts_with("ignored") => {
                let reason = ignored
                    .trim_start_matches("ignored")
                    .trim_start_matches(", ");
                if let Some((name, _)) = self.name_of(result.0, now) {
                    self.ignored.push((name, reason.to_owned()));
                }
            }
            _ => {}
        }
    }

    /// The harness repeats what a failed test printed below `---- NAME stdout ----`.
    fn take_repeated(&mut self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.repeated = Some((name.to_owned(), Repeated::BeforePanic));
            return;
        }
        if line.starts_with("test result: ") {
            self.repeated = None;
        }
        let Some((name, place)) = &mut self.repeated else {
            return;
        };
        match *place {
            Repeated::BeforePanic => {
                if let Some((_, at)) = line.split_once(" panicked at ") {
                    self.panics.push((name.clone(), at.to_owned()));
                    *place = Repeated::Panic(0);
                }
            }
            Repeated::Panic(taken) => {
                let is_over = line.is_empty()
                    || ["stack backtrace:", "note: run with "]
                        .iter()
                        .any(|end| line.starts_with(end));
                if is_over || taken == PANIC.0 {
                    *place = Repeated::AfterPanic;
                } else if let Some((_, message)) = self.panics.last_mut() {
                    message.push('\n');
                    message.extend(line.chars().take(PANIC.1));
                    *place = Repeated::Panic(taken + 1);
                }
            }
            Repeated::AfterPanic => {}
        }
    }

    fn name_of(&mut self, name: Option<&str>, now: Instant) -> Option<(String, Instant)> {
        let pending = self.pending.take();
        match name {
            Some(name) => {
                let name = name.trim_end_matches(" - should panic").to_owned();
                Some((name, pending.map_or(now, |(_, since)| since)))
            }
            None => pending,
        }
    }
}

/// The name in `test NAME ... `, which is printed before the test begins when
/// tests run one after another.
fn announced(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... ")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[(u64, &str)]) -> Report {
        let start = Instant::now();
        let mut report = Report::default();
        let mut last = start;
        for (seconds, piece) in pieces {
            last = start + Duration::from_secs(*seconds);
            report.feed(piece, last);
        }
        report.finish(last);
        report
    }

    #[test]
    fn results_are_counted_and_named() {
        let report = read(&[(
            0,
            "\nrunning 4 tests\ntest a::one ... ok\ntest two - should panic ... ok\n\
             test three ... FAILED\ntest four ... ignored, needs a NIC\n\n\
             test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured\n",
        )]);
        assert_eq!(report.passed, 2);
        assert_eq!(report.failed, ["three"]);
        assert_eq!(
            report.ignored,
            [("four".to_owned(), "needs a NIC".to_owned())]
        );
    }

    #[test]
    fn the_time_of_a_test_runs_from_its_announcement() {
        let report = read(&[
            (1, "test slow ... "),
            (8, "ok\n"),
            (8, "test fast ... ok\n"),
        ]);
        let slow = &report.timed[0];
        assert_eq!((slow.name.as_str(), slow.took.as_secs()), ("slow", 7));
        assert_eq!(report.timed[1].took.as_secs(), 0);
    }

    #[test]
    fn output_between_name_and_result_is_no_result() {
        let report = read(&[(0, "test loud ... 5 connections\nall well\nok\nok\n")]);
        assert_eq!(report.passed, 1);
        assert_eq!(report.timed[0].name, "loud");
    }

    #[test]
    fn a_panic_is_kept_with_the_name_of_its_test() {
        let report = read(&[(
            0,
            "test a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\nfirst\n\
             thread 'a' (7) panicked at tests/a.rs:1:2:\nleft is\nnot right\n\
             stack backtrace:\n   0: panicked at nothing\n\n---- b stdout ----\n\
             thread 'b' panicked at tests/b.rs:3:4:\nno\n\
             note: run with `RUST_BACKTRACE=1`\nlog\n\nfailures:\n    a\n    b\n",
        )]);
        assert_eq!(report.failed, ["a", "b"]);
        let panic = |name: &str, message: &str| (name.to_owned(), message.to_owned());
        assert_eq!(
            report.panics,
            [
                panic("a", "tests/a.rs:1:2:\nleft is\nnot right"),
                panic("b", "tests/b.rs:3:4:\nno"),
            ]
        );
    }

    #[test]
    fn a_test_that_never_ends_has_failed() {
        let report = read(&[(0, "test one ... ok\ntest crash ... ")]);
        assert_eq!(report.passed, 1);
        assert_eq!(report.failed, ["crash (ended without a result)"]);
    }
}
