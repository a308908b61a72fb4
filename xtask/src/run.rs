//! Runs other programs: where they are found, and what is said when they fail.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Root of the workspace.
pub fn root() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map(Path::to_path_buf).unwrap_or(own)
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |directory| root().join(directory))
}

/// A program of the build: run in the root of the workspace, without input,
/// found also where cargo and Debian put programs that PATH may lack.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .current_dir(root())
        .env("PATH", search_path())
        .stdin(Stdio::null());
    command
}

/// The cargo that runs us.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = program("cargo");
    command.args(arguments);
    command
}

/// A program of another toolchain, by its rustup name.
pub fn rustup_run(toolchain: &str, arguments: &[&str]) -> Command {
    let mut command = program("rustup");
    command
        .args(["run", toolchain])
        .args(arguments)
        // A missing toolchain is an answer, not a download.
        .env("RUSTUP_AUTO_INSTALL", "0");
    for inherited in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(inherited);
    }
    command
}

/// Where cargo installs programs and where its own are.
fn cargo_directories() -> impl Iterator<Item = PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    env::var_os("CARGO_INSTALL_ROOT")
        .map(PathBuf::from)
        .into_iter()
        .chain(home)
        .map(|directory| directory.join("bin"))
}

fn search_path() -> OsString {
    let old = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&old).collect();
    for own in cargo_directories() {
        if !directories.contains(&own) {
            directories.insert(0, own);
        }
    }
    for system in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        let system = PathBuf::from(system);
        if !directories.contains(&system) {
            directories.push(system);
        }
    }
    env::join_paths(directories).unwrap_or(old)
}

/// Whether a program of this name is found.
pub fn is_installed(name: &str) -> bool {
    find(name).is_some()
}

/// Where a program of this name is found.
pub fn find(name: &str) -> Option<PathBuf> {
    let places = search_path();
    let mut places = env::split_paths(&places).map(|directory| directory.join(name));
    places.find(|path| path.is_file())
}

/// Runs it with our output; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command
        .status()
        .with_context(|| format!("{line}: cannot be run"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// What it prints, or `None` when it cannot be run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As a user would type it.
pub fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    // Uid: real, effective, saved, file system (proc(5)).
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("Uid:"))?;
            Some(line.split_whitespace().nth(2)? == "0")
        })
        .unwrap_or(false)
}

/// Whether an environment variable is set to something.
pub fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}
