//! Desired state, history and audit in SQLite (WAL, synchronous=FULL).
//!
//! One writer, the agent. Every write is one transaction; after `commit`
//! returns, it survives a power cut.

mod schema;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::model::{PoolName, ServiceSpec, Weight, file};

/// Name of the database in the state directory.
pub const STORE_FILE: &str = "shifter.db";
/// Splits kept per service for `rollback --to`.
pub const HISTORY_PER_SERVICE: u32 = 1_000;
/// Audit records kept.
pub const AUDIT_RECORDS: u32 = 100_000;

/// What the store failed at, and what would mend it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path} cannot be opened as the agent's store: {source}; the agent must be able to write there (state_dir in shifter.toml)", path = path.display())]
    Open {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is damaged or no store of shifter ({source}): move it away, start the agent and apply the services again; what the kernel does meanwhile goes on", path = path.display())]
    Damaged {
        path: PathBuf,
        source: rusqlite::Error,
    },
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
        "the store holds a service that cannot be read: {0}; move the file away and apply the services again"
    )]
    Content(String),
}

/// The dead-man as stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredDeadMan {
    pub safe_threshold: u64,
    /// Wall clock.
    pub deadline_unix_ms: i64,
    /// From arming to the deadline: it never lasts longer, whatever the wall clock says.
    pub after_ms: i64,
}

/// The last promote, as long as a rollback may undo it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promoted {
    /// The pool that was live before.
    pub former: PoolName,
    pub at_unix_ms: i64,
}

/// A service as stored.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredService {
    pub spec: ServiceSpec,
    pub generation: u32,
    pub dead_man: Option<StoredDeadMan>,
    pub promoted: Option<Promoted>,
}

/// What one service has become.
#[derive(Debug)]
pub struct Row<'a> {
    pub spec: &'a ServiceSpec,
    /// More than the split changed.
    pub whole: bool,
    pub generation: u32,
    pub dead_man: Option<StoredDeadMan>,
    pub promoted: Option<Promoted>,
}

/// Who did what, why, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    pub at_unix_ms: i64,
    pub actor: String,
    pub service: String,
    pub action: String,
    pub reason: String,
    pub before: String,
    pub after: String,
    pub generation: u32,
}

/// Everything that one write changes.
#[derive(Debug, Default)]
pub struct Commit<'a> {
    /// The host's generation counter.
    pub generation: u32,
    pub at_unix_ms: i64,
    pub rows: Vec<Row<'a>>,
    pub delete: Vec<&'a str>,
    pub audit: Vec<Audit>,
}

/// A write that may have reached the kernel; `None`: a deletion.
pub type Pending = (String, Option<ServiceSpec>);

/// What a start finds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Loaded {
    pub generation: u32,
    pub services: Vec<StoredService>,
    pub pending: Vec<Pending>,
}

/// The agent's store.
pub struct Store {
    connection: Connection,
}

fn sql(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { operation, source }
}

