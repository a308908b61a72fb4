//! Rollouts in the store: what they are, where they are, and what was measured.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Store, StoreError, error::sql};
use crate::rollout::{Happened, Window, window};

/// Ended rollouts kept a service.
const KEPT: u32 = 200;
/// Those of them whose windows are kept, to be judged again.
const KEPT_WINDOWS: u32 = 20;

/// Outcome of a rollout that could not go on after a start.
pub const ROLLOUT_LOST: &str = "lost";

/// A rollout that begins.
#[derive(Clone, PartialEq, Debug)]
pub struct NewRollout<'a> {
    pub service: &'a str,
    /// JSON, as it was described.
    pub spec: &'a str,
    pub plan: &'a str,
    pub state: &'a str,
    pub actor: &'a str,
    pub reason: &'a str,
    pub at_unix_ms: i64,
}

/// A rollout as stored.
#[derive(Clone, PartialEq, Debug)]
pub struct RolloutRow {
    pub id: u64,
    pub service: String,
    pub spec: String,
    pub plan: String,
    pub state: String,
    pub actor: String,
    pub reason: String,
    pub began_unix_ms: i64,
    pub ended_unix_ms: Option<i64>,
    pub outcome: Option<String>,
    /// Number of the newest audit record when the state was stored.
    pub audit_mark: u64,
    pub report: Option<String>,
}

/// What of a report counts over all rollouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    /// Flows that shifter cut.
    pub cut: u64,
    /// New flows of both pools that failed for their users.
    pub failed: u64,
    /// From the decision to the kernel.
    pub rollback_ns: Option<u64>,
}

/// Figures over all rollouts that are over and still kept.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RolloutFigures {
    /// How many ended so, by outcome.
    pub outcomes: Vec<(String, u64)>,
    /// Rollouts with a report…
    pub reported: u64,
    /// …and those of them in which shifter cut nothing and no new flow failed.
    pub without_interruption: u64,
    /// Mean time from the decision to the kernel, in ns.
    pub rollback_mean_ns: Option<f64>,
}

/// A move of a rollout.
#[derive(Debug)]
pub struct Progress<'a> {
    pub id: u64,
    pub state: &'a str,
    pub at_unix_ms: i64,
    /// One word, once it is over.
    pub outcome: Option<&'a str>,
    pub notes: &'a [Happened],
    pub windows: &'a [Window],
}

/// A service that refuses writes; the name `*` stands for all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frozen {
    pub service: String,
    pub at_unix_ms: i64,
    pub actor: String,
    pub reason: String,
}

const COLUMNS: &str = "id, service, spec, plan, state, actor, reason, began_unix_ms,
    ended_unix_ms, outcome, audit_mark, report";

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<RolloutRow> {
    Ok(RolloutRow {
        id: row.get::<_, i64>(0)? as u64,
        service: row.get(1)?,
        spec: row.get(2)?,
        plan: row.get(3)?,
        state: row.get(4)?,
        actor: row.get(5)?,
        reason: row.get(6)?,
        began_unix_ms: row.get(7)?,
        ended_unix_ms: row.get(8)?,
        outcome: row.get(9)?,
        audit_mark: row.get::<_, i64>(10)? as u64,
        report: row.get(11)?,
    })
}

impl Store {
    /// Stores a new rollout and gives its number.
    pub fn begin_rollout(&mut self, new: &NewRollout<'_>) -> Result<u64, StoreError> {
        let mut id = 0;
        self.transact("beginning a rollout", |tx| {
            tx.execute(
                "INSERT INTO rollout (service, spec, plan, state, actor, reason, began_unix_ms, audit_mark)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, (SELECT ifnull(max(id), 0) FROM audit))",
                params![
                    new.service,
                    new.spec,
                    new.plan,
                    new.state,
                    new.actor,
                    new.reason,
                    new.at_unix_ms
                ],
            )?;
            id = tx.last_insert_rowid() as u64;
            Ok(())
        })?;
        Ok(id)
    }

    /// Stores where a rollout is now.
    pub fn move_rollout(&mut self, progress: &Progress<'_>) -> Result<(), StoreError> {
        self.transact("storing where a rollout is", |tx| {
            let id = progress.id as i64;
            tx.prepare_cached(
                "UPDATE rollout SET state = ?2, outcome = ?3,
                     audit_mark = (SELECT ifnull(max(id), 0) FROM audit),
                     ended_unix_ms = CASE WHEN ?3 IS NULL THEN NULL ELSE ?4 END
                 WHERE id = ?1",
            )?
            .execute(params![
                id,
                progress.state,
                progress.outcome,
                progress.at_unix_ms
            ])?;
            insert_notes(tx, id, progress.notes)?;
            insert_windows(tx, id, progress.windows)
        })
    }

