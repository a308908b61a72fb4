//! `cargo xtask demo`: builds, then becomes the demo.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::build,
    run::{is_root, program, target_directory},
    setup::{Need, setup},
};

/// Replaces this process by the demo, so that Ctrl-C reaches it and nobody is
/// left between it and the terminal while it cleans up.
pub fn demo(arguments: &[String]) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo makes network namespaces and loads eBPF programs: run `cargo xtask demo` as root"
        );
    }
    setup(Need::Demo)?;
    build(&[])?;
    let path = target_directory().join("debug/demo");
    let mut command: Command = program(&path.to_string_lossy());
    command.args(arguments).stdin(Stdio::inherit());
    Err(command.exec()).with_context(|| format!("{} cannot be run", path.display()))
}
