//! The static binary: against musl, the eBPF object inside.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::elf;
use crate::{
    pins,
    run::{cargo, output, program, root, run, target_directory},
};

/// Builds it and leaves it in `directory`.
pub fn build(directory: &Path) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--release", "--locked", "--package", "shifter"]);
    command
        .args(["--target", pins::MUSL_TARGET])
        // SQLite is C.
        .env(
            format!("CC_{}", pins::MUSL_TARGET.replace('-', "_")),
            "musl-gcc",
        )
        .env("RUSTFLAGS", remap());
    run(&mut command)?;
    let built = target_directory()
        .join(pins::MUSL_TARGET)
        .join("release/shifter");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if let Some(problem) = elf::problem(&bytes) {
        bail!(
            "{} is not what shall be installed: {problem}",
            built.display()
        );
    }
    let says = output(program(&built.to_string_lossy()).arg("--version"));
    let wanted = format!("shifter {}", super::VERSION);
    if says.as_deref().map(str::trim) != Some(&wanted) {
        bail!("{} says {says:?}, not {wanted:?}", built.display());
    }
    let path = directory.join("shifter");
    fs::copy(&built, &path).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The agent's own code names no directory of this machine, nor does the eBPF
/// object (shifter/build.rs).
fn remap() -> String {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    format!(
        "--remap-path-prefix={}=/build/shifter --remap-path-prefix={}=/build/cargo",
        root().display(),
        home.display()
    )
}
