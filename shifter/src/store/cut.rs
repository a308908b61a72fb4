//! Cuts under way: flows that somebody has asked to be ended.

use std::net::SocketAddr;

use rusqlite::{Transaction, params};

use super::{Beside, Store, StoreError, error::sql};
use crate::model::{CutRate, PoolName};

/// What a cut belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CutCause {
    /// A rollback: the flows of the pool that is the candidate now.
    Rollback,
    /// A drain whose deadline is over.
    Drain,
    /// Backends that are down; never stored.
    Down,
}

impl CutCause {
    /// "rollback", "drain" or "down".
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Drain => "drain",
            Self::Down => "down",
        }
    }
}

/// What tells one cut from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CutKey {
    pub service: String,
    pub cause: CutCause,
    /// `None`: of both pools.
    pub pool: Option<PoolName>,
    /// `None`: all of the pool.
    pub backend: Option<SocketAddr>,
}

/// One cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    pub key: CutKey,
    pub rate: CutRate,
    /// Flows chosen under a generation before this one.
    pub before: u32,
    /// By the wall clock; it begins then.
    pub due_unix_ms: i64,
    pub actor: String,
    pub reason: String,
    /// Flows ended so far.
    pub ended: u64,
}

impl Store {
    /// Cuts under way, and those that wait for their time.
    pub fn cuts(&self) -> Result<Vec<Cut>, StoreError> {
        let error = sql("reading the cuts");
        let mut statement = self
            .connection
            .prepare(
                "SELECT service, cause, pool, backend, per_second, before, due_unix_ms, actor,
                        reason, ended
                 FROM cut ORDER BY service, cause, pool, backend",
            )
            .map_err(&error)?;
        let rows = statement
            .query_map([], |row| Ok(read(row)))
            .map_err(&error)?;
        let mut cuts = Vec::new();
        for row in rows {
            let cut = row.map_err(&error)?.map_err(&error)?;
            cuts.push(cut.map_err(StoreError::Content)?);
        }
        Ok(cuts)
    }

    /// Keeps a cut, in place of one with the same key.
    pub fn keep_cut(&mut self, cut: &Cut) -> Result<(), StoreError> {
        let (pool, backend) = words(&cut.key);
        self.transact("keeping a cut", |tx| {
            tx.execute(
                "INSERT OR REPLACE INTO cut VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    cut.key.service,
                    cut.key.cause.word(),
                    pool,
                    backend,
                    cut.rate.get(),
                    cut.before,
                    cut.due_unix_ms,
                    cut.actor,
                    cut.reason,
                    cut.ended as i64,
                ],
            )
            .map(drop)
        })
    }

    /// Forgets a cut that is over.
    pub fn forget_cut(&mut self, key: &CutKey) -> Result<(), StoreError> {
        let (pool, backend) = words(key);
        self.transact("forgetting a cut", |tx| {
            tx.execute(
                "DELETE FROM cut WHERE service = ?1 AND cause = ?2 AND pool = ?3 AND backend = ?4",
                params![key.service, key.cause.word(), pool, backend],
            )
            .map(drop)
        })
    }
}

impl Beside {
    /// How many flows a cut has ended; of one that is forgotten meanwhile nothing.
    pub fn count_cut(&self, key: &CutKey, ended: u64) -> Result<(), StoreError> {
        let (pool, backend) = words(key);
        self.turn()
            .execute(
                "UPDATE cut SET ended = ?5
                 WHERE service = ?1 AND cause = ?2 AND pool = ?3 AND backend = ?4",
                params![key.service, key.cause.word(), pool, backend, ended as i64],
            )
            .map(drop)
            .map_err(sql("storing how many flows were ended"))
    }
}

/// Forgets those of a service that is deleted.
pub(super) fn forget_all(tx: &Transaction<'_>, service: &str) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM cut WHERE service = ?1", [service])
        .map(drop)
}

fn words(key: &CutKey) -> (String, String) {
    (
        key.pool.map_or(String::new(), |pool| pool.to_string()),
        key.backend.map_or(String::new(), |addr| addr.to_string()),
    )
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Cut, String>> {
    let (cause, pool, backend): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
    let (service, rate, before): (_, u32, u32) = (row.get(0)?, row.get(4)?, row.get(5)?);
    let (due_unix_ms, actor, reason) = (row.get(6)?, row.get(7)?, row.get(8)?);
    let ended = row.get::<_, i64>(9)?.unsigned_abs();
    let cut = || -> Result<Cut, String> {
        let cause = match cause.as_str() {
            "rollback" => CutCause::Rollback,
            "drain" => CutCause::Drain,
            other => return Err(format!("a cut for {other:?} is unknown")),
        };
        let key = CutKey {
            service,
            cause,
            pool: known(&pool)?,
            backend: known(&backend)?,
        };
        let rate = CutRate::per_second(rate).map_err(|error| error.to_string())?;
        Ok(Cut {
            key,
            rate,
            before,
            due_unix_ms,
            actor,
            reason,
            ended,
        })
    };
    Ok(cut())
}

/// Of an empty text none.
fn known<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Option<T>, String> {
    match text {
        "" => Ok(None),
        text => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pool: Option<PoolName>, backend: Option<&str>) -> Cut {
        Cut {
            key: CutKey {
                service: "web".into(),
                cause: CutCause::Drain,
                pool,
                backend: backend.map(|addr| addr.parse().unwrap()),
            },
            rate: CutRate::per_second(50).unwrap(),
            before: 7,
            due_unix_ms: 9,
            actor: "uid 0".into(),
            reason: "why".into(),
            ended: 3,
        }
    }

    #[test]
    fn cuts_are_kept_replaced_and_forgotten_one_by_one() {
        let mut store = Store::in_memory().unwrap();
        let whole = cut(None, None);
        let one = cut(Some(PoolName::Green), Some("[2001:db8::1]:80"));
        store.keep_cut(&whole).unwrap();
        store.keep_cut(&one).unwrap();
        assert_eq!(store.cuts().unwrap(), [whole.clone(), one.clone()]);
        let more = Cut { ended: 4, ..one };
        store.keep_cut(&more).unwrap();
        store.forget_cut(&whole.key).unwrap();
        assert_eq!(store.cuts().unwrap(), [more]);
    }
}
