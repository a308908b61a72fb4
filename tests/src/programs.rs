//! Programs of exec gates and hooks, where the runner takes them from: a directory of
//! root's that nobody else may write, and so all above it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::topology::Lab;

/// An `exec_dir`; removed when dropped.
#[derive(Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// An empty one, named as the lab is. Not in the lab's directory: anyone may write
    /// above that.
    pub fn of(lab: &Lab) -> Result<Self> {
        let path = Path::new("/run").join(format!("{}-exec", lab.name()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let programs = Self(path);
        fs::set_permissions(&programs.0, fs::Permissions::from_mode(0o755))?;
        Ok(programs)
    }

    /// Writes a script for bash(1), or another one in its place; `$DIR` is this directory.
    pub fn put(&self, name: &str, script: &str) -> Result<()> {
        let dir = self.0.display();
        self.file(name, &format!("#!/bin/bash\nDIR={dir}\n{script}\n"), 0o755)
    }

    /// Writes a file that scripts read.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.file(name, text, 0o644)
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.0.join(name))?)
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(mode),
        )?)
    }

    /// The section `[gates]` of the agent's file.
    pub fn toml(&self) -> String {
        format!("[gates]\nexec_dir = \"{}\"\n", self.0.display())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Nothing is left to do about a failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}
