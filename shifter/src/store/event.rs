//! Events: one list of what happened, in its order. Records of the audit and notes of
//! rollouts are in it by their number, everything else as it was told.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, Transaction, params};
use tokio::sync::watch;

use super::{Beside, STORE_FILE, Store, StoreError, error::sql, place::open_beside};

/// Events that are told and wait to be stored.
const WAITING: usize = 4_096;
/// Those of them that one write of something else takes along.
const TAKEN_ALONG: usize = 256;
/// Rows kept, and those of them that are neither of the audit nor of a rollout:
/// backends that flap shall not push the others out.
const KEPT: u32 = 200_000;
const KEPT_OWN: u32 = 50_000;
/// How long the file may be another's while events are written.
const PATIENCE: Duration = Duration::from_millis(100);

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// Rises with every event, whatever the clock says; 0: it is not stored yet.
    pub number: u64,
    pub at_unix_ms: i64,
    /// "change" (of the audit), "rollout", "health", "interface" or "agent".
    pub kind: String,
    /// One or two words: "rollback", "holding", "down".
    pub what: String,
    /// Empty: of no service; `*`: of all.
    pub service: String,
    /// Who, where somebody did it.
    pub actor: String,
    pub text: String,
    pub before: String,
    pub after: String,
    pub generation: u32,
    /// Number of the rollout; 0: of none.
    pub rollout: u64,
}

/// Which events to read, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventQuery {
    /// Empty: of all, and of none.
    pub service: String,
    /// A kind, or what happened; empty: everything.
    pub kind: String,
    pub since_unix_ms: i64,
    /// The first after this number; `None`: the newest.
    pub after: Option<u64>,
    pub limit: u32,
}

/// What a query found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Events {
    pub events: Vec<Event>,
    /// Number of the newest event of all, as it was before the query.
    pub newest: u64,
    /// From this number on nothing was dropped.
    pub oldest: u64,
}

/// Events that are told where nothing may wait for a disk.
#[derive(Debug, Default)]
pub struct EventQueue {
    waiting: Mutex<Waiting>,
    stored: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// For lack of room.
    lost: u64,
}

impl EventQueue {
    /// Tells of something now.
    pub fn tell(&self, kind: &str, what: &str, service: &str, text: impl Into<String>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.push(Event {
            at_unix_ms: now.map_or(0, |since| since.as_millis() as i64),
            kind: kind.to_owned(),
            what: what.to_owned(),
            service: service.to_owned(),
            text: text.into(),
            ..Event::default()
        });
    }

