//! Who the loaded programs are, noted by one who may ask for one who may not.
//!
//! The kernel names a program by its id to CAP_SYS_ADMIN only
//! (BPF_PROG_GET_FD_BY_ID). `shifter prepare` asks with it and writes a note;
//! an agent without it reads the note. An id names one program until the host
//! boots, so a note of this boot is never wrong, only short of later programs.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use aya::programs::loaded_programs;
use serde::{Deserialize, Serialize};

use super::{
    DatapathError,
    inspect::{ProgramIdentity, identity_of, is_denied},
    load::failed,
};

/// Name of the note, beside the API's socket.
const FILE: &str = "programs.json";
/// A note is no longer than this.
const LONGEST: u64 = 4 << 20;

/// Where this process reads notes.
static NOTE: OnceLock<PathBuf> = OnceLock::new();

#[derive(Serialize, Deserialize, Default)]
struct Note {
    boot_id: String,
    programs: Vec<Noted>,
}

#[derive(Serialize, Deserialize, Clone)]
struct Noted {
    id: u32,
    name: String,
    tag: String,
    installation: String,
}

/// Where the note of an agent lies whose API listens on `socket`.
pub fn path_beside(socket: &Path) -> PathBuf {
    socket.with_file_name(FILE)
}

/// From now on this process takes what the kernel does not tell it from there.
pub fn read_from(path: PathBuf) {
    // The first one counts: there is one agent in a process.
    let _ = NOTE.set(path);
}

/// A program as noted; read anew each time, which is rare.
pub(super) fn find(id: u32) -> Option<ProgramIdentity> {
    find_in(NOTE.get()?, &boot_id()?, id)
}

fn find_in(path: &Path, boot_id: &str, id: u32) -> Option<ProgramIdentity> {
    let length = fs::metadata(path).ok()?.len();
    if length > LONGEST {
        return None;
    }
    let note: Note = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let found = note.programs.into_iter().find(|program| program.id == id)?;
    (note.boot_id == boot_id).then_some(ProgramIdentity {
        name: found.name,
        tag: found.tag,
        installation: found.installation,
    })
}

/// Notes every loaded program; returns how many there are.
///
/// # Errors
/// When the kernel does not tell (CAP_SYS_ADMIN), or the note cannot be written.
pub fn write(path: &Path) -> Result<usize, DatapathError> {
    let mut note = Note {
        boot_id: boot_id().unwrap_or_default(),
        programs: Vec::new(),
    };
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            Err(error) if is_denied(&error) => {
                return Err(failed(
                    "asking the kernel for the loaded programs",
                    error,
                    "run as root with CAP_SYS_ADMIN",
                ));
            }
            // Gone since it was listed.
            Err(_) => continue,
        };
        let identity = identity_of(&program);
        note.programs.push(Noted {
            id: program.id(),
            name: identity.name,
            tag: identity.tag,
            installation: identity.installation,
        });
    }
    replace(path, &note).map_err(|error| {
        failed(
            format!("writing {}", path.display()),
            error,
            "its directory must be root's own and writable",
        )
    })?;
    Ok(note.programs.len())
}

/// Whole or not at all: an agent may be reading.
fn replace(path: &Path, note: &Note) -> io::Result<()> {
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let _ = fs::remove_file(&hidden);
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&hidden)?;
    let written = file
        .write_all(&serde_json::to_vec(note)?)
        .and_then(|()| fs::rename(&hidden, path));
    if written.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    written
}

fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_programs_of_its_own_boot_only() {
        let directory = std::env::temp_dir().join(format!("shifter-note-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = path_beside(&directory.join("shifter.sock"));
        assert_eq!(find_in(&path, "now", 7), None);
        let note = Note {
            boot_id: "now".into(),
            programs: vec![Noted {
                id: 7,
                name: "cil_from_netdev".into(),
                tag: "00ff".into(),
                installation: String::new(),
            }],
        };
        replace(&path, &note).unwrap();
        replace(&path, &note).unwrap();
        let found = find_in(&path, "now", 7).unwrap();
        assert_eq!((&*found.name, &*found.tag), ("cil_from_netdev", "00ff"));
        assert_eq!(find_in(&path, "now", 8), None);
        assert_eq!(find_in(&path, "another boot", 7), None);
        fs::write(&path, b"{\"boot_id\": 1").unwrap();
        assert_eq!(find_in(&path, "now", 7), None);
        fs::remove_dir_all(directory).unwrap();
    }
}
