//! Which scenarios run side by side: most of them wait more than they work.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};

use super::stage::{Heard, hear};

/// Test programs that measure time or take every CPU: each has the machine to itself.
const ALONE: [&str; 9] = [
    "bench",
    "contention",
    "floods",
    "interfaces",
    "kills",
    "lab",
    "publish",
    "shares",
    "storm",
];

/// Scenarios that run at once. Of two on two CPUs one is mostly waiting.
const LANES: usize = 2;

/// Names of test programs: those that run side by side, and those that run alone.
pub struct Programs {
    pub beside: Vec<String>,
    pub alone: Vec<String>,
}

impl Programs {
    /// Those in the directory `tests` of a package: its files and its directories
    /// with a `main.rs`.
    pub fn find(directory: &Path) -> Result<Self> {
        let entries = fs::read_dir(directory)
            .with_context(|| format!("reading {} failed", directory.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is_program = match path.extension() {
                Some(extension) => extension == "rs",
                None => path.join("main.rs").is_file(),
            };
            if is_program && let Some(name) = path.file_stem() {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort();
        let (alone, beside) = names
            .into_iter()
            .partition(|name| ALONE.contains(&name.as_str()));
        Ok(Self { beside, alone })
    }
}

/// Runs each command, some at once; `show` is given each that has ended, one at a time.
pub fn side_by_side(commands: Vec<Command>, show: impl Fn(&Heard, &Command) + Sync) -> Vec<Heard> {
    let queue = Mutex::new(VecDeque::from(commands));
    let screen = Mutex::new(());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let lane = || {
        let mut all = Vec::new();
        while let Some(mut command) = next() {
            let heard = hear(&mut command);
            let turn = screen.lock().unwrap_or_else(PoisonError::into_inner);
            show(&heard, &command);
            drop(turn);
            all.push(heard);
        }
        all
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes
            .into_iter()
            .flat_map(|lane| match lane.join() {
                Ok(heard) => heard,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_the_scenarios_is_found_and_those_alone_exist() {
        let programs = Programs::find(&crate::run::root().join("tests/tests")).unwrap();
        assert!(programs.beside.contains(&"hooks".to_owned()));
        assert!(programs.alone.contains(&"floods".to_owned()), "a directory");
        for name in ALONE {
            assert!(programs.alone.iter().any(|found| found == name), "{name}");
        }
    }

    #[test]
    fn every_command_is_run_once_and_heard() {
        let echo = |text: &str| {
            let mut command = Command::new("echo");
            command.arg(text);
            command
        };
        let commands = vec![
            echo("test a ... ok"),
            echo("test b ... FAILED"),
            Command::new("false"),
        ];
        // Not shown: whoever reads the output of this test takes it for its own.
        let heard = side_by_side(commands, |_, _| {});
        let passed: usize = heard.iter().map(|heard| heard.report.passed).sum();
        let failed: Vec<&String> = heard.iter().flat_map(|h| &h.report.failed).collect();
        assert_eq!((passed, failed), (1, vec![&"b".to_owned()]));
        assert_eq!(heard.iter().filter(|heard| heard.ended.is_err()).count(), 1);
    }
}