    /// Keeps the report of a rollout that is over.
    pub fn set_report(&mut self, id: u64, report: &str, ended: Ended) -> Result<(), StoreError> {
        self.transact("keeping a report", |tx| {
            tx.execute(
                "UPDATE rollout SET report = ?2, cut = ?3, failed = ?4, rollback_ns = ?5
                 WHERE id = ?1",
                params![
                    id as i64,
                    report,
                    ended.cut as i64,
                    ended.failed as i64,
                    ended.rollback_ns.map(|ns| ns as i64),
                ],
            )
            .map(drop)
        })
    }

    /// Rollouts that are not over or have no report yet, oldest first.
    pub fn open_rollouts(&self) -> Result<Vec<RolloutRow>, StoreError> {
        self.rollout_rows(
            "WHERE report IS NULL AND ifnull(outcome, '') <> 'lost' ORDER BY id",
            "",
            1_000_000,
        )
    }

    /// Closes a rollout that cannot go on and will have no report.
    pub fn lose_rollout(&mut self, id: u64, at_unix_ms: i64) -> Result<(), StoreError> {
        self.transact("closing a rollout", |tx| {
            tx.execute(
                "UPDATE rollout SET outcome = ?2, ended_unix_ms = ifnull(ended_unix_ms, ?3)
                 WHERE id = ?1",
                params![id as i64, ROLLOUT_LOST, at_unix_ms],
            )
            .map(drop)
        })
    }

    /// Rollouts of a service, or of all where the name is empty; newest first.
    pub fn rollouts(&self, service: &str, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
        self.rollout_rows(
            "WHERE (?1 = '' OR service = ?1) ORDER BY id DESC",
            service,
            limit,
        )
    }

    /// One rollout by its number.
    pub fn rollout(&self, id: u64) -> Result<Option<RolloutRow>, StoreError> {
        self.connection
            .query_row(
                &format!("SELECT {COLUMNS} FROM rollout WHERE id = ?1"),
                [id as i64],
                row,
            )
            .optional()
            .map_err(sql("reading a rollout"))
    }

    fn rollout_rows(
        &self,
        which: &str,
        service: &str,
        limit: u32,
    ) -> Result<Vec<RolloutRow>, StoreError> {
        let error = sql("reading the rollouts");
        let query = format!("SELECT {COLUMNS} FROM rollout {which} LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&query).map_err(&error)?;
        // A query that names no service still takes the parameter.
        let rows = statement
            .query_map(rusqlite::params![service, limit], row)
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }

    /// What happened in a rollout, oldest first, at most the newest `limit`.
    pub fn rollout_notes(&self, id: u64, limit: u32) -> Result<Vec<Happened>, StoreError> {
        let error = sql("reading what happened in a rollout");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT at_unix_ms, kind, text FROM rollout_note WHERE rollout = ?1
                 ORDER BY id DESC LIMIT ?2",
            )
            .map_err(&error)?;
        let rows = statement
            .query_map(params![id as i64, limit], |row| {
                Ok(Happened {
                    at_unix_ms: row.get(0)?,
                    kind: row.get(1)?,
                    text: row.get(2)?,
                })
            })
            .map_err(&error)?;
        let mut notes: Vec<Happened> = rows.collect::<Result<_, _>>().map_err(&error)?;
        notes.reverse();
        Ok(notes)
    }

    /// What was measured in a rollout, oldest first.
    pub fn rollout_windows(&self, id: u64) -> Result<Vec<Window>, StoreError> {
        self.windows(id, None)
    }

    /// The same for one of its steps.
    pub fn rollout_windows_of(&self, id: u64, step: usize) -> Result<Vec<Window>, StoreError> {
        self.windows(id, Some(step as i64))
    }

