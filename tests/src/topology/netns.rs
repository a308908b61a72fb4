//! One network namespace: made, entered, removed.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result};

use crate::command::{run, run_with_input};

/// Prefix of everything that this crate makes on the machine.
pub const PREFIX: &str = "sft-";
const NETNS_DIR: &str = "/run/netns";

/// A named network namespace; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace called `name`, its loopback up.
    pub fn create(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NETNS_DIR).join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let netns = Self { name, file };
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> Result<()> {
        enter(self.file.as_raw_fd()).with_context(|| format!("enter namespace {}", self.name))
    }

    /// Runs `f` in a thread of its own that is inside the namespace; sockets
    /// made there stay in it. A panic goes on in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter().expect("enter a namespace that is held open");
                    f()
                })
                .join()
        });
        match result {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `f` in a thread inside the namespace, beside the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let file = self.file.try_clone()?;
        Ok(thread::spawn(move || {
            enter(file.as_raw_fd()).expect("enter a namespace that is held open");
            f()
        }))
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        // SAFETY: the closure runs between fork and exec and makes one system
        // call on a descriptor that the child has inherited.
        unsafe {
            command.pre_exec(move || enter(fd));
        }
        command
    }

    /// As [`Netns::command`], with a mount namespace of its own whose /sys
    /// shows this network namespace.
    pub fn command_with_sys(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program.as_ref());
        command
    }

    /// Runs lines of `ip` commands in one process.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        let script = lines.join("\n") + "\n";
        run_with_input(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            &script,
        )?;
        Ok(())
    }

    /// Sets a value below /proc/sys/net, e.g. `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(key);
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("set {} to {value} in {}", path.display(), self.name))
    }

    /// Loads nft commands.
    pub fn nft(&self, script: &str) -> Result<()> {
        run_with_input(self.command("nft").args(["-f", "-"]), script)?;
        Ok(())
    }

    /// Switches offload features of an interface: `["tx", "off"]`.
    pub fn ethtool(&self, interface: &str, features: &[&str]) -> Result<()> {
        run(self
            .command("ethtool")
            .args(["-K", interface])
            .args(features))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing is left to do about a failure; the next start sweeps.
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

fn enter(fd: i32) -> std::io::Result<()> {
    // SAFETY: setns takes a descriptor and a flag; it moves only this thread.
    if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Removes what runs left behind whose process is dead.
pub fn sweep_stale() {
    for name in entries(Path::new(NETNS_DIR)).filter(|name| is_stale(name)) {
        let _ = run(Command::new("ip").args(["netns", "del", &name]));
    }
    let temp = std::env::temp_dir();
    for name in entries(&temp).filter(|name| is_stale(name)) {
        super::remove_directory(&temp.join(name));
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
}

/// `sft-PID-...` with no such process.
fn is_stale(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
