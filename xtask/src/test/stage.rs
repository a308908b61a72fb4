//! One part of `cargo xtask test`: runs it, echoes what it prints, keeps what came out.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    lanes,
    output::{Report, Timed},
};
use crate::run::{line_of, run};

/// What came out of a part.
#[derive(Debug, Default)]
pub struct Stage {
    pub name: &'static str,
    pub took: Duration,
    pub passed: usize,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// Names among them, and what each panicked with or said.
    pub panics: Vec<(String, String)>,
    /// Name and reason of what was skipped.
    pub skipped: Vec<(String, String)>,
    pub timed: Vec<Timed>,
    /// Whether it runs single tests (and is not one check as a whole).
    pub has_tests: bool,
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
            stage.panics.push((name.to_owned(), format!("{error:#}")));
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
    let mut messages = Vec::new();
    let ended = echo(command, &mut report, &mut messages);
    let mut stage = sum_up(name, report, messages);
    stage.took = start.elapsed();
    // A program that did not build or crashed between tests.
    if let Err(error) = ended
        && stage.failed.is_empty()
    {
        stage.failed.push(format!("{name}: {error:#}"));
    }
    stage
}

/// A stage of test programs some of which run at once.
pub fn tests_side_by_side(name: &'static str, commands: Vec<Command>) -> Stage {
    headline(name, "");
    let start = Instant::now();
    let mut report = Report::default();
    let mut messages = Vec::new();
    let mut broken = Vec::new();
    for heard in lanes::side_by_side(commands, Heard::show) {
        if let Err(error) = &heard.ended
            && heard.report.failed.is_empty()
        {
            broken.push(format!("{name}: {error:#}"));
        }
        messages.extend(heard.skips());
        report.add(heard.report);
    }
    let mut stage = sum_up(name, report, messages);
    stage.took = start.elapsed();
    stage.failed.extend(broken);
    stage
}

/// What a command printed, and what it came to.
#[derive(Debug)]
pub struct Heard {
    pub report: Report,
    pub ended: Result<()>,
    results: Vec<u8>,
    messages: Vec<u8>,
}

impl Heard {
    /// Prints it, results behind messages.
    pub fn show(&self, command: &Command) {
        println!("$ {}", line_of(command));
        // Nobody may be listening any more; the tests go on.
        std::io::stderr().write_all(&self.messages).ok();
        let mut out = std::io::stdout().lock();
        out.write_all(&self.results).and_then(|()| out.flush()).ok();
    }

    fn skips(&self) -> impl Iterator<Item = (String, String)> {
        let text = String::from_utf8_lossy(&self.messages).into_owned();
        let skips: Vec<_> = text.lines().filter_map(skip_of).collect();
        skips.into_iter()
    }
}

/// Runs a command to its end without showing anything.
pub fn hear(command: &mut Command) -> Heard {
    let mut heard = Heard {
        report: Report::default(),
        ended: Ok(()),
        results: Vec::new(),
        messages: Vec::new(),
    };
    let mut messages = Vec::new();
    let (results, report) = (&mut heard.results, &mut heard.report);
    heard.ended = listen(command, results, &mut messages, report);
    heard.messages = messages;
    heard
}

/// A scenario that skips itself says so and returns: the harness calls it passed.
fn sum_up(name: &'static str, report: Report, messages: Vec<(String, String)>) -> Stage {
    let passed = report.passed.saturating_sub(messages.len());
    let mut skipped = report.ignored;
    skipped.extend(messages);
    Stage {
        name,
        passed,
        failed: report.failed,
        panics: report.panics,
        skipped,
        timed: report.timed,
        has_tests: true,
        ..Stage::default()
    }
}

/// Runs it, shows its output at once and reads it on the way: results on
/// stdout, skips on stderr.
fn echo(
    command: &mut Command,
    report: &mut Report,
    skips: &mut Vec<(String, String)>,
) -> Result<()> {
    let mut messages = Tee::of(std::io::stderr());
    let ended = listen(command, &mut std::io::stdout(), &mut messages, report);
    let text = String::from_utf8_lossy(&messages.kept);
    skips.extend(text.lines().filter_map(skip_of));
    ended
}

/// Writes to somebody and keeps what it wrote.
struct Tee<W> {
    to: W,
    kept: Vec<u8>,
}

impl<W> Tee<W> {
    fn of(to: W) -> Self {
        let kept = Vec::new();
        Self { to, kept }
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        self.kept.extend_from_slice(piece);
        // Nobody may be listening any more; what is kept is read all the same.
        self.to.write_all(piece).ok();
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// Runs it to its end; what it prints goes on as it comes, and is read on the way.
fn listen(
    command: &mut Command,
    results: &mut (impl Write + Send),
    messages: &mut (impl Write + Send),
    report: &mut Report,
) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} cannot be run"))?;
    let stdout = child.stdout.take().context("it has no output")?;
    let stderr = child.stderr.take().context("it has no messages")?;
    let (heard, said) = std::thread::scope(|scope| {
        let said = scope.spawn(|| copy(stderr, messages, |_| {}));
        let heard = copy(stdout, results, |piece| {
            report.feed(&String::from_utf8_lossy(piece), Instant::now());
        });
        (heard, said.join())
    });
    report.finish(Instant::now());
    if let Ok(said) = said {
        said?;
    }
    heard?;
    let status = child.wait().context("waiting for it failed")?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}

fn copy(mut from: impl Read, mut to: impl Write, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                let piece = &buffer[..length];
                // Nobody may be listening any more; the tests go on.
                to.write_all(piece).and_then(|()| to.flush()).ok();
                each(piece);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading its output failed"),
        }
    }
}

/// Name and reason in a line `SKIPPED: NAME needs REASON`.
fn skip_of(line: &str) -> Option<(String, String)> {
    let (_, said) = line.split_once("SKIPPED: ")?;
    let (name, reason) = said
        .split_once(" needs ")
        .unwrap_or((said, "what it does not say"));
    // A failure by a skip quotes the line; it is no second skip.
    (!line.contains("(a failure")).then(|| (name.to_owned(), format!("needs {reason}")))
}

fn headline(name: &str, note: &str) {
    println!("\n=== {name} {note}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let mut report = Report::default();
        report.feed("test a ... ok\ntest b ... ok\n", Instant::now());
        let skip = ("b".to_owned(), "needs root, wrk".to_owned());
        let said = skip_of("test b ... SKIPPED: b needs root, wrk");
        assert_eq!(said.as_ref(), Some(&skip));
        let stage = sum_up("scenarios", report, said.into_iter().collect());
        assert_eq!((stage.passed, stage.failed.len()), (1, 0));
        assert_eq!(stage.skipped, [skip]);
    }

    #[test]
    fn a_failure_by_a_skip_is_no_second_skip() {
        assert_eq!(
            skip_of("SKIPPED: b needs wrk (a failure, because CI is set)"),
            None
        );
        assert_eq!(skip_of("   Compiling shifter"), None);
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
