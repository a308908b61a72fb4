//! A service as the store has it: a row, and how it is written and read.

use rusqlite::{Transaction, params};

use super::StoreError;
use crate::model::{PoolName, ServiceSpec, file};

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
    /// Generation of the last write on it.
    pub written: u32,
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
    /// Of the last write on it, under which history has its split.
    pub written: u32,
    pub dead_man: Option<StoredDeadMan>,
    pub promoted: Option<Promoted>,
}

pub(super) fn save(tx: &Transaction<'_>, row: &Row<'_>, at_unix_ms: i64) -> rusqlite::Result<()> {
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
             deadline_unix_ms = ?6, after_ms = ?7, promoted_from = ?8, promoted_unix_ms = ?9,
             cohorts_on = ?10
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
        row.spec.cohorts_on,
    ])?;
    tx.prepare_cached("INSERT OR IGNORE INTO history VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![name, row.written, live, green, at_unix_ms])?;
    Ok(())
}

pub(super) fn stored_service(
    row: &rusqlite::Row<'_>,
) -> rusqlite::Result<Result<StoredService, StoreError>> {
    let (spec, live, green): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let generation = row.get(3)?;
    let written: Option<u32> = row.get(10)?;
    let dead_man: Option<(i64, i64, i64)> = match row.get(4)? {
        Some(safe) => Some((safe, row.get(5)?, row.get(6)?)),
        None => None,
    };
    let promoted: Option<(String, i64)> = match row.get(7)? {
        Some(from) => Some((from, row.get(8)?)),
        None => None,
    };
    let cohorts_on: bool = row.get(9)?;
    let service = || -> Result<StoredService, StoreError> {
        let mut spec = read_spec(&spec)?;
        spec.live = read(&live)?;
        spec.green = read(&green)?;
        spec.cohorts_on = cohorts_on;
        let former = |(former, at_unix_ms): (String, i64)| -> Result<Promoted, StoreError> {
            Ok(Promoted {
                former: read(&former)?,
                at_unix_ms,
            })
        };
        Ok(StoredService {
            spec,
            generation,
            written: written.unwrap_or(generation),
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

pub(super) fn read_spec(text: &str) -> Result<ServiceSpec, StoreError> {
    file::spec_from_json(text).map_err(|error| StoreError::Content(error.to_string()))
}

pub(super) fn read<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<T, StoreError> {
    text.parse()
        .map_err(|error: T::Err| StoreError::Content(error.to_string()))
}