impl Store {
    /// Opens `shifter.db` in the state directory, which is made if absent
    /// (0700; the file 0600, because it holds the seeds).
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let path = state_dir.join(STORE_FILE);
        let opened = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .and_then(|()| {
                let mut options = std::fs::OpenOptions::new();
                options.create(true).append(true).mode(0o600).open(&path)
            });
        opened.map_err(|source| StoreError::Open {
            path: path.clone(),
            source,
        })?;
        let damaged = |source| StoreError::Damaged {
            path: path.clone(),
            source,
        };
        let connection = Connection::open(&path).map_err(damaged)?;
        schema::prepare(connection, &path).map(|connection| Self { connection })
    }

    /// A store that lasts as long as the process, for tests.
    pub fn in_memory() -> Result<Self, StoreError> {
        let connection = Connection::open_in_memory().map_err(sql("opening"))?;
        schema::prepare(connection, Path::new(":memory:")).map(|connection| Self { connection })
    }

    /// From now on every write fails (or not any more), as on a full disk.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), StoreError> {
        self.connection
            .pragma_update(None, "query_only", read_only)
            .map_err(sql("switching to read-only"))
    }

    /// Reads everything that a start needs.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let error = sql("reading the services");
        let generation = self
            .connection
            .query_row("SELECT generation FROM host", [], |row| row.get(0))
            .map_err(&error)?;
        let mut statement = self
            .connection
            .prepare(
                "SELECT spec, live, green, generation, safe_threshold, deadline_unix_ms, after_ms,
                        promoted_from, promoted_unix_ms FROM service ORDER BY name",
            )
            .map_err(&error)?;
        let mut rows = statement.query([]).map_err(&error)?;
        let mut services = Vec::new();
        while let Some(row) = rows.next().map_err(&error)? {
            services.push(stored_service(row).map_err(&error)??);
        }
        Ok(Loaded {
            generation,
            services,
            pending: self.pending()?,
        })
    }

    fn pending(&self) -> Result<Vec<Pending>, StoreError> {
        let rows = self.names_and_specs("SELECT name, spec FROM pending ORDER BY name")?;
        rows.into_iter()
            .map(|(name, spec)| Ok((name, spec.as_deref().map(read_spec).transpose()?)))
            .collect()
    }

    fn names_and_specs(&self, query: &str) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let error = sql("reading");
        let mut statement = self.connection.prepare(query).map_err(&error)?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }

    /// Notes a write that is about to reach the kernel; `commit` clears it.
    pub fn note_pending(
        &mut self,
        pending: &[(&str, Option<&ServiceSpec>)],
    ) -> Result<(), StoreError> {
        self.transact("noting a write", |tx| {
            tx.execute("DELETE FROM pending", [])?;
            let mut insert = tx.prepare_cached("INSERT INTO pending VALUES (?1, ?2)")?;
            for (name, spec) in pending {
                insert.execute(params![name, spec.map(file::spec_to_json)])?;
            }
            Ok(())
        })
    }

    /// Forgets a noted write that did not come about.
    pub fn clear_pending(&mut self) -> Result<(), StoreError> {
        self.transact("forgetting a write", |tx| {
            tx.execute("DELETE FROM pending", []).map(drop)
        })
    }

    /// Makes a write last.
    pub fn commit(&mut self, commit: &Commit<'_>) -> Result<(), StoreError> {
        self.transact("committing", |tx| {
            tx.prepare_cached("UPDATE host SET generation = max(generation, ?1)")?
                .execute([commit.generation])?;
            tx.prepare_cached("DELETE FROM pending")?.execute([])?;
            for row in &commit.rows {
                save(tx, row, commit.at_unix_ms)?;
            }
            for name in &commit.delete {
                tx.execute("DELETE FROM service WHERE name = ?1", [name])?;
                tx.execute("DELETE FROM history WHERE service = ?1", [name])?;
            }
            for audit in &commit.audit {
                record(tx, audit)?;
            }
            Ok(())
        })
    }

    fn transact(
        &mut self,
        operation: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let tx = self.connection.transaction().map_err(sql(operation))?;
        body(&tx).and_then(|()| tx.commit()).map_err(sql(operation))
    }

    /// The split of a service under a generation.
    pub fn split(
        &self,
        service: &str,
        generation: u32,
    ) -> Result<Option<(PoolName, Weight)>, StoreError> {
        let found: Option<(String, String)> = self
            .connection
            .query_row(
                "SELECT live, green FROM history WHERE service = ?1 AND generation = ?2",
                params![service, generation],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(sql("reading the history"))?;
        found
            .map(|(live, green)| Ok((read(&live)?, read(&green)?)))
            .transpose()
    }

    /// Up to four generations of a service nearest to one that is not known, rising.
    pub fn nearest_generations(
        &self,
        service: &str,
        generation: u32,
    ) -> Result<Vec<u32>, StoreError> {
        let error = sql("reading the history");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT generation FROM history WHERE service = ?1
                 ORDER BY abs(generation - ?2) LIMIT 4",
            )
            .map_err(&error)?;
        let rows = statement
            .query_map(params![service, generation], |row| row.get(0))
            .map_err(&error)?;
        let mut found: Vec<u32> = rows.collect::<Result<_, _>>().map_err(&error)?;
        found.sort_unstable();
        Ok(found)
    }

    /// Service values at the last load of the agent's file.
    pub fn file_values(&self) -> Result<Vec<ServiceSpec>, StoreError> {
        let rows = self.names_and_specs("SELECT name, spec FROM file_value")?;
        rows.into_iter()
            .filter_map(|(_, spec)| spec)
            .map(|spec| read_spec(&spec))
            .collect()
    }

    /// Replaces them.
    pub fn set_file_values(&mut self, specs: &[ServiceSpec]) -> Result<(), StoreError> {
        self.transact("keeping the file's values", |tx| {
            tx.execute("DELETE FROM file_value", [])?;
            let mut insert = tx.prepare("INSERT INTO file_value VALUES (?1, ?2)")?;
            for spec in specs {
                insert.execute(params![spec.name, file::spec_to_json(spec)])?;
            }
            Ok(())
        })
    }

    /// Newest audit records, newest first.
    pub fn audit(&self, limit: u32) -> Result<Vec<Audit>, StoreError> {
        let error = sql("reading the audit");
        let mut statement = self
            .connection
            .prepare(
                "SELECT at_unix_ms, actor, service, action, reason, before, after, generation
                 FROM audit ORDER BY id DESC LIMIT ?1",
            )
            .map_err(&error)?;
        let rows = statement
            .query_map([limit], |row| {
                Ok(Audit {
                    at_unix_ms: row.get(0)?,
                    actor: row.get(1)?,
                    service: row.get(2)?,
                    action: row.get(3)?,
                    reason: row.get(4)?,
                    before: row.get(5)?,
                    after: row.get(6)?,
                    generation: row.get(7)?,
                })
            })
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }

    /// Drops what is beyond [`HISTORY_PER_SERVICE`] and [`AUDIT_RECORDS`].
    pub fn prune(&mut self) -> Result<(), StoreError> {
        self.transact("pruning", |tx| {
            tx.execute(
                "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
                [AUDIT_RECORDS],
            )?;
            tx.execute(
                "DELETE FROM history WHERE (service, generation) IN (
                     SELECT service, generation FROM (
                         SELECT service, generation, row_number() OVER (
                             PARTITION BY service ORDER BY generation DESC) AS place
                         FROM history) WHERE place > ?1)",
                [HISTORY_PER_SERVICE],
            )?;
            Ok(())
        })
    }
}

