//! Who the loaded programs are, noted by one who may ask for one who may not.
//!
//! The kernel names a program by its id to CAP_SYS_ADMIN only
//! (BPF_PROG_GET_FD_BY_ID). `shifter prepare` asks with it and writes a note;
//! an agent without it reads the note. An id names one program until the host
//! boots, so a note of this boot is never wrong, only short of later programs.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
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

/// Programs that this process has loaded itself: later than any note.
static OWN: Mutex<Vec<(u32, ProgramIdentity)>> = Mutex::new(Vec::new());

/// From now on this program is known, whatever the kernel tells.
pub(super) fn know(id: u32, identity: ProgramIdentity) {
    OWN.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((id, identity));
}

/// A program as noted; read anew each time, which is rare.
pub(super) fn find(id: u32) -> Option<ProgramIdentity> {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, identity)) = own.iter().find(|(known, _)| *known == id) {
        return Some(identity.clone());
    }
    drop(own);
    find_in(NOTE.get()?, &boot_id()?, id)
}

fn find_in(path: &Path, boot_id: &str, id: u32) -> Option<ProgramIdentity> {
    let note: Note = serde_json::from_slice(&read(path)?).ok()?;
    let found = note.programs.into_iter().find(|program| program.id == id)?;
    (note.boot_id == boot_id).then_some(ProgramIdentity {
        name: found.name,
        tag: found.tag,
        installation: found.installation,
    })
}

/// What is in the note, if nobody but root or this user can have written it.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut options = fs::OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options.read(true).custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    // SAFETY: takes nothing, touches no memory and cannot fail.
    let own = unsafe { libc::geteuid() };
    let is_ours = found.is_file() && [0, own].contains(&found.uid()) && found.mode() & 0o022 == 0;
    if !is_ours {
        tracing::warn!(path = %path.display(), "the note of programs is not root's own and is not read: run `shifter prepare`");
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
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
    use std::os::unix::fs::PermissionsExt as _;

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
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(
            find_in(&path, "now", 7),
            None,
            "anybody may have written it"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"{\"boot_id\": 1").unwrap();
        assert_eq!(find_in(&path, "now", 7), None);
        fs::remove_dir_all(directory).unwrap();
    }
}
