//! The audit: who did what, why, and what came of it.

use rusqlite::{Transaction, params};

use super::{Store, StoreError, error::sql};

/// One write, as it came about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    pub at_unix_ms: i64,
    /// Who, and from where: "uid 0 pid 4242" at the agent's socket, or the part
    /// of the agent that wrote by itself.
    pub actor: String,
    /// As the client named its request; empty where it did not.
    pub request_id: String,
    pub service: String,
    pub action: String,
    pub reason: String,
    pub before: String,
    pub after: String,
    pub generation: u32,
}

/// A record with its number, which rises with every record whatever the clock says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recorded {
    pub number: u64,
    pub audit: Audit,
}

/// Which records to read, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuditQuery {
    /// Empty: of all services.
    pub service: String,
    /// Only those before this number; 0: from the newest on.
    pub before: u64,
    pub limit: u32,
}

impl Store {
    /// Audit records, newest first.
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<Recorded>, StoreError> {
        let error = sql("reading the audit");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT id, at_unix_ms, actor, request_id, service, action, reason, before, after,
                        generation
                 FROM audit
                 WHERE (?1 = '' OR service = ?1) AND (?2 = 0 OR id < ?2)
                 ORDER BY id DESC LIMIT ?3",
            )
            .map_err(&error)?;
        let before = i64::try_from(query.before).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![query.service, before, query.limit], |row| {
                let number: i64 = row.get(0)?;
                Ok(Recorded {
                    number: number.unsigned_abs(),
                    audit: Audit {
                        at_unix_ms: row.get(1)?,
                        actor: row.get(2)?,
                        request_id: row.get(3)?,
                        service: row.get(4)?,
                        action: row.get(5)?,
                        reason: row.get(6)?,
                        before: row.get(7)?,
                        after: row.get(8)?,
                        generation: row.get(9)?,
                    },
                })
            })
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }
}

pub(super) fn record(tx: &Transaction<'_>, audit: &Audit) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO audit (at_unix_ms, actor, request_id, service, action, reason, before, after,
                            generation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        audit.at_unix_ms,
        audit.actor,
        audit.request_id,
        audit.service,
        audit.action,
        audit.reason,
        audit.before,
        audit.after,
        audit.generation,
    ])
    .map(drop)
}