    fn windows(&self, id: u64, step: Option<i64>) -> Result<Vec<Window>, StoreError> {
        let error = sql("reading what was measured in a rollout");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT at_unix_ms, ms, step, weight, blue, green, flows_blue, flows_green
                 FROM rollout_window WHERE rollout = ?1 AND step = ifnull(?2, step)
                 ORDER BY at_unix_ms",
            )
            .map_err(&error)?;
        let signals = |text: String| {
            let json = serde_json::from_str(&text).unwrap_or_default();
            window::read(&json)
        };
        let rows = statement
            .query_map(params![id as i64, step], |row| {
                Ok(Window {
                    at_unix_ms: row.get(0)?,
                    ms: row.get::<_, i64>(1)? as u64,
                    step: row.get::<_, i64>(2)? as usize,
                    weight: row.get(3)?,
                    signals: [signals(row.get(4)?), signals(row.get(5)?)],
                    flows: [row.get::<_, i64>(6)? as u64, row.get::<_, i64>(7)? as u64],
                })
            })
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }

    /// Figures over all rollouts that are over.
    pub fn rollout_figures(&self) -> Result<RolloutFigures, StoreError> {
        let error = sql("counting rollouts");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT outcome, count(*) FROM rollout WHERE outcome IS NOT NULL GROUP BY outcome",
            )
            .map_err(&error)?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))
            .map_err(&error)?;
        let outcomes = rows.collect::<Result<_, _>>().map_err(&error)?;
        let (reported, without, mean): (i64, i64, Option<f64>) = self
            .connection
            .query_row(
                "SELECT count(*), ifnull(sum(cut = 0 AND failed = 0), 0), avg(rollback_ns)
                 FROM rollout WHERE report IS NOT NULL",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .map_err(&error)?;
        Ok(RolloutFigures {
            outcomes,
            reported: reported as u64,
            without_interruption: without as u64,
            rollback_mean_ns: mean,
        })
    }

    /// Services that refuse writes.
    pub fn frozen(&self) -> Result<Vec<Frozen>, StoreError> {
        let error = sql("reading what is frozen");
        let mut statement = self
            .connection
            .prepare("SELECT service, at_unix_ms, actor, reason FROM frozen ORDER BY service")
            .map_err(&error)?;
        let rows = statement
            .query_map([], |row| {
                Ok(Frozen {
                    service: row.get(0)?,
                    at_unix_ms: row.get(1)?,
                    actor: row.get(2)?,
                    reason: row.get(3)?,
                })
            })
            .map_err(&error)?;
        rows.collect::<Result<_, _>>().map_err(&error)
    }

    /// Freezes a service, or all.
    pub fn freeze(&mut self, frozen: &Frozen) -> Result<(), StoreError> {
        self.transact("freezing", |tx| {
            tx.execute(
                "INSERT OR REPLACE INTO frozen VALUES (?1, ?2, ?3, ?4)",
                params![
                    frozen.service,
                    frozen.at_unix_ms,
                    frozen.actor,
                    frozen.reason
                ],
            )
            .map(drop)
        })
    }

    /// Lets writes through again.
    pub fn unfreeze(&mut self, service: &str) -> Result<(), StoreError> {
        self.transact("unfreezing", |tx| {
            tx.execute("DELETE FROM frozen WHERE service = ?1", [service])
                .map(drop)
        })
    }
}

/// Stores what happened in a rollout.
pub(super) fn insert_notes(
    tx: &Transaction<'_>,
    id: i64,
    notes: &[Happened],
) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO rollout_note (rollout, at_unix_ms, kind, text) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for note in notes {
        insert.execute(params![id, note.at_unix_ms, note.kind, note.text])?;
    }
    Ok(())
}

/// Stores windows of a rollout.
pub(super) fn insert_windows(
    tx: &Transaction<'_>,
    id: i64,
    windows: &[Window],
) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO rollout_window VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for it in windows {
        let [blue, green] = it.signals.each_ref().map(|s| window::write(s).to_string());
        insert.execute(params![
            id,
            it.at_unix_ms,
            it.ms as i64,
            it.step as i64,
            it.weight,
            blue,
            green,
            it.flows[0] as i64,
            it.flows[1] as i64,
        ])?;
    }
    Ok(())
}

/// Drops rollouts and windows beyond what is kept a service.
pub(super) fn prune(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let beyond = "SELECT id FROM (SELECT id, row_number() OVER (
            PARTITION BY service ORDER BY id DESC) AS place
        FROM rollout WHERE ended_unix_ms IS NOT NULL) WHERE place > ?1";
    let old_windows = format!("DELETE FROM rollout_window WHERE rollout IN ({beyond})");
    tx.execute(&old_windows, [KEPT_WINDOWS])?;
    let old_notes = format!("DELETE FROM rollout_note WHERE rollout IN ({beyond})");
    tx.execute(&old_notes, [KEPT])?;
    let old = format!("DELETE FROM rollout WHERE id IN ({beyond})");
    tx.execute(&old, [KEPT])?;
    Ok(())
}
