//! Child processes: run to the end, or kept and stopped when dropped.

use std::{
    fs::File,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Has the kernel kill the child when the thread that starts it ends, so that
/// a killed test leaves no process behind.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec and calls only prctl,
    // which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// Runs a command to its end; an exit status other than 0 is an error that
/// carries what it said.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    check(command, output)
}

/// As [`run`], with `input` on the standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let output = check(command, output).with_context(|| format!("with the input\n{input}"))?;
    written.with_context(|| format!("write the input of {command:?}"))?;
    Ok(output)
}

fn check(command: &Command, output: Output) -> Result<Output> {
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// A process that runs beside the test, its output in a file; ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    what: String,
}

impl Process {
    /// Starts `command` with standard output and error going to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let what = format!("{:?}", command.get_program());
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        die_with_parent(&mut command)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log, what })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the child has not been waited for,
        // or kill fails with ESRCH, so the id is still ours.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Waits up to `limit` for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if start.elapsed() > limit {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and SIGKILL if that does not end it within `limit`.
    pub fn stop(&mut self, limit: Duration) {
        if self.ended().is_none() {
            self.signal(libc::SIGTERM);
            if self.wait(limit).is_none() {
                self.kill();
            }
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until its output contains `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.output().contains(text) {
            if let Some(status) = self.ended() {
                bail!("{} ended with {status}: {}", self.what, self.output());
            }
            if start.elapsed() > limit {
                bail!(
                    "{} did not say {text:?} within {limit:?}: {}",
                    self.what,
                    self.output()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls `done` until it holds; false when it does not within `limit`.
pub fn eventually(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
