//! One boot: what the guest does, the machine it does it on, and what came out.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::{
    initramfs::module_path,
    list::{CPU, CPUS, KERNEL_ARGUMENTS, Kernel, MEMORY_MIB},
    module::Module,
};
use crate::{
    run::program,
    test::stage::{self, Stage},
};

/// The guest's last line: without it the guest did not come to its end.
const CLOSING: &str = "the guest has run its tests";

/// Lines of the console that show a defect, whatever the tests say.
const COMPLAINTS: [&str; 7] = [
    "WARNING: CPU:",
    "cut here",
    "BUG:",
    "kernel BUG",
    "Oops",
    "Kernel panic",
    "unregister_netdevice: waiting",
];

/// Lines of the console that are shown when the guest ends early.
const TAIL: usize = 30;

/// Tests of one program, to be run in a guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub program: &'static str,
    pub threads: u32,
    pub tests: Vec<String>,
}

/// The script that is the guest's first process. Results go to the second
/// serial port, because the kernel writes to the first whenever it likes.
pub fn script(runs: &[Run], modules: &[Module]) -> String {
    let mut lines = vec![
        "#!/bin/sh".to_owned(),
        // A test that lacks something fails: all that is listed must run.
        "export PATH=/bin HOME=/root TMPDIR=/tmp CI=1 SHIFTER_TEST_EMULATED=1".to_owned(),
    ];
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        lines.push(format!("mount -t {kind} {kind} {place}"));
    }
    lines.push("stty -F /dev/ttyS1 raw -echo".to_owned());
    lines.push("exec >/dev/ttyS1 2>&1".to_owned());
    lines.extend(
        modules
            .iter()
            .map(|m| format!("insmod /{}", module_path(m))),
    );
    lines.push("ip link set lo up".to_owned());
    lines.push("uname -r".to_owned());
    for run in runs {
        lines.push(format!(
            "{} --color=never --test-threads={} --exact {} || echo 'test {}::exit ... FAILED'",
            run.program,
            run.threads,
            run.tests.join(" "),
            run.program
        ));
    }
    lines.push(format!("echo '{CLOSING}'"));
    // What is written to a serial port takes its time to leave.
    lines.push("sleep 1".to_owned());
    lines.push("poweroff -f\n".to_owned());
    lines.join("\n")
}

/// A machine that is ready to start.
pub struct Guest<'a> {
    pub kernel: &'a Kernel,
    pub image: PathBuf,
    pub initramfs: PathBuf,
    /// For what the guest writes.
    pub directory: PathBuf,
    pub limit_s: u32,
}

impl Guest<'_> {
    /// Boots it, shows and counts the results; `expected` are the names of all
    /// tests that must have one.
    pub fn run(&self, expected: &[String]) -> Stage {
        // What an earlier boot wrote says nothing about this one.
        for old in [self.console(), self.results()] {
            fs::remove_file(old).ok();
        }
        let mut stage = stage::tests(self.kernel.name, &mut self.machine());
        let missing = without_result(&stage, expected);
        stage.failed.extend(missing);
        if let Err(error) = self.check_logs() {
            eprintln!("error: {error:#}");
            stage.failed.push(format!("{error:#}"));
        }
        stage
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn results(&self) -> PathBuf {
        self.directory.join("results.log")
    }

    /// QEMU, which ends with us, with the guest or with its time.
    fn machine(&self) -> Command {
        let mut command = program("timeout");
        command
            .args(["--foreground", "--kill-after=10", &self.limit_s.to_string()])
            .arg("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-nic", "none"])
            .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU])
            .args(["-smp", &CPUS.to_string(), "-m", &MEMORY_MIB.to_string()])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", KERNEL_ARGUMENTS])
            .arg("-serial")
            .arg(format!("file:{}", self.console().display()))
            .arg("-chardev")
            .arg(format!(
                "stdio,id=results,signal=off,logfile={}",
                self.results().display()
            ))
            .args(["-serial", "chardev:results"]);
        command
    }

    /// Whether the guest came to its end and its kernel has not complained.
    fn check_logs(&self) -> Result<()> {
        let read = |path: PathBuf| {
            fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        let console = read(self.console())?;
        let path = self.console();
        if !read(self.results())?
            .lines()
            .any(|l| l.trim_end() == CLOSING)
        {
            let lines: Vec<&str> = console.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!(
                "--- end of {} ---\n{}\n---",
                path.display(),
                tail.join("\n")
            );
            anyhow::bail!(
                "the guest ended before its tests did, or took longer than {} s",
                self.limit_s
            );
        }
        if let Some(line) = complaint(&console) {
            anyhow::bail!("its kernel complains ({}): {line}", path.display());
        }
        Ok(())
    }
}

