//! What the store fails at.

use std::path::PathBuf;

use rusqlite::ErrorCode;

/// What the store failed at, and what would mend it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path} cannot be opened as the agent's store: {source}; the agent must be able to write there (state_dir in shifter.toml)", path = path.display())]
    Open {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is damaged or no store of shifter ({why}): move it away with what lies beside it (-wal, -shm), start the agent and apply the services again; what the kernel does meanwhile goes on", path = path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{path} was written by a newer shifter (format {found}, this one knows {known}): start that one, or move the file away and apply the services again", path = path.display())]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error(
        "{operation} in the store failed: {source}; is the disk of the state directory full or read-only?"
    )]
    Sql {
        operation: &'static str,
        source: rusqlite::Error,
    },
    #[error(
        "{operation} in the store failed, because its file is damaged ({source}): stop the agent, move the file away with what lies beside it (-wal, -shm), start it and apply the services again; what the kernel does meanwhile goes on"
    )]
    Broken {
        operation: &'static str,
        source: rusqlite::Error,
    },
    #[error("{path} {what} while the agent ran: put it back as it was, or start the agent anew; what the kernel does meanwhile goes on", path = path.display())]
    Displaced { path: PathBuf, what: &'static str },
    #[error(
        "the agent runs without a store that it can write: {why}. Until that is mended and the agent started again, a rollback is all that changes anything"
    )]
    Refused { why: String },
    #[error(
        "the store holds a service that cannot be read: {0}; move the file away and apply the services again"
    )]
    Content(String),
}

impl StoreError {
    /// Whether the disk is at fault, and not what is on it: a copy of the file
    /// elsewhere can be read.
    pub(super) fn is_of_disk(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Sql { .. })
    }

    /// Whether the same write will fail again until somebody mends the file.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::Displaced { .. } | Self::Broken { .. }
        )
    }
}

/// A failed statement, by what SQLite says of the file.
pub(super) fn sql(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Broken { operation, source }
        }
        _ => StoreError::Sql { operation, source },
    }
}
