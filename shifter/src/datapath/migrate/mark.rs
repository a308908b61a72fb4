//! How far a migration has come, for the start that follows a kill: a directory
//! under the pins, whose name says it.

use std::{fs, io, path::PathBuf};

use super::open_map;
use crate::datapath::{
    DatapathError,
    load::{Pins, failed},
    memory::MappedArray,
};

/// In the order in which they come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// New programs are being attached; each flow is in the old table still. With
    /// a hash of the old maps' records: another agent would have changed them.
    Attaching(u32),
    /// Both tables hold flows.
    Moving(u32),
    /// All flows are in the table with this id.
    Moved(u32),
}

impl Mark {
    const fn parts(self) -> (&'static str, u32) {
        match self {
            Self::Attaching(records) => ("attaching", records),
            Self::Moving(records) => ("moving", records),
            Self::Moved(id) => ("moved", id),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let (word, number) = name.split_once('-')?;
        let number = number.parse().ok()?;
        match word {
            "attaching" => Some(Self::Attaching(number)),
            "moving" => Some(Self::Moving(number)),
            "moved" => Some(Self::Moved(number)),
            _ => None,
        }
    }

    /// What is there.
    pub fn read(pins: &Pins) -> Option<Self> {
        let entries = fs::read_dir(directory(pins)).ok()?;
        entries
            .flatten()
            .find_map(|entry| Self::parse(entry.file_name().to_str()?))
    }

    /// From now on it is this, and no other, at once.
    pub fn write(self, pins: &Pins) -> Result<(), DatapathError> {
        let path = |mark: Self| {
            let (word, number) = mark.parts();
            directory(pins).join(format!("{word}-{number}"))
        };
        let done = match Self::read(pins) {
            Some(before) if before == self => Ok(()),
            Some(before) => fs::rename(path(before), path(self)),
            None => fs::create_dir_all(path(self)),
        };
        done.map_err(|error| {
            let what = format!("noting {}", path(self).display());
            failed(what, error, "bpffs must be writable")
        })
    }

    /// Forgets it.
    pub fn clear(pins: &Pins) -> Result<(), DatapathError> {
        match fs::remove_dir_all(directory(pins)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let what = format!("removing {}", directory(pins).display());
                Err(failed(what, error, "bpffs must be writable"))
            }
            _ => Ok(()),
        }
    }
}

fn directory(pins: &Pins) -> PathBuf {
    pins.root().join("migration")
}

/// A hash of what the pinned maps say of services and backends. Another build reads
/// it, so it is one that never changes: FNV-1a, word by word.
pub fn records(pins: &Pins) -> Result<u32, DatapathError> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for name in ["SERVICE_HEAD", "BACKENDS"] {
        let path = pins.maps().join(name);
        let fail = |error: io::Error| failed(format!("reading {}", path.display()), error, "");
        let info =
            aya::maps::MapInfo::from_pin(&path).map_err(|error| fail(io::Error::other(error)))?;
        let words = info.max_entries() * info.value_size().next_multiple_of(8) / 8;
        let map = open_map(&path).map_err(fail)?;
        let mapped = MappedArray::<u64>::new(&map, words).map_err(fail)?;
        for word in 0..words {
            hash = (hash ^ mapped.read(word)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok((hash ^ hash >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_replaced_by_the_next_one_and_forgotten() {
        let root = std::env::temp_dir().join(format!("shifter-moves-{}", std::process::id()));
        let pins = Pins::new(&root);
        assert_eq!(Mark::read(&pins), None);
        for mark in [
            Mark::Attaching(7),
            Mark::Moving(7),
            Mark::Moved(4_000_000_000),
        ] {
            mark.write(&pins).unwrap();
            mark.write(&pins).unwrap();
            assert_eq!(Mark::read(&pins), Some(mark));
        }
        Mark::clear(&pins).unwrap();
        assert_eq!(Mark::read(&pins), None);
        fs::remove_dir_all(root).unwrap();
    }
}
