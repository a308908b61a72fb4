//! `cargo xtask lint`: formatting and clippy, the eBPF crate apart.

use std::process::Command;

use anyhow::Result;

use crate::{
    pins,
    run::{cargo, output, program, run, rustup_run},
    setup::{Need, nightly, setup},
};

/// Runs all lints, first failure first.
pub fn lint() -> Result<()> {
    setup(Need::Lint)?;
    run(&mut formatting())?;
    run(&mut clippy())?;
    match clippy_ebpf() {
        Some(mut command) => run(&mut command),
        None => {
            eprintln!("SKIPPED: lints of shifter-ebpf: no nightly with clippy (cargo xtask setup)");
            Ok(())
        }
    }
}

/// `cargo fmt` over all crates.
pub fn formatting() -> Command {
    cargo(&["fmt", "--all", "--check"])
}

/// Clippy over the host crates. With the eBPF crate in the same call, the
/// features of both sides would be unified, which neither survives.
pub fn clippy() -> Command {
    let mut command = cargo(&["clippy", "--workspace", "--exclude", "shifter-ebpf"]);
    command.args(["--all-targets"]);
    let version = output(&mut rustc_version());
    if version.is_some_and(|version| is_pinned(&version)) {
        command.args(["--", "-D", "warnings"]);
    }
    command
}

fn rustc_version() -> Command {
    let mut command = program("rustc");
    command.arg("--version");
    command
}

/// Whether `rustc --version` is of the pinned release. A later compiler knows
/// lints that nobody has seen yet: they are shown and refuse nothing.
fn is_pinned(version: &str) -> bool {
    version
        .strip_prefix("rustc ")
        .and_then(|rest| rest.strip_prefix(pins::RUST))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Clippy over the eBPF crate for its own target, where the nightly has it.
pub fn clippy_ebpf() -> Option<Command> {
    let nightly = nightly()?;
    output(&mut rustup_run(&nightly, &["cargo-clippy", "--version"]))?;
    let mut command = rustup_run(&nightly, &["cargo", "clippy", "--package", "shifter-ebpf"]);
    command.args(["--features", "bench"]);
    command.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    command.args(["--", "-D", "warnings"]);
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_compilers_warnings_refuse() {
        assert!(is_pinned("rustc 1.95.0 (59807616e 2026-04-14)"));
        assert!(!is_pinned("rustc 1.99.1 (58cf8f9c3 2026-10-13)"));
        assert!(!is_pinned("rustc 1.950.0"));
    }
}
