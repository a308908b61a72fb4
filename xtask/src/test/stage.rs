//! One part of `cargo xtask test`: runs it, echoes what it prints, keeps what came out.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::output::{Report, Timed};
use crate::run::{line_of, run};

/// What came out of a part.
#[derive(Debug, Default)]
pub struct Stage {
    pub name: &'static str,
    pub took: Duration,
    pub passed: usize,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// Name and reason of what was skipped.
    pub skipped: Vec<(String, String)>,
    pub timed: Vec<Timed>,
    /// Whether it runs single tests (and is not one check as a whole).
    pub has_tests: bool,
}

impl Stage {
    /// Counts tests that passed only because they skipped themselves; `list`
    /// holds a line `name: reason` for each.
    pub fn take_skips(&mut self, list: &str) {
        for line in list.lines().filter(|line| !line.trim().is_empty()) {
            let (name, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
            self.passed = self.passed.saturating_sub(1);
            self.skipped.push((name.to_owned(), reason.to_owned()));
        }
    }
}

/// A stage that cannot run here.
pub fn skipped(name: &'static str, why: &str) -> Stage {
    headline(name, "SKIPPED");
    println!("{why}");
    Stage {
        name,
        skipped: vec![(name.to_owned(), why.to_owned())],
        ..Stage::default()
    }
}

/// A stage that is one check.
pub fn check(name: &'static str, check: impl FnOnce() -> Result<()>) -> Stage {
    headline(name, "");
    let start = Instant::now();
    let mut stage = Stage {
        name,
        ..Stage::default()
    };
    match check() {
        Ok(()) => stage.passed = 1,
        Err(error) => {
            eprintln!("error: {error:#}");
            stage.failed.push(name.to_owned());
        }
    }
    stage.took = start.elapsed();
    stage
}

/// A stage that is one command.
pub fn command(name: &'static str, command: &mut Command) -> Stage {
    check(name, || {
        println!("$ {}", line_of(command));
        run(command)
    })
}

/// A stage of tests under the standard harness.
pub fn tests(name: &'static str, command: &mut Command) -> Stage {
    headline(name, "");
    println!("$ {}", line_of(command));
    let start = Instant::now();
    let mut report = Report::default();
    let ended = echo(command, &mut report);
    let mut stage = Stage {
        name,
        took: start.elapsed(),
        passed: report.passed,
        failed: report.failed,
        skipped: report.ignored,
        timed: report.timed,
        has_tests: true,
    };
    // A program that did not build or crashed between tests.
    if let Err(error) = ended
        && stage.failed.is_empty()
    {
        stage.failed.push(format!("{name}: {error:#}"));
    }
    stage
}

/// Runs it, shows its output at once and reads it on the way.
fn echo(command: &mut Command, report: &mut Report) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be run")?;
    let mut pipe = child.stdout.take().context("cargo has no output")?;
    let mut buffer = [0; 4096];
    let mut stdout = std::io::stdout();
    loop {
        let length = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading the output of cargo failed"),
        };
        let piece = &buffer[..length];
        stdout.write_all(piece).and_then(|()| stdout.flush()).ok();
        report.feed(&String::from_utf8_lossy(piece), Instant::now());
    }
    report.finish(Instant::now());
    let status = child.wait().context("waiting for cargo failed")?;
    if !status.success() {
        bail!("cargo ended with {status}");
    }
    Ok(())
}

fn headline(name: &str, note: &str) {
    println!("\n=== {name} {note}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let mut stage = Stage {
            passed: 3,
            ..Stage::default()
        };
        stage.take_skips("storm_under_xdp: no native XDP here\n\n");
        assert_eq!(stage.passed, 2);
        let reason = "no native XDP here".to_owned();
        assert_eq!(stage.skipped, [("storm_under_xdp".to_owned(), reason)]);
    }

    #[test]
    fn a_command_that_fails_without_a_result_is_a_failure() {
        let mut command = Command::new("false");
        let stage = tests("unit tests", &mut command);
        assert_eq!(stage.failed.len(), 1);
        assert_eq!(stage.passed, 0);
    }

    #[test]
    fn a_command_that_is_not_there_is_a_failure() {
        let stage = super::command("build", &mut Command::new("no-such-program-here"));
        assert_eq!(stage.failed, ["build"]);
    }
}
