//! `cargo xtask build`: everything that the default members and the scenarios need.

use anyhow::Result;

use crate::{
    run::{cargo, run},
    setup::{Need, setup},
};

/// Sets up, then builds the host crates; the build script of `shifter` builds
/// the eBPF object. `arguments` go to `cargo build`.
pub fn build(arguments: &[String]) -> Result<()> {
    setup(Need::Build)?;
    let mut command = cargo(&["build", "--workspace", "--exclude", "shifter-ebpf"]);
    run(command.args(arguments.iter().skip_while(|a| *a == "--")))
}