fn save(tx: &Transaction<'_>, row: &Row<'_>, at_unix_ms: i64) -> rusqlite::Result<()> {
    let name = &row.spec.name;
    let (live, green) = (row.spec.live.to_string(), row.spec.green.to_string());
    if row.whole {
        tx.prepare_cached(
            "INSERT INTO service (name, spec, live, green, generation) VALUES (?1, ?2, '', '', 0)
             ON CONFLICT (name) DO UPDATE SET spec = excluded.spec",
        )?
        .execute(params![name, file::spec_to_json(row.spec)])?;
    }
    tx.prepare_cached(
        "UPDATE service SET live = ?2, green = ?3, generation = ?4, safe_threshold = ?5,
             deadline_unix_ms = ?6, after_ms = ?7, promoted_from = ?8, promoted_unix_ms = ?9
         WHERE name = ?1",
    )?
    .execute(params![
        name,
        live,
        green,
        row.generation,
        row.dead_man.map(|d| d.safe_threshold as i64),
        row.dead_man.map(|d| d.deadline_unix_ms),
        row.dead_man.map(|d| d.after_ms),
        row.promoted.map(|p| p.former.to_string()),
        row.promoted.map(|p| p.at_unix_ms),
    ])?;
    tx.prepare_cached("INSERT OR REPLACE INTO history VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![name, row.generation, live, green, at_unix_ms])?;
    Ok(())
}

fn record(tx: &Transaction<'_>, audit: &Audit) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO audit (at_unix_ms, actor, service, action, reason, before, after, generation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        audit.at_unix_ms,
        audit.actor,
        audit.service,
        audit.action,
        audit.reason,
        audit.before,
        audit.after,
        audit.generation,
    ])
    .map(drop)
}

fn stored_service(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<StoredService, StoreError>> {
    let (spec, live, green): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let generation = row.get(3)?;
    let dead_man: Option<(i64, i64, i64)> = match row.get(4)? {
        Some(safe) => Some((safe, row.get(5)?, row.get(6)?)),
        None => None,
    };
    let promoted: Option<(String, i64)> = match row.get(7)? {
        Some(from) => Some((from, row.get(8)?)),
        None => None,
    };
    let service = || -> Result<StoredService, StoreError> {
        let mut spec = read_spec(&spec)?;
        spec.live = read(&live)?;
        spec.green = read(&green)?;
        let former = |(former, at_unix_ms): (String, i64)| -> Result<Promoted, StoreError> {
            Ok(Promoted {
                former: read(&former)?,
                at_unix_ms,
            })
        };
        Ok(StoredService {
            spec,
            generation,
            dead_man: dead_man.map(|(safe, deadline_unix_ms, after_ms)| StoredDeadMan {
                safe_threshold: safe as u64,
                deadline_unix_ms,
                after_ms,
            }),
            promoted: promoted.map(former).transpose()?,
        })
    };
    Ok(service())
}

fn read_spec(text: &str) -> Result<ServiceSpec, StoreError> {
    file::spec_from_json(text).map_err(|error| StoreError::Content(error.to_string()))
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, StoreError> {
    text.parse()
        .map_err(|error: T::Err| StoreError::Content(error.to_string()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
