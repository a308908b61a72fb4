//! `cargo xtask setup`: installs what the build and the tests lack.
//!
//! Each step first looks, then says what it installs and why, then does it.
//! When all is there, nothing is printed.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    kernels::list::PROGRAMS,
    pins,
    run::{cargo, is_installed, is_root, is_set, output, program, run, rustup_run},
};

/// What the verb that calls needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The eBPF toolchain.
    Build,
    /// And clippy and rustfmt.
    Lint,
    /// And what the demo calls.
    Demo,
    /// All but the tools of scenarios, which cannot run without root.
    Unprivileged,
    /// And the target and tools of a static binary and its package.
    Dist,
    /// And what the bench calls.
    Bench,
    /// What boots other kernels, and what is called there.
    Kernels,
    /// What every verb but `bench`, `dist` and `test --kernels` calls.
    All,
}

/// Installs what `need` asks for and the machine lacks.
pub fn setup(need: Need) -> Result<()> {
    if !is_set("SHIFTER_BPF_OBJECT") {
        install_nightly(!matches!(
            need,
            Need::Build | Need::Demo | Need::Dist | Need::Bench | Need::Kernels
        ))?;
        install_bpf_linker()?;
    }
    if matches!(need, Need::Lint | Need::Unprivileged | Need::All) {
        install_components()?;
    }
    match need {
        Need::Build | Need::Lint | Need::Unprivileged => Ok(()),
        Need::Demo => install_tools(pins::DEMO_PACKAGES.iter()),
        Need::Dist => {
            install_target()?;
            install_tools(pins::DIST_PACKAGES.iter())
        }
        Need::Bench => install_tools(
            pins::DEMO_PACKAGES
                .iter()
                .chain(&pins::TEST_PACKAGES)
                .chain(&pins::BENCH_PACKAGES),
        ),
        Need::Kernels => install_tools(
            pins::DEMO_PACKAGES
                .iter()
                .chain(&pins::TEST_PACKAGES)
                .filter(|package| PROGRAMS.contains(&package.program))
                .chain(&pins::KERNEL_PACKAGES),
        ),
        Need::All => install_tools(pins::DEMO_PACKAGES.iter().chain(&pins::TEST_PACKAGES)),
    }
}

/// The installed nightly that the eBPF object is built with. The build script
/// of `shifter` chooses in the same order.
pub fn nightly() -> Option<String> {
    if llvm_of(pins::NIGHTLY).is_some() {
        return Some(pins::NIGHTLY.to_owned());
    }
    let llvm = llvm_of(pins::ANY_NIGHTLY)?;
    (llvm <= pins::LLVM).then(|| pins::ANY_NIGHTLY.to_owned())
}

/// Major version of the LLVM inside an installed toolchain.
fn llvm_of(toolchain: &str) -> Option<u32> {
    llvm_major(&output(&mut rustup_run(toolchain, &["rustc", "-vV"]))?)
}

/// Reads `LLVM version: 22.1.4` out of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

fn install_nightly(with_clippy: bool) -> Result<()> {
    if !is_installed("rustup") {
        bail!(
            "rustup is not on PATH: install Rust by https://rustup.rs, or give a ready eBPF object in SHIFTER_BPF_OBJECT"
        );
    }
    let toolchain = match nightly() {
        Some(toolchain) => toolchain,
        None => {
            let name = pins::NIGHTLY;
            say(
                name,
                "the bpf target needs a nightly compiler with its source",
            );
            let mut command = program("rustup");
            command.args(["toolchain", "install", name, "--profile", "minimal"]);
            command.args(["--component", "rust-src", "--no-self-update"]);
            run(&mut command)
                .context("without a nightly, give a ready eBPF object in SHIFTER_BPF_OBJECT")?;
            name.to_owned()
        }
    };
    if !has_source(&toolchain) {
        add_component(
            &toolchain,
            "rust-src",
            "core is compiled for the bpf target",
        )?;
    }
    let clippy = &["cargo-clippy", "--version"];
    if with_clippy && output(&mut rustup_run(&toolchain, clippy)).is_none() {
        add_component(&toolchain, "clippy", "lints of the eBPF crate")?;
    }
    Ok(())
}

