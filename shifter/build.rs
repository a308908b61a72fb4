//! Builds the eBPF object (or takes a ready one) and the gRPC code.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// What the object is built for: the byte order of x86-64 and arm64.
const TARGET: &str = "bpfel-unknown-none";
/// Flags of rustc for it.
const FLAGS: [&str; 4] = [
    // Registers as the kernel's tracing sees them; nothing here uses them.
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Cdebuginfo=2",
    // Types, which the verifier wants of global functions.
    "-Clink-arg=--btf",
    // Instructions on 32 bits and jumps on them (kernel 5.1): without them each
    // number narrower than 64 bits costs two shifts.
    "-Ctarget-cpu=v3",
];

/// Fields that JSON shows as a word instead of a number, and the function of
/// `proto::word` that writes it.
const ENUM_FIELDS: [(&str, &str); 12] = [
    ("ServiceSpec.live", "pool"),
    ("Cohort.pool", "pool"),
    ("BackendSpec.state", "backend_state"),
    ("BackendStatus.pool", "pool"),
    ("BackendStatus.state", "backend_state"),
    ("ExplainResponse.pool", "pool"),
    ("ListFlowsRequest.pool", "pool"),
    ("Flow.pool", "pool"),
    ("Flow.protocol", "protocol"),
    ("DrainRequest.pool", "pool"),
    ("UndrainRequest.pool", "pool"),
    ("Rollout.candidate", "pool"),
];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    build_object(&manifest, &out)?;
    build_proto(&manifest)
}

/// Leaves the eBPF object at `$OUT_DIR/shifter`.
fn build_object(manifest: &Path, out: &Path) -> Result<()> {
    println!("cargo::rerun-if-env-changed=SHIFTER_BPF_OBJECT");
    if let Some(object) = env::var_os("SHIFTER_BPF_OBJECT") {
        let object = PathBuf::from(object);
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, out.join("shifter")).with_context(|| {
            format!("SHIFTER_BPF_OBJECT names {}, which cannot be read: give the path of a built eBPF object", object.display())
        })?;
        return Ok(());
    }
    // The object is its own crate, what it shares with the host, and versions.
    for source in ["shifter-ebpf", "shifter-common", "Cargo.toml", "Cargo.lock"] {
        let source = manifest.join("..").join(source);
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let target_dir = out.join("ebpf");
    let features = match env::var_os("CARGO_FEATURE_NEXT_LAYOUT") {
        Some(_) => "next_layout",
        None => "",
    };
    let done = Command::new("rustup")
        .args([
            "run",
            nightly(),
            "cargo",
            "build",
            "--quiet",
            "--release",
            "--locked",
        ])
        .args(["--package", "shifter-ebpf", "--bin", "shifter"])
        .args(["--features", features])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(manifest)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(manifest))
        // Those of the compiler that builds the host's half.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .context("rustup cannot be run")
        .and_then(|status| match status.success() {
            true => Ok(()),
            false => bail!("{status}"),
        });
    done.context("the eBPF crate does not build; `cargo xtask setup` installs nightly with rust-src, LLVM and bpf-linker, and SHIFTER_BPF_OBJECT takes a ready object")?;
    let object = target_dir.join(TARGET).join("release/shifter");
    fs::copy(&object, out.join("shifter"))
        .with_context(|| format!("copying {}", object.display()))?;
    Ok(())
}

/// [`FLAGS`], and line information that names no directory of this machine.
fn flags(manifest: &Path) -> String {
    let home = |variable: &str, directory: &str| {
        let user = || PathBuf::from(env::var_os("HOME").unwrap_or_default());
        env::var_os(variable).map_or_else(|| user().join(directory), PathBuf::from)
    };
    let remaps = [
        (manifest.parent().unwrap_or(manifest).to_owned(), "shifter"),
        (home("CARGO_HOME", ".cargo"), "cargo"),
        (home("RUSTUP_HOME", ".rustup"), "rustup"),
    ];
    let remaps =
        remaps.map(|(from, to)| format!("--remap-path-prefix={}=/build/{to}", from.display()));
    let flags: Vec<_> = FLAGS
        .into_iter()
        .chain(remaps.iter().map(String::as_str))
        .collect();
    flags.join("\x1f")
}

/// The nightly that builds the eBPF object: that of docs/toolchain.md, which
/// `cargo xtask setup` installs, or else the one that is there.
fn nightly() -> &'static str {
    const NIGHTLY: &str = "nightly-2026-05-20";
    let installed = Command::new("rustup")
        .args(["run", NIGHTLY, "rustc", "--version"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stderr(std::process::Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success());
    if installed { NIGHTLY } else { "nightly" }
}

fn build_proto(manifest: &std::path::Path) -> Result<()> {
    let include = manifest.join("../proto");
    let file = include.join("shifter/v1/shifter.proto");
    println!("cargo::rerun-if-changed={}", file.display());
    let descriptors =
        protox::compile([&file], [&include]).context("proto/shifter/v1/shifter.proto")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    fs::write(
        out.join("descriptor.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    let mut code = tonic_prost_build::configure()
        .type_attribute(".shifter.v1", "#[derive(serde::Serialize)]")
        .field_attribute(".shifter.v1.ServiceSpec.seed", "#[serde(skip_serializing)]");
    for (field, words) in ENUM_FIELDS {
        code = code.field_attribute(
            format!(".shifter.v1.{field}"),
            format!("#[serde(serialize_with = \"super::word::{words}\")]"),
        );
    }
    code.compile_fds(descriptors)
        .context("generating the gRPC code")
}
