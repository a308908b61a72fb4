//! What an agent with three capabilities cannot do for itself, done once
//! before its start by root with all of them: `shifter prepare`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::read_config;
use crate::{
    datapath::{load::Pins, mend::mend_pins, migrate::pin_running, noted, plural},
    store::STORE_FILE,
};

/// Prepares the host for the agent of a configuration; a line for each thing
/// that is so now. Doing it twice, or beside a running agent, does no harm.
///
/// # Errors
/// When the configuration is wrong, bpffs is not mounted or root is not root;
/// then the agent would not start either.
pub fn prepare(config_path: &Path) -> Result<Vec<String>> {
    // SAFETY: takes nothing, touches no memory and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("preparing a host for the agent needs root: run it with sudo");
    }
    let config = read_config(config_path)?;
    let mut done = Vec::new();

    let pins = Pins::new(&config.bpffs);
    pins.create()?;
    for directory in [pins.root().to_owned(), pins.maps(), pins.links()] {
        own(&directory, 0o700)?;
    }
    done.push(format!("pins: {}, root's alone", pins.root().display()));

    make(&config.state_dir, 0o700)?;
    refuse_others(&config.state_dir)?;
    own(&config.state_dir, 0o700)?;
    let files = own_files(&config.state_dir)?;
    done.push(format!(
        "state: {}, root's alone, with {}",
        config.state_dir.display(),
        plural(files as u64, "file")
    ));

    done.extend(mend_pins(&pins, &config.state_dir)?);
    let kept = pin_running(&pins)?;
    if kept != 0 {
        done.push(format!(
            "{} that run pinned, so that another version can take over",
            plural(kept as u64, "program")
        ));
    }

    let socket_dir = config.unix.parent().unwrap_or(Path::new("/"));
    make(socket_dir, 0o755)?;
    done.push(format!("socket: {}", socket_dir.display()));

    let note = noted::path_beside(&config.unix);
    let programs = noted::write(&note)?;
    done.push(format!(
        "programs: {} named in {}",
        plural(programs as u64, "program"),
        note.display()
    ));
    Ok(done)
}

fn make(directory: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(directory)
        .with_context(|| {
            format!(
                "making {}: is something else of that name there, or the disk read-only?",
                directory.display()
            )
        })
}

/// Makes a directory root's own: root without CAP_DAC_OVERRIDE is an owner like
/// any other.
fn own(path: &Path, mode: u32) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    // Not through a link, which somebody may have put there.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let open = options.read(true).custom_flags(flags).open(path);
    let changed = open.and_then(|directory| {
        let found = directory.metadata()?;
        if (found.uid(), found.gid()) != (0, 0) {
            std::os::unix::fs::fchown(&directory, Some(0), Some(0))?;
        }
        if found.mode() & 0o7777 != mode {
            directory.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    });
    changed.with_context(|| {
        format!(
            "making {} root's own: is it a link, or its file system read-only?",
            path.display()
        )
    })
}

/// A directory with files in it that are not the agent's is somebody else's.
fn refuse_others(state_dir: &Path) -> Result<()> {
    let names = fs::read_dir(state_dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .with_context(|| format!("reading the directory {}", state_dir.display()))?;
    if is_others(names) {
        bail!(
            "{} holds files and no store of shifter: name a directory of its own as state_dir",
            state_dir.display()
        );
    }
    Ok(())
}

/// Whether names are of files, and none of a store: one that was moved aside counts.
fn is_others(names: Vec<OsString>) -> bool {
    let mut names = names
        .into_iter()
        .filter(|name| name != "lost+found")
        .peekable();
    names.peek().is_some() && !names.any(|name| name.to_string_lossy().starts_with(STORE_FILE))
}

/// Makes files restored from elsewhere root's own; returns how many files there are.
fn own_files(directory: &Path) -> Result<usize> {
    let files = regular_files(directory)
        .with_context(|| format!("reading the directory {}", directory.display()))?;
    for (path, found) in &files {
        if found.uid() != 0 {
            // Not through a link, should it have become one.
            std::os::unix::fs::lchown(path, Some(0), Some(0)).with_context(|| {
                format!(
                    "making {} root's own: is its file system read-only?",
                    path.display()
                )
            })?;
        }
    }
    Ok(files.len())
}

fn regular_files(directory: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_file() {
            files.push((entry.path(), found));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_told_from_a_new_one_and_one_whose_store_was_moved_aside() {
        let is_others = |names: &[&str]| is_others(names.iter().map(OsString::from).collect());
        assert!(!is_others(&[]));
        assert!(!is_others(&["lost+found"]));
        assert!(!is_others(&["notes", "shifter.db"]));
        assert!(!is_others(&["shifter.db.bad"]));
        assert!(!is_others(&["shifter.db-wal", "shifter.db-shm"]));
        assert!(is_others(&["lost+found", "postgresql"]));
    }
}