fn has_source(toolchain: &str) -> bool {
    output(&mut rustup_run(toolchain, &["rustc", "--print", "sysroot"])).is_some_and(|sysroot| {
        PathBuf::from(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    })
}

fn add_component(toolchain: &str, component: &str, why: &str) -> Result<()> {
    say(&format!("{component} for {toolchain}"), why);
    run(program("rustup").args(["component", "add", component, "--toolchain", toolchain]))
}

/// clippy and rustfmt of the compiler in use; a minimal profile lacks them.
fn install_components() -> Result<()> {
    for (component, binary) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if output(&mut cargo(&[binary, "--version"])).is_none() {
            say(component, "the tests check formatting and lints");
            run(program("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// The standard library of the static binary, for the compiler in use.
fn install_target() -> Result<()> {
    let libraries = ["--print", "target-libdir", "--target", pins::MUSL_TARGET];
    let found = output(program("rustc").args(libraries));
    if found.is_some_and(|path| PathBuf::from(path.trim()).is_dir()) {
        return Ok(());
    }
    say(pins::MUSL_TARGET, "a binary that needs no library");
    run(program("rustup").args(["target", "add", pins::MUSL_TARGET]))
}

fn install_bpf_linker() -> Result<()> {
    let wanted = format!("bpf-linker {}", pins::BPF_LINKER);
    let found = output(program("bpf-linker").arg("--version"));
    if found.is_some_and(|version| version.trim() == wanted) {
        return Ok(());
    }
    install_llvm()?;
    say(&wanted, "links the eBPF object; about a minute");
    let mut command = cargo(&["install", "bpf-linker", "--version", pins::BPF_LINKER]);
    command
        .args([
            "--no-default-features",
            "--features",
            pins::BPF_LINKER_FEATURE,
        ])
        .args(["--locked", "--force"])
        // Both: one is read by llvm-sys, the other by bpf-linker's own build
        // script, which otherwise takes any llvm-config on PATH.
        .env("LLVM_PREFIX", pins::LLVM_PREFIX)
        .env(pins::LLVM_SYS_PREFIX, pins::LLVM_PREFIX)
        // Not into the directory of this workspace's build.
        .env_remove("CARGO_TARGET_DIR");
    run(&mut command)?;
    match output(program("bpf-linker").arg("--version")) {
        Some(version) if version.trim() == wanted => Ok(()),
        Some(version) => bail!(
            "another bpf-linker ({}) comes before the installed one on PATH: remove it",
            version.trim()
        ),
        None => bail!("bpf-linker was installed and does not run: `bpf-linker --version` says why"),
    }
}

fn install_llvm() -> Result<()> {
    let config = format!("{}/bin/llvm-config", pins::LLVM_PREFIX);
    if PathBuf::from(&config).is_file() && is_installed("c++") {
        return Ok(());
    }
    install_packages(
        &pins::LLVM_PACKAGES,
        &format!("bpf-linker is built on LLVM {}", pins::LLVM),
    )
}

fn install_tools<'a>(packages: impl Iterator<Item = &'a pins::Package>) -> Result<()> {
    let missing: Vec<_> = packages.filter(|p| !is_installed(p.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    let why: Vec<String> = missing
        .iter()
        .map(|p| format!("{}: {}", p.name, p.why))
        .collect();
    install_packages(&names, &why.join("; "))
}

/// Installs Debian packages, or says which are needed.
fn install_packages(names: &[&str], why: &str) -> Result<()> {
    let list = names.join(" ");
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_supported_debian(&release) {
        bail!(
            "packages are missing ({why}): this is not Debian {}, so install what your distribution calls {list} (docs/toolchain.md), and run this again",
            pins::DEBIAN
        );
    }
    if !is_root() {
        bail!("packages are missing ({why}): run as root `apt-get install {list}`");
    }
    say(&list, why);
    let apt = |arguments: &[&str]| {
        let mut command = program("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    apt(&["-qq", "update"])?;
    let mut install = vec!["-qq", "-y", "--no-install-recommends", "install"];
    install.extend(names);
    apt(&install).with_context(|| {
        format!(
            "LLVM {} is in Debian {}'s security archive: is it in /etc/apt/sources.list?",
            pins::LLVM,
            pins::DEBIAN
        )
    })
}

/// Whether os-release(5) names the Debian that packages are known for.
fn is_supported_debian(release: &str) -> bool {
    let value = |key: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    value("ID") == Some("debian") && value("VERSION_ID") == Some(pins::DEBIAN)
}

fn say(what: &str, why: &str) {
    println!("installing {what} ({why})");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_debian_has_packages_installed() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert!(is_supported_debian(debian));
        assert!(!is_supported_debian("VERSION_ID=\"13\"\nID=debian\n"));
        assert!(!is_supported_debian("VERSION_ID=\"12\"\nID=other\n"));
        assert!(!is_supported_debian(""));
    }

    #[test]
    fn llvm_of_a_compiler_is_read_from_its_version() {
        let version = "rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.97.0-nightly\n"), None);
    }
}
