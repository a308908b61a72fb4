//! The first and only root of a guest: busybox, the programs that tests call,
//! the test programs, the modules, and the script that runs them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{cpio::Archive, module::Module};
use crate::run::{find, output, program};

/// Directories that are mounted on, or that programs expect.
const DIRECTORIES: [&str; 9] = [
    "dev", "etc", "proc", "run", "sys", "tmp", "var/lib", "root", "bin",
];

/// Of busybox, unless a program of its own is there.
const APPLETS: [&str; 11] = [
    "sh", "mount", "umount", "insmod", "stty", "mkdir", "poweroff", "cat", "sleep", "true", "uname",
];

/// What goes in.
pub struct Content<'a> {
    /// Programs by name, found on PATH.
    pub programs: &'a [&'a str],
    /// Programs of this workspace: name in the guest, and where it was built.
    pub built: &'a [(&'a str, PathBuf)],
    pub modules: &'a [Module],
    pub init: &'a str,
    /// For the stripped programs.
    pub scratch: &'a Path,
}

/// Makes the archive.
pub fn make(content: &Content) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    let mut libraries = BTreeSet::new();
    let mut add = |archive: &mut Archive, name: &str, path: &Path| {
        libraries.extend(libraries_of(path)?);
        archive.file(&format!("bin/{name}"), &read(path)?);
        anyhow::Ok(())
    };
    for name in content.programs.iter().chain(&["busybox"]) {
        let path = find(name).with_context(|| format!("{name} is not on PATH"))?;
        add(&mut archive, name, &path)?;
    }
    for (name, path) in content.built {
        add(&mut archive, name, &strip(path, content.scratch)?)?;
    }
    for library in libraries {
        archive.file(library.trim_start_matches('/'), &read(library.as_ref())?);
    }
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    for module in content.modules {
        archive.file(&module_path(module), &module.content);
    }
    archive.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    archive.file("init", content.init.as_bytes());
    Ok(archive.finish())
}

/// Where a module lies in the guest, without a slash in front.
pub fn module_path(module: &Module) -> String {
    format!("lib/modules/{}.ko", module.name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// A copy without line numbers and symbols: most of a program under test.
fn strip(path: &Path, scratch: &Path) -> Result<PathBuf> {
    let name = path.file_name().context("a program has a name")?;
    let stripped = scratch.join(name);
    crate::run::run(program("strip").arg("-o").arg(&stripped).arg(path))?;
    Ok(stripped)
}

/// Paths of the shared libraries that a program is loaded with.
fn libraries_of(path: &Path) -> Result<Vec<String>> {
    // It fails for what is linked statically.
    let Some(text) = output(program("ldd").arg(path)) else {
        return Ok(Vec::new());
    };
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{} cannot run here: {}", path.display(), line.trim());
    }
    Ok(paths_in(&text))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f00)`, and the loader
/// without an arrow.
fn paths_in(text: &str) -> Vec<String> {
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        let wanted = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths_in(text), wanted);
        assert!(paths_in("\tstatically linked\n").is_empty());
    }
}
