//! A BPF file system that is taken away under a running agent.
//!
//! As long as somebody has a directory of it open, what is pinned there lives
//! on, out of reach of any path. So the agent keeps one open, and pins all of it
//! again where another file system is mounted in its place.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;

use super::{
    DatapathError,
    load::{Pins, failed, is_bpffs},
    pinned::bpf,
    plural,
};

/// Keeps the pins within reach.
pub struct Keeper {
    pins: Pins,
    /// The directory of the pins, as it was opened.
    held: fs::File,
}

impl Keeper {
    /// Over the pins of an agent that holds their lock.
    pub fn new(pins: Pins) -> Result<Self, DatapathError> {
        let held = open(pins.root())?;
        Ok(Self { pins, held })
    }

    /// Looks whether the pins are still where they were, and carries them over
    /// to another file system that is there now. What is wrong, with what mends it.
    pub fn look(&mut self) -> Option<String> {
        if self.is_in_place() {
            return None;
        }
        let root = self.pins.root().to_owned();
        let parent = root.parent().unwrap_or(Path::new("/"));
        if !is_bpffs(parent) {
            return Some(format!(
                "the BPF file system with the pins is gone from {}: programs and flows go on as long as this agent runs, and end with it: mount -t bpf bpf {}",
                parent.display(),
                parent.display()
            ));
        }
        match self.carry_over() {
            Ok(count) => {
                tracing::warn!(
                    "another BPF file system was mounted at {}: {} carried over",
                    parent.display(),
                    plural(count, "pin")
                );
                None
            }
            Err(error) => Some(format!(
                "another BPF file system is mounted at {}, and the pins cannot be carried over ({error}): programs and flows go on as long as this agent runs",
                parent.display()
            )),
        }
    }

    fn is_in_place(&self) -> bool {
        let same = |there: fs::Metadata| {
            let own = self.held.metadata().ok()?;
            Some((own.dev(), own.ino()) == (there.dev(), there.ino()))
        };
        let there = fs::metadata(self.pins.root()).ok();
        there.and_then(same).unwrap_or(false)
    }

    /// Pins everything again; returns how much that is.
    fn carry_over(&mut self) -> Result<u64, DatapathError> {
        let lock = self.pins.lock()?;
        let old = PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()));
        refuse_others(&old.join("maps"), &self.pins.maps())?;
        let mut count = 0;
        for name in ["maps", "links", "detached"] {
            if !old.join(name).exists() {
                continue;
            }
            let to = self.pins.root().join(name);
            count += pin_all_again(&old.join(name), &to).map_err(|error| {
                let what = format!("carrying pins over to {}", to.display());
                failed(what, error, "bpffs must be writable")
            })?;
        }
        self.held = lock;
        Ok(count)
    }
}

/// Refuses to mix two installations: maps that are pinned here already must be ours.
fn refuse_others(from: &Path, to: &Path) -> Result<(), DatapathError> {
    let id = |path: PathBuf| MapInfo::from_pin(path).ok().map(|info| info.id());
    let entries = fs::read_dir(to).into_iter().flatten().flatten();
    for name in entries.map(|entry| entry.file_name()) {
        if to.join(&name).is_file() && id(to.join(&name)) != id(from.join(&name)) {
            return Err(DatapathError::Refused(format!(
                "{} is pinned there, and is not this installation's: take it away (`rm -r {}`) or mount an empty BPF file system",
                to.join(&name).display(),
                to.parent().unwrap_or(to).display()
            )));
        }
    }
    Ok(())
}

fn open(directory: &Path) -> Result<fs::File, DatapathError> {
    fs::File::open(directory)
        .map_err(|error| failed(format!("opening {}", directory.display()), error, ""))
}

/// Second pins of all that is pinned below `from`; returns how many.
fn pin_all_again(from: &Path, to: &Path) -> io::Result<u64> {
    fs::create_dir_all(to)?;
    let mut count = 0;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            count += pin_all_again(&from, &to)?;
        } else if !to.exists() {
            pin_again(&from, &to)?;
            count += 1;
        }
    }
    Ok(count)
}

/// A second pin of what is pinned at `from`, map or link.
fn pin_again(from: &Path, to: &Path) -> io::Result<()> {
    const OBJ_PIN: libc::c_int = 6;
    const OBJ_GET: libc::c_int = 7;
    let from = CString::new(from.as_os_str().as_bytes())?;
    let to = CString::new(to.as_os_str().as_bytes())?;
    let object = bpf(OBJ_GET, [from.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just made and has no other owner.
    let object = unsafe { OwnedFd::from_raw_fd(object) };
    bpf(OBJ_PIN, [to.as_ptr() as u64, object.as_raw_fd() as u64]).map(drop)
}
