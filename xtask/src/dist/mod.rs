//! `cargo xtask dist`: a static binary and a Debian package of it.

mod binary;
mod check;
mod deb;
mod elf;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    Usage,
    run::{is_root, output, program, target_directory},
    setup::{Need, setup},
};

/// Version of the workspace, and of all that is made here.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds both; with `--check` also installs, upgrades, removes and purges the
/// package in a root of its own.
pub fn dist(arguments: &[String]) -> Result<()> {
    let is_checked = match arguments {
        [] => false,
        [only] if only == "--check" => true,
        [first, ..] => {
            return Err(Usage(format!("dist takes --check, {first:?} was given")).into());
        }
    };
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        bail!("dist builds for x86_64 on x86_64 Linux only");
    }
    if is_checked && !is_root() {
        bail!("--check makes a Debian root and changes into it: run as root");
    }
    setup(Need::Dist)?;
    let date = commit_date();
    let directory = target_directory().join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let binary = binary::build(&directory)?;
    println!("{}  {}", size(&binary)?, binary.display());
    let recipe = deb::Recipe::new(&binary, VERSION, date);
    let package = recipe.build(&directory)?;
    println!("{}  {}", size(&package)?, package.display());
    match is_checked {
        true => check::check(&directory, &recipe, &package),
        false => Ok(()),
    }
}

/// Seconds since 1970 of the last commit, so that the same sources give the
/// same files; SOURCE_DATE_EPOCH where it is set, or where there is no git.
fn commit_date() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let commit = || output(program("git").args(["log", "-1", "--format=%ct"]));
    given
        .or_else(commit)
        .and_then(|text| text.trim().parse().ok())
        // A tree without git: any fixed date does.
        .unwrap_or(1_767_225_600)
}

fn size(path: &PathBuf) -> Result<String> {
    let length = fs::metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?
        .len();
    Ok(format!("{:>5.1} MiB", length as f64 / f64::from(1 << 20)))
}