    /// Takes an event in. Waits for nothing.
    pub fn push(&self, event: Event) {
        let mut waiting = self.lock();
        if waiting.events.len() < WAITING {
            waiting.events.push_back(event);
        } else {
            waiting.lost += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    /// Those that wait.
    pub fn waiting(&self) -> Vec<Event> {
        self.lock().events.iter().cloned().collect()
    }

    /// Changes whenever something may have been stored.
    pub fn stored(&self) -> watch::Receiver<u64> {
        self.stored.subscribe()
    }

    pub(crate) fn note_stored(&self) {
        self.stored.send_modify(|writes| *writes += 1);
    }

    /// The oldest; whoever cannot store them gives them back.
    pub(super) fn take(&self, most: usize) -> Vec<Event> {
        let mut waiting = self.lock();
        let count = waiting.events.len().min(most);
        let mut taken: Vec<Event> = waiting.events.drain(..count).collect();
        let lost = std::mem::take(&mut waiting.lost);
        if let Some(last) = taken.last().filter(|_| lost > 0) {
            let at_unix_ms = last.at_unix_ms;
            taken.push(Event {
                at_unix_ms,
                kind: "agent".into(),
                what: "lost".into(),
                text: format!("{lost} events are not in this list: the store failed, and {WAITING} waited for it"),
                ..Event::default()
            });
        } else {
            waiting.lost = lost;
        }
        taken
    }

    pub(super) fn take_along(&self) -> Vec<Event> {
        self.take(TAKEN_ALONG)
    }

    pub(super) fn give_back(&self, mut events: Vec<Event>) {
        let mut waiting = self.lock();
        if let Some(lost) = events.last().and_then(lost_in) {
            waiting.lost += lost;
            events.pop();
        }
        for event in events.into_iter().rev() {
            waiting.events.push_front(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many an event tells to be lost.
fn lost_in(event: &Event) -> Option<u64> {
    let is_lost = event.kind == "agent" && event.what == "lost";
    event
        .text
        .split(' ')
        .next()
        .filter(|_| is_lost)?
        .parse()
        .ok()
}

/// The store's file by a connection of its own, for events alone: whoever lists or
/// stores them holds no lock that a rollback needs, and waits for no disk.
pub struct EventFile {
    connection: Connection,
    /// Whose turns to write it takes part in.
    beside: Option<Beside>,
}

impl EventFile {
    fn open(state_dir: &Path, beside: Option<Beside>) -> Result<Self, StoreError> {
        let error = sql("opening it for events");
        // What is not on the disk when the power fails is written with the next commit
        // of the store; a killed agent loses nothing.
        let connection =
            open_beside(&state_dir.join(STORE_FILE), PATIENCE, "NORMAL").map_err(&error)?;
        connection
            .pragma_update(None, "wal_autocheckpoint", 0)
            .map_err(&error)?;
        Ok(Self { connection, beside })
    }

    /// Stores what waits. What fails waits on.
    pub fn flush(&mut self, queue: &EventQueue) -> Result<(), StoreError> {
        let beside = self.beside.clone();
        // Whoever waits for a disk in a turn is not waited for here.
        let Some(_turn) = beside
            .as_ref()
            .map_or(Some(None), |b| b.try_turn().map(Some))
        else {
            return Ok(());
        };
        let events = queue.take(TAKEN_ALONG);
        if events.is_empty() {
            return Ok(());
        }
        let done = self
            .connection
            .transaction()
            .and_then(|tx| insert(&tx, &events).and_then(|()| tx.commit()))
            .map_err(sql("storing events"));
        match done {
            Ok(()) => queue.note_stored(),
            Err(_) => queue.give_back(events),
        }
        done
    }

    pub fn events(&self, query: &EventQuery) -> Result<Events, StoreError> {
        read(&self.connection, query)
    }
}

impl Store {
    /// From now on events are told here.
    pub fn set_event_queue(&mut self, queue: Arc<EventQueue>) {
        self.events = queue;
    }

    /// Where events are told.
    pub fn event_queue(&self) -> Arc<EventQueue> {
        Arc::clone(&self.events)
    }

    /// Its file, for events alone; `None` where it has none that can be written.
    pub fn event_file(&self) -> Option<EventFile> {
        let place = self.place.as_ref().filter(|_| self.refused.is_none())?;
        let opened = EventFile::open(place.directory(), self.beside.clone());
        if let Err(error) = &opened {
            tracing::warn!(%error, "events are stored with what else is");
        }
        opened.ok()
    }

    /// Events, in their order.
    pub fn events(&self, query: &EventQuery) -> Result<Events, StoreError> {
        read(&self.connection, query)
    }
}

/// Stores events that were told.
pub(super) fn insert(tx: &Transaction<'_>, events: &[Event]) -> rusqlite::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO event (at_unix_ms, service, kind, what, text) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for it in events {
        insert.execute(params![
            it.at_unix_ms,
            it.service,
            it.kind,
            it.what,
            it.text
        ])?;
    }
    Ok(())
}

/// Reads events, in their order.
fn read(connection: &Connection, query: &EventQuery) -> Result<Events, StoreError> {
    let error = sql("reading the events");
    let newest: i64 = connection
        .query_row("SELECT ifnull(max(id), 0) FROM event", [], |row| row.get(0))
        .map_err(&error)?;
    let order = if query.after.is_some() { "ASC" } else { "DESC" };
    let text = format!(
        "SELECT e.id, e.at_unix_ms,
             CASE WHEN a.id IS NOT NULL THEN 'change' WHEN n.id IS NOT NULL THEN 'rollout'
                  ELSE e.kind END AS its_kind,
             coalesce(a.action, n.kind, e.what) AS its_what,
             e.service, ifnull(a.actor, ''), coalesce(a.reason, n.text, e.text),
             ifnull(a.before, ''), ifnull(a.after, ''), ifnull(a.generation, 0),
             ifnull(n.rollout, 0)
         FROM event e LEFT JOIN audit a ON a.id = e.audit LEFT JOIN rollout_note n ON n.id = e.note
         WHERE e.id > ?1 AND e.at_unix_ms >= ?2
             AND (?3 = '' OR e.service = ?3 OR e.service = '*')
             -- What the event is of may be kept no more.
             AND (e.audit IS NULL OR a.id IS NOT NULL) AND (e.note IS NULL OR n.id IS NOT NULL)
             AND (?4 = '' OR its_kind = ?4 OR its_what = ?4)
         ORDER BY e.id {order} LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&text).map_err(&error)?;
    let after = i64::try_from(query.after.unwrap_or(0)).unwrap_or(i64::MAX);
    let rows = statement
        .query_map(
            params![
                after,
                query.since_unix_ms,
                query.service,
                query.kind,
                query.limit
            ],
            event,
        )
        .map_err(&error)?;
    let mut events: Vec<Event> = rows.collect::<Result<_, _>>().map_err(&error)?;
    if query.after.is_none() {
        events.reverse();
    }
    let oldest: i64 = connection
        .query_row("SELECT id + 1 FROM event_dropped", [], |row| row.get(0))
        .map_err(&error)?;
    Ok(Events {
        events,
        newest: newest.unsigned_abs(),
        oldest: oldest.unsigned_abs(),
    })
}

fn event(row: &rusqlite::Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        number: row.get::<_, i64>(0)?.unsigned_abs(),
        at_unix_ms: row.get(1)?,
        kind: row.get(2)?,
        what: row.get(3)?,
        service: row.get(4)?,
        actor: row.get(5)?,
        text: row.get(6)?,
        before: row.get(7)?,
        after: row.get(8)?,
        generation: row.get(9)?,
        rollout: row.get::<_, i64>(10)?.unsigned_abs(),
    })
}

/// Drops what is beyond what is kept.
pub(super) fn prune(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute(
        "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?1",
        [KEPT],
    )?;
    tx.execute(
        "DELETE FROM event WHERE audit IS NULL AND note IS NULL AND id <= (
             SELECT id FROM event WHERE audit IS NULL AND note IS NULL
             ORDER BY id DESC LIMIT 1 OFFSET ?1)",
        [KEPT_OWN],
    )?;
    Ok(())
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
