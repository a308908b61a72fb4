//! The end of `cargo xtask test`: what ran, how long, what failed, what was skipped.

use std::fmt;

use super::{output::Timed, stage::Stage};

/// Tests that are listed as the slowest.
const SLOWEST: usize = 5;

/// All stages.
#[derive(Debug, Default)]
pub struct Summary {
    stages: Vec<Stage>,
}

impl Summary {
    pub fn push(&mut self, stage: Stage) {
        self.stages.push(stage);
    }

    pub fn passed(&self) -> usize {
        self.stages.iter().map(|s| s.passed).sum()
    }

    pub fn failed(&self) -> usize {
        self.stages.iter().map(|s| s.failed.len()).sum()
    }

    pub fn skipped(&self) -> usize {
        self.stages.iter().map(|s| s.skipped.len()).sum()
    }

    /// Single tests that ran, whatever came of them.
    pub fn tests_run(&self) -> usize {
        self.stages
            .iter()
            .filter(|s| s.has_tests)
            .map(|s| s.passed + s.failed.len() + s.skipped.len())
            .sum()
    }

    /// The last line.
    pub fn counts(&self) -> String {
        let (passed, failed, skipped) = (self.passed(), self.failed(), self.skipped());
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    fn slowest(&self) -> Vec<&Timed> {
        let mut all: Vec<&Timed> = self.stages.iter().flat_map(|s| &s.timed).collect();
        all.retain(|timed| timed.took.as_secs() > 0);
        all.sort_by_key(|timed| std::cmp::Reverse(timed.took));
        all.truncate(SLOWEST);
        all
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n=== summary")?;
        let width = self.stages.iter().map(|s| s.name.len()).max().unwrap_or(0);
        for stage in &self.stages {
            let Stage {
                name,
                took,
                passed,
                failed,
                skipped,
                ..
            } = stage;
            writeln!(
                f,
                "{name:width$}  {:>6.1} s  {passed} passed, {} failed, {} skipped",
                took.as_secs_f64(),
                failed.len(),
                skipped.len(),
            )?;
        }
        for timed in self.slowest() {
            writeln!(
                f,
                "slow: {:>6.1} s  {}",
                timed.took.as_secs_f64(),
                timed.name
            )?;
        }
        for stage in &self.stages {
            for (name, reason) in &stage.skipped {
                writeln!(f, "SKIPPED: {}: {reason}", full_name(stage, name))?;
            }
        }
        for stage in &self.stages {
            for name in &stage.failed {
                writeln!(f, "FAILED: {}", full_name(stage, name))?;
                for (_, message) in stage.panics.iter().filter(|(of, _)| of == name) {
                    writeln!(f, "    {}", message.replace('\n', "\n    "))?;
                }
            }
        }
        writeln!(f)
    }
}

/// Of a test: with its stage; of a stage that is one check: its own.
fn full_name(stage: &Stage, name: &str) -> String {
    if name == stage.name {
        name.to_owned()
    } else {
        format!("{}: {name}", stage.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn summary() -> Summary {
        let mut summary = Summary::default();
        summary.push(Stage {
            name: "tidy",
            passed: 1,
            ..Stage::default()
        });
        summary.push(Stage {
            name: "scenarios",
            took: Duration::from_millis(61_500),
            passed: 2,
            failed: vec!["storm".to_owned()],
            panics: vec![("storm".to_owned(), "storm.rs:1:2:\nlost".to_owned())],
            skipped: vec![("nginx".to_owned(), "no wrk".to_owned())],
            timed: vec![
                Timed {
                    name: "quick".to_owned(),
                    took: Duration::from_millis(10),
                },
                Timed {
                    name: "storm".to_owned(),
                    took: Duration::from_secs(60),
                },
            ],
            has_tests: true,
        });
        summary
    }

    #[test]
    fn the_last_line_sums_up_all_stages() {
        assert_eq!(summary().counts(), "3 passed, 1 failed, 1 skipped");
        assert_eq!(summary().tests_run(), 4);
    }

    #[test]
    fn what_failed_was_skipped_or_slow_is_named() {
        let text = summary().to_string();
        assert!(text.contains("SKIPPED: scenarios: nginx: no wrk"), "{text}");
        let why = "FAILED: scenarios: storm\n    storm.rs:1:2:\n    lost\n";
        assert!(text.contains(why), "{text}");
        assert!(text.contains("slow:   60.0 s  storm"), "{text}");
        assert!(!text.contains("quick"), "{text}");
    }
}
