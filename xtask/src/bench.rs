//! `cargo xtask bench`: builds, then becomes the bench.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::build,
    run::{cargo, is_root, is_set, program, run, rustup_run, target_directory},
    setup::{Need, nightly, setup},
};

/// What the programs are built for.
const TARGET: &str = "bpfel-unknown-none";
/// Names a ready object of the bench's programs.
const OBJECT: &str = "SHIFTER_BENCH_OBJECT";
/// Names a ready `shifter`.
const AGENT: &str = "SHIFTER_BIN";

const PARTS_WITH_AGENT: [&str; 5] = ["traffic", "compare", "control", "start", "migration"];

/// `bench --object` builds the bench's programs and prints where they are;
/// anything else becomes the bench.
pub fn bench(arguments: &[String]) -> Result<()> {
    if arguments == ["--object"] {
        println!("{}", object()?.display());
        return Ok(());
    }
    let asks_for_help = arguments.iter().any(|a| a == "--help" || a == "-h");
    if !is_root() && !asks_for_help {
        bail!(
            "the bench makes network namespaces and loads eBPF programs: run `cargo xtask bench` as root"
        );
    }
    // Parts that run an agent: all but packets.
    let has_agent = !arguments.iter().any(|a| a == "packets")
        || arguments
            .iter()
            .any(|a| PARTS_WITH_AGENT.contains(&a.as_str()));
    // The others call nothing that is not there anyway.
    let with_servers = ["traffic", "compare"];
    let has_traffic = arguments.iter().any(|a| with_servers.contains(&a.as_str()));
    let others = ["packets", "control", "start", "migration"];
    let has_others = arguments.iter().any(|a| others.contains(&a.as_str()));
    if !asks_for_help && (has_traffic || !has_others) {
        setup(Need::Bench)?;
    }
    build(&[])?;
    let path = target_directory().join("debug/bench");
    let mut command: Command = program(&path.to_string_lossy());
    command.args(arguments).stdin(Stdio::inherit());
    if !asks_for_help {
        command.env(OBJECT, object()?);
        if has_agent {
            command.env(AGENT, agent()?);
        }
    }
    Err(command.exec()).with_context(|| format!("{} cannot be run", path.display()))
}

/// Builds `shifter` optimised, as it is installed: what its agent does beside the packets is in the
/// figures too. The first time some minutes.
fn agent() -> Result<PathBuf> {
    if is_set(AGENT) {
        return Ok(std::env::var_os(AGENT).unwrap_or_default().into());
    }
    run(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "shifter",
        "--bin",
        "shifter",
    ]))?;
    Ok(target_directory().join("release/shifter"))
}

/// Builds the eBPF programs that only the bench loads, into a directory of
/// their own: the first time about a minute.
fn object() -> Result<PathBuf> {
    if is_set(OBJECT) {
        return Ok(std::env::var_os(OBJECT).unwrap_or_default().into());
    }
    setup(Need::Build)?;
    let toolchain = nightly().with_context(|| {
        format!("no nightly is installed: `cargo xtask setup` installs one, and {OBJECT} takes a ready object")
    })?;
    let directory = target_directory().join("bench");
    let mut command = rustup_run(&toolchain, &["cargo", "build", "--quiet", "--release"]);
    command
        .args(["--package", "shifter-ebpf", "--bin", "bench"])
        .args(["--features", "bench", "-Z", "build-std=core"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&directory)
        // As shifter/build.rs has it built.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Ctarget-cpu=v3",
                std::env::consts::ARCH
            ),
        );
    run(&mut command)?;
    Ok(directory.join(TARGET).join("release/bench"))
}
