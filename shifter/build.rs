//! Builds the eBPF object (or takes a ready one) and the gRPC code.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

/// Fields that JSON shows as a word instead of a number, and the function of
/// `proto::word` that writes it.
const ENUM_FIELDS: [(&str, &str); 8] = [
    ("ServiceSpec.live", "pool"),
    ("BackendSpec.state", "backend_state"),
    ("BackendStatus.pool", "pool"),
    ("BackendStatus.state", "backend_state"),
    ("ExplainResponse.pool", "pool"),
    ("ListFlowsRequest.pool", "pool"),
    ("Flow.pool", "pool"),
    ("Flow.protocol", "protocol"),
];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    build_object(&manifest, &out)?;
    build_proto(&manifest)
}

/// Leaves the eBPF object at `$OUT_DIR/shifter`.
fn build_object(manifest: &std::path::Path, out: &std::path::Path) -> Result<()> {
    println!("cargo::rerun-if-env-changed=SHIFTER_BPF_OBJECT");
    if let Some(object) = env::var_os("SHIFTER_BPF_OBJECT") {
        let object = PathBuf::from(object);
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, out.join("shifter")).with_context(|| {
            format!("SHIFTER_BPF_OBJECT names {}, which cannot be read: give the path of a built eBPF object", object.display())
        })?;
        return Ok(());
    }
    let root = manifest.join("../shifter-ebpf");
    let Some(root_dir) = root.to_str() else {
        bail!("the path of the workspace is not UTF-8: {}", root.display())
    };
    // The eBPF crate is its own directory and what it shares with the host.
    println!(
        "cargo::rerun-if-changed={}",
        manifest.join("../shifter-common/src").display()
    );
    aya_build::build_ebpf(
        [aya_build::Package { name: "shifter-ebpf", root_dir, ..Default::default() }],
        aya_build::Toolchain::Custom(nightly()),
    )
    .context("the eBPF crate does not build; `cargo xtask setup` installs nightly with rust-src, LLVM and bpf-linker, and SHIFTER_BPF_OBJECT takes a ready object")
}

/// The nightly that builds the eBPF object: that of docs/toolchain.md, which
/// `cargo xtask setup` installs, or else the one that is there.
fn nightly() -> &'static str {
    const NIGHTLY: &str = "nightly-2026-05-20";
    let installed = std::process::Command::new("rustup")
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
