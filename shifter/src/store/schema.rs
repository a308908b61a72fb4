//! The tables, and how an older file is brought up to them.

use std::{path::Path, time::Duration};

use rusqlite::Connection;

use super::{StoreError, error::sql};

/// Each entry brings a file from the version of its index to the next; an
/// entry that was released is never changed.
const MIGRATIONS: [&str; 6] = [
    "
    CREATE TABLE host (generation INTEGER NOT NULL);
    INSERT INTO host VALUES (0);
    CREATE TABLE service (
        name TEXT PRIMARY KEY,
        spec TEXT NOT NULL,
        live TEXT NOT NULL,
        green TEXT NOT NULL,
        generation INTEGER NOT NULL,
        safe_threshold INTEGER,
        deadline_unix_ms INTEGER,
        after_ms INTEGER,
        promoted_from TEXT,
        promoted_unix_ms INTEGER
    ) STRICT;
    CREATE TABLE history (
        service TEXT NOT NULL,
        generation INTEGER NOT NULL,
        live TEXT NOT NULL,
        green TEXT NOT NULL,
        at_unix_ms INTEGER NOT NULL,
        PRIMARY KEY (service, generation)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pending (name TEXT PRIMARY KEY, spec TEXT) STRICT;
    CREATE TABLE file_value (name TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        at_unix_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        service TEXT NOT NULL,
        action TEXT NOT NULL,
        reason TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        generation INTEGER NOT NULL
    ) STRICT;
",
    "ALTER TABLE audit ADD COLUMN request_id TEXT NOT NULL DEFAULT '';",
    "ALTER TABLE service ADD COLUMN cohorts_on INTEGER NOT NULL DEFAULT 1;",
    "
    CREATE TABLE rollout (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        service TEXT NOT NULL,
        spec TEXT NOT NULL,
        plan TEXT NOT NULL,
        state TEXT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        began_unix_ms INTEGER NOT NULL,
        ended_unix_ms INTEGER,
        outcome TEXT,
        audit_mark INTEGER NOT NULL,
        report TEXT,
        cut INTEGER,
        failed INTEGER,
        rollback_ns INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX rollout_open ON rollout (service) WHERE ended_unix_ms IS NULL;
    CREATE INDEX rollout_service ON rollout (service, id);
    CREATE TABLE rollout_note (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        rollout INTEGER NOT NULL,
        at_unix_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX rollout_note_of ON rollout_note (rollout, id);
    CREATE TABLE rollout_window (
        rollout INTEGER NOT NULL,
        at_unix_ms INTEGER NOT NULL,
        ms INTEGER NOT NULL,
        step INTEGER NOT NULL,
        weight TEXT NOT NULL,
        blue TEXT NOT NULL,
        green TEXT NOT NULL,
        flows_blue INTEGER NOT NULL,
        flows_green INTEGER NOT NULL,
        PRIMARY KEY (rollout, at_unix_ms)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE frozen (
        service TEXT PRIMARY KEY,
        at_unix_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
",
    // An event is a record of the audit, a note of a rollout, or has words of its own.
    "
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_unix_ms INTEGER NOT NULL,
        service TEXT NOT NULL,
        audit INTEGER,
        note INTEGER,
        kind TEXT,
        what TEXT,
        text TEXT
    ) STRICT;
    CREATE INDEX event_service ON event (service, id);
    CREATE INDEX event_audit ON event (audit) WHERE audit IS NOT NULL;
    CREATE INDEX event_note ON event (note) WHERE note IS NOT NULL;
    INSERT INTO event (at_unix_ms, service, audit, note)
        SELECT at_unix_ms, service, audit, note FROM (
            SELECT at_unix_ms, service, id AS audit, NULL AS note FROM audit
            UNION ALL
            SELECT n.at_unix_ms, r.service, NULL, n.id
            FROM rollout_note n JOIN rollout r ON r.id = n.rollout)
        ORDER BY at_unix_ms, audit, note;
    CREATE TRIGGER event_of_audit AFTER INSERT ON audit BEGIN
        INSERT INTO event (at_unix_ms, service, audit) VALUES (NEW.at_unix_ms, NEW.service, NEW.id);
    END;
    CREATE TRIGGER event_of_note AFTER INSERT ON rollout_note BEGIN
        INSERT INTO event (at_unix_ms, service, note)
        SELECT NEW.at_unix_ms, service, NEW.id FROM rollout WHERE id = NEW.rollout;
    END;
    CREATE TRIGGER event_without_audit AFTER DELETE ON audit BEGIN
        DELETE FROM event WHERE audit = OLD.id;
    END;
    CREATE TRIGGER event_without_note AFTER DELETE ON rollout_note BEGIN
        DELETE FROM event WHERE note = OLD.id;
    END;
    -- The last number that is missing in the list.
    CREATE TABLE event_dropped (id INTEGER NOT NULL) STRICT;
    INSERT INTO event_dropped VALUES (0);
    CREATE TRIGGER event_is_dropped AFTER DELETE ON event BEGIN
        UPDATE event_dropped SET id = max(id, OLD.id);
    END;
",
    "
    CREATE TABLE cut (
        service TEXT NOT NULL,
        cause TEXT NOT NULL,
        pool TEXT NOT NULL,
        backend TEXT NOT NULL,
        per_second INTEGER NOT NULL,
        before INTEGER NOT NULL,
        due_unix_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        ended INTEGER NOT NULL,
        PRIMARY KEY (service, cause, pool, backend)
    ) STRICT, WITHOUT ROWID;
",
];

/// Sets the connection up and brings the tables to the newest version. What is
/// damaged or not ours is not written to.
pub fn prepare(mut connection: Connection, path: &Path) -> Result<Connection, StoreError> {
    // Somebody who looks at the file with a tool of SQLite's must not hold a rollback up.
    connection
        .busy_timeout(Duration::from_millis(100))
        .map_err(sql("setting a limit for waiting"))?;
    // The first statement that reads the file; it fails on what is no database.
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(read(path))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(read(path))?;
    if found == 0 && tables > 0 {
        return Err(damaged(path, "it has other tables".to_owned()));
    }
    let check: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(read(path))?;
    if check != "ok" {
        return Err(damaged(path, check));
    }
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
        .map_err(sql("switching on the write-ahead log"))?;
    connection.set_prepared_statement_cache_capacity(32);
    if found < known {
        migrate(&mut connection, found)?;
    }
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: i64) -> Result<(), StoreError> {
    let fault = sql("bringing the tables up to date");
    let tx = connection.transaction().map_err(&fault)?;
    for migration in &MIGRATIONS[found.max(0) as usize..] {
        tx.execute_batch(migration).map_err(&fault)?;
    }
    tx.pragma_update(None, "user_version", MIGRATIONS.len() as i64)
        .map_err(&fault)?;
    tx.commit().map_err(&fault)
}

fn damaged(path: &Path, why: String) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        why,
    }
}

/// A failed look at the file: damaged, or a disk that does not answer.
fn read(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
    |error| match sql("reading the file")(error) {
        StoreError::Broken { source, .. } => damaged(path, source.to_string()),
        other => other,
    }
}
