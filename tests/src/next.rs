//! The agent that tests of migration move to.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Result, bail};

use crate::agent::sibling;

/// An agent of a later layout, as a feature makes one: `SHIFTER_NEXT_BIN`, or
/// built beside the test's own.
pub fn next_binary() -> Result<PathBuf> {
    static BUILT: OnceLock<bool> = OnceLock::new();
    if let Some(path) = env::var_os("SHIFTER_NEXT_BIN") {
        return Ok(path.into());
    }
    if env::var_os("SHIFTER_BPF_OBJECT").is_some() {
        bail!(
            "SHIFTER_BPF_OBJECT is an object of one layout: name an agent of a later one in SHIFTER_NEXT_BIN"
        );
    }
    let is_built = BUILT.get_or_init(|| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo
            .args(["build", "--quiet", "--locked", "--package", "shifter"])
            .args(["--features", "next_layout", "--bin", "shifter-next"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.status().is_ok_and(|status| status.success())
    });
    if !is_built {
        bail!("the agent of a later layout does not build: see above");
    }
    sibling("shifter-next")
}