/// The first line of a console that shows a defect of the kernel's making.
fn complaint(console: &str) -> Option<&str> {
    let is_one = |line: &&str| COMPLAINTS.iter().any(|what| line.contains(what));
    console.lines().find(is_one).map(str::trim)
}

/// What is to be said of tests that neither passed, failed nor were skipped.
fn without_result(stage: &Stage, expected: &[String]) -> Vec<String> {
    let passed = stage.timed.iter().map(|timed| &timed.name);
    let skipped = stage.skipped.iter().map(|(name, _)| name);
    let known: Vec<&String> = passed.chain(skipped).chain(&stage.failed).collect();
    expected
        .iter()
        // A failure's name may have a note behind it.
        .filter(|name| {
            !known
                .iter()
                .any(|k| k.split(' ').next() == Some(name.as_str()))
        })
        .map(|name| format!("{name} (no result)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test::output::Timed;

    fn run() -> Run {
        Run {
            program: "packets",
            threads: 2,
            tests: vec!["nat::one".to_owned(), "nat::two".to_owned()],
        }
    }

    #[test]
    fn the_guest_loads_modules_runs_the_tests_that_are_named_and_closes() {
        let module = Module {
            name: "veth".to_owned(),
            content: Vec::new(),
        };
        let script = script(&[run()], &[module]);
        let at = |text: &str| {
            script
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {script}"))
        };
        let tests = at("packets --color=never --test-threads=2 --exact nat::one nat::two || echo");
        assert!(at("insmod /lib/modules/veth.ko\n") < tests);
        assert!(at("CI=1") < tests && tests < at(CLOSING));
        assert!(script.starts_with("#!/bin/sh\n") && script.ends_with("poweroff -f\n"));
    }

    #[test]
    fn a_test_without_a_result_is_told_from_one_that_passed_or_failed() {
        let stage = Stage {
            timed: vec![Timed {
                name: "one".to_owned(),
                took: Duration::ZERO,
            }],
            failed: vec!["two (ended without a result)".to_owned()],
            skipped: vec![("three".to_owned(), "needs wrk".to_owned())],
            ..Stage::default()
        };
        let expected = ["one", "two", "three", "four"].map(str::to_owned);
        assert_eq!(without_result(&stage, &expected), ["four (no result)"]);
    }

    #[test]
    fn a_guest_that_did_not_close_or_whose_kernel_warned_has_failed() {
        let directory = std::env::temp_dir().join(format!("xtask-guest-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let guest = Guest {
            kernel: &super::super::list::KERNELS[0],
            image: PathBuf::new(),
            initramfs: PathBuf::new(),
            directory: directory.clone(),
            limit_s: 1,
        };
        let closed = format!("test one ... ok\r\n{CLOSING}\r\n");
        let check = |results: &str, console: &str| {
            fs::write(guest.results(), results).unwrap();
            fs::write(guest.console(), console).unwrap();
            guest.check_logs().is_ok()
        };
        let outcomes = [
            check(&closed, "reboot: Power down\n"),
            check("test one ... ok\r\n", "reboot: Power down\n"),
            check(&closed, "WARNING: CPU: 1 PID: 2\n"),
        ];
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(outcomes, [true, false, false]);
    }

    #[test]
    fn a_kernel_that_warns_is_heard() {
        let quiet = "[    0.1] Linux version 6.1\n[    2.0] reboot: Power down\n";
        assert_eq!(complaint(quiet), None);
        let loud = format!("{quiet}[    3.0] WARNING: CPU: 0 PID: 7 at net/core/dev.c:1\r\n");
        let line = complaint(&loud).unwrap();
        assert!(line.ends_with("dev.c:1"), "{line}");
    }
}
