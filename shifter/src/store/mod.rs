//! Desired state, history and audit in SQLite (WAL, synchronous=FULL).
//!
//! One writer, the agent. Every write is one transaction; after `commit`
//! returns, it survives a power cut.

mod audit;
mod cut;
mod error;
mod event;
mod measured;
mod place;
mod rollout;
mod schema;
mod service;

use std::{path::Path, sync::Arc};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Transaction, config::DbConfig, params,
};

use crate::{
    fault,
    model::{PoolName, ServiceSpec, Weight, file},
};
pub use audit::{Audit, AuditQuery, Recorded};
pub use cut::{Cut, CutCause, CutKey};
pub use error::StoreError;
use error::sql;
pub use event::{Event, EventFile, EventQuery, EventQueue, Events};
pub use measured::{Beside, Measured};
use place::Place;
pub use rollout::{Ended, Frozen, NewRollout, Progress, ROLLOUT_LOST, RolloutFigures, RolloutRow};
pub use service::{Promoted, Row, StoredDeadMan, StoredService};
use service::{read, read_spec, save, stored_service};

/// Name of the database in the state directory.
pub const STORE_FILE: &str = "shifter.db";
/// Splits kept per service for `rollback --to`.
pub const HISTORY_PER_SERVICE: u32 = 1_000;
/// Audit records kept.
pub const AUDIT_RECORDS: u32 = 100_000;

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
    /// For what rollouts measure. None of a store in memory or one that is refused.
    beside: Option<Beside>,
    /// None of a store in memory.
    place: Option<Place>,
    /// Why nothing is written before the agent is started again.
    refused: Option<String>,
    /// Why the last write failed.
    failing: Option<String>,
    /// Events that the next write takes along.
    events: Arc<EventQueue>,
}

impl Store {
    /// Opens `shifter.db` in the state directory, which is made if absent
    /// (0700; the file 0600, because it holds the seeds). A file that is
    /// damaged stays as it is.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(STORE_FILE);
        let place = Place::open(&path)?;
        let opening = sql("opening");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(&opening)?;
        // The log is moved into the file at the end: not into a damaged one.
        let keep_log = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(keep_log, true).map_err(&opening)?;
        let connection = schema::prepare(connection, &path)?;
        connection
            .set_db_config(keep_log, false)
            .map_err(&opening)?;
        let mut store = Self::over(connection, Some(place));
        store.beside = Some(Beside::open(&path)?);
        Ok(store)
    }

    /// As [`Store::open`]; where that fails, a store that refuses every write
    /// and says why. It holds what a copy of the file tells where only the disk
    /// is at fault, and nothing otherwise.
    pub fn open_or_refuse(state_dir: &Path) -> Result<Self, StoreError> {
        let error = match Self::open(state_dir) {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        let copied = error
            .is_of_disk()
            .then(|| place::copy(&state_dir.join(STORE_FILE)))
            .flatten();
        let mut store = match copied {
            Some(connection) => Self::over(connection, None),
            None => Self::in_memory()?,
        };
        store.refuse(error.to_string());
        Ok(store)
    }

    /// A store that lasts as long as the process, for tests.
    pub fn in_memory() -> Result<Self, StoreError> {
        let connection = Connection::open_in_memory().map_err(sql("opening"))?;
        let connection = schema::prepare(connection, Path::new(":memory:"))?;
        Ok(Self::over(connection, None))
    }

    fn over(connection: Connection, place: Option<Place>) -> Self {
        Self {
            connection,
            beside: None,
            place,
            refused: None,
            failing: None,
            events: Arc::default(),
        }
    }

    /// From now on every write is refused, for this reason.
    pub fn refuse(&mut self, why: String) {
        tracing::error!(why, "the agent runs without its store");
        self.keep_log(true);
        self.beside = None;
        self.refused = Some(why);
    }

    /// Why writes are refused until the agent is started again.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What is wrong with the store, if anything is known to be.
    pub fn problem(&self) -> Option<&str> {
        self.refused.as_deref().or(self.failing.as_deref())
    }

    /// Whether a write can be tried. Costs a look at the file.
    pub fn check(&mut self) -> Result<(), StoreError> {
        let checked = match (&self.refused, &mut self.place) {
            (Some(why), _) => Err(StoreError::Refused { why: why.clone() }),
            (None, Some(place)) => place.check(),
            (None, None) => Ok(()),
        };
        if let Err(error) = &checked {
            self.keep_log(true);
            self.failing = Some(error.to_string());
        }
        checked
    }

    /// Leaves the write-ahead log beside a file that shall not be touched, or
    /// moves it in at the end.
    fn keep_log(&self, keep: bool) {
        let set = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep);
        if let Err(error) = set {
            tracing::warn!(%error, "keeping the store's log apart failed");
        }
    }

    /// Tries again what failed; the agent calls it now and then while something is wrong.
    pub fn probe(&mut self) -> Result<(), StoreError> {
        self.transact("trying to write", |tx| {
            tx.execute("UPDATE host SET generation = generation", [])
                .map(drop)
        })
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
                        promoted_from, promoted_unix_ms, cohorts_on,
                        (SELECT max(generation) FROM history WHERE service = service.name)
                 FROM service ORDER BY name",
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
        })?;
        fault::point("pending");
        Ok(())
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
                tx.execute("DELETE FROM frozen WHERE service = ?1", [name])?;
                cut::forget_all(tx, name)?;
            }
            for audit in &commit.audit {
                audit::record(tx, audit)?;
            }
            fault::point("commit");
            Ok(())
        })?;
        fault::point("committed");
        Ok(())
    }

    fn transact(
        &mut self,
        operation: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        self.check()?;
        let beside = self.beside.clone();
        let _turn = beside.as_ref().map(Beside::turn);
        // They happened before what is written now; in a turn, so that none overtakes another.
        let told = self.events.take_along();
        let done = self
            .connection
            .transaction()
            .and_then(|tx| {
                event::insert(&tx, &told)?;
                body(&tx)?;
                tx.commit()
            })
            .map_err(sql(operation));
        match &done {
            Ok(()) => self.events.note_stored(),
            Err(_) => self.events.give_back(told),
        }
        if done.is_ok() && self.failing.is_some() {
            self.keep_log(false);
        }
        self.failing = done.as_ref().err().map(StoreError::to_string);
        done
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
            rollout::prune(tx)?;
            event::prune(tx)?;
            Ok(())
        })
    }
}

impl Drop for Store {
    /// What went bad since the last look is not written to at the end either.
    fn drop(&mut self) {
        // The last connection to be closed moves the log into the file.
        self.beside = None;
        if self.check().is_err() {
            tracing::debug!("the store's log stays beside its file");
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
