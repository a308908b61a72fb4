//! The store's file: made whole, watched while it is in use, and copied where
//! its disk cannot be written.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{StoreError, error::sql, schema};

/// What every SQLite database begins with.
const HEADER: &[u8; 16] = b"SQLite format 3\0";

/// Files of a database besides the main one.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The file of an open store.
pub(super) struct Place {
    path: PathBuf,
    /// Kept open: closing any descriptor of the file would give up the locks
    /// that SQLite holds on it (fcntl(2)).
    file: fs::File,
    /// The longest that the file was: SQLite never shortens it here.
    length: u64,
}

/// A further connection to the store's file, which does not move the log into it when it
/// closes. One that must not at a commit either sets `wal_autocheckpoint`.
pub(super) fn open_beside(
    path: &Path,
    patience: Duration,
    synchronous: &str,
) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(patience)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

impl Place {
    /// Opens the file to write. One that is not there is made; one that is
    /// no database stays as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        if !path.try_exists().map_err(failed)? {
            create(path)?;
        }
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).append(true).open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut place = Self {
            path: path.to_owned(),
            file,
            length,
        };
        // Before SQLite looks: beside an empty file it would delete a
        // write-ahead log from which all can be read.
        place.check().map_err(|error| match error {
            StoreError::Displaced { path, what } => StoreError::Damaged {
                path,
                why: format!("it {what}"),
            },
            error => error,
        })?;
        Ok(place)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Whether the file is still the one that was opened, and whole as far as
    /// a look at it tells.
    pub fn check(&mut self) -> Result<(), StoreError> {
        let displaced = |what| {
            Err(StoreError::Displaced {
                path: self.path.clone(),
                what,
            })
        };
        let (Ok(own), Ok(there)) = (self.file.metadata(), fs::metadata(&self.path)) else {
            return displaced("was removed");
        };
        if (own.dev(), own.ino()) != (there.dev(), there.ino()) {
            return displaced("was replaced");
        }
        if own.len() < self.length || own.len() == 0 {
            return displaced("was truncated");
        }
        let mut header = [0; HEADER.len()];
        match self.file.read_exact_at(&mut header, 0) {
            Ok(()) if header == *HEADER => {}
            _ => return displaced("was overwritten"),
        }
        self.length = own.len();
        Ok(())
    }
}

/// Makes a database with all its tables and gives it its name only then: a
/// crash leaves none, and not one that looks truncated.
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let new = with_suffix(path, ".new");
    for leftover in BESIDE
        .iter()
        .map(|suffix| with_suffix(&new, suffix))
        .chain([new.clone()])
    {
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let mut options = fs::OpenOptions::new();
    options.create_new(true).append(true).mode(0o600);
    options.open(&new).map_err(failed)?;
    let connection = Connection::open(&new).map_err(sql("making the file"))?;
    let connection = schema::prepare(connection, &new)?;
    connection
        .close()
        .map_err(|(_, error)| sql("closing the new file")(error))?;
    put_log_aside(path).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed)
}

/// Moves what is left beside a file that is gone out of the way of the one that
/// takes its name: SQLite would play another file's write-ahead log back into it.
fn put_log_aside(path: &Path) -> io::Result<()> {
    for suffix in BESIDE {
        let log = with_suffix(path, suffix);
        if log.try_exists()? {
            let aside = with_suffix(&log, ".old");
            fs::rename(&log, &aside)?;
            tracing::warn!(
                "{} belonged to another file: moved to {}",
                log.display(),
                aside.display()
            );
        }
    }
    Ok(())
}

/// A connection to a copy of the file and its write-ahead log; the copy has no
/// name any more. `None` where none could be made.
pub(super) fn copy(path: &Path) -> Option<Connection> {
    let places = [
        std::env::temp_dir(),
        "/dev/shm".into(),
        "/run/shifter".into(),
    ];
    places.iter().find_map(|place| copy_into(path, place))
}

fn copy_into(path: &Path, place: &Path) -> Option<Connection> {
    let directory = place.join(format!("shifter-store-{}", std::process::id()));
    // Made by this call and nobody else's: the file holds the seeds.
    fs::DirBuilder::new().mode(0o700).create(&directory).ok()?;
    let copied = directory.join(super::STORE_FILE);
    let opened = fs::copy(path, &copied)
        .and_then(|_| {
            let log = with_suffix(path, "-wal");
            if log.exists() {
                fs::copy(log, with_suffix(&copied, "-wal"))?;
            }
            Ok(())
        })
        .inspect_err(|error| tracing::debug!(%error, "copying the store failed"))
        .ok()
        .and_then(|()| Connection::open(&copied).ok())
        .and_then(|connection| schema::prepare(connection, &copied).ok());
    if let Err(error) = fs::remove_dir_all(&directory) {
        tracing::warn!(%error, path = %directory.display(), "removing the copy of the store failed");
    }
    opened
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
