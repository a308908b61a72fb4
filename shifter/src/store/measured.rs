//! What rollouts measure, stored over a connection of its own: each second, and in
//! nobody's way. It never replaces a state that was stored meanwhile.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use rusqlite::{Connection, params};

use super::{
    Store, StoreError,
    error::sql,
    place::open_beside,
    rollout::{insert_notes, insert_windows},
};
use crate::rollout::{Happened, Window};

/// What one rollout has measured since it was last stored.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    pub id: u64,
    /// The state that the store holds, as whoever measured knows it.
    pub before: String,
    /// The state that takes its place.
    pub state: String,
    pub windows: Vec<Window>,
    /// What happened and moves nothing: what gates say, who was not told.
    pub notes: Vec<Happened>,
}

/// The second connection; transactions of both take turns by its lock.
#[derive(Clone)]
pub struct Beside(Arc<Mutex<Connection>>);

impl Beside {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open_beside(path, Duration::from_millis(100), "FULL")
            .map_err(sql("opening it a second time"))?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// A turn to write: nobody else does as long as it is held.
    pub(crate) fn turn(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn, unless somebody has it.
    pub(super) fn try_turn(&self) -> Option<MutexGuard<'_, Connection>> {
        match self.0.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Stores what was measured. `false`: a newer state was stored meanwhile and
    /// stays; windows are stored all the same.
    pub fn write(&self, measured: &Measured) -> Result<bool, StoreError> {
        let mut connection = self.turn();
        let write = |connection: &mut Connection| {
            let tx = connection.transaction()?;
            let id = measured.id as i64;
            let changed = tx
                .prepare_cached("UPDATE rollout SET state = ?3 WHERE id = ?1 AND state = ?2")?
                .execute(params![id, measured.before, measured.state])?;
            insert_windows(&tx, id, &measured.windows)?;
            insert_notes(&tx, id, &measured.notes)?;
            tx.commit()?;
            Ok(changed == 1)
        };
        write(&mut connection).map_err(sql("storing what a rollout measured"))
    }
}

impl Store {
    /// Where to store what rollouts measure, without anyone waiting for it; `None`
    /// where it is to be stored as anything else.
    pub fn beside(&mut self) -> Option<Beside> {
        self.check().is_ok().then(|| self.beside.clone())?
    }

    /// What became of a write over [`Store::beside`].
    pub fn note_beside(&mut self, error: &StoreError) {
        self.failing = Some(error.to_string());
    }

    /// From now on every write fails (or not any more), as on a full disk.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), StoreError> {
        let switching = sql("switching to read-only");
        let switch = |connection: &Connection| {
            connection
                .pragma_update(None, "query_only", read_only)
                .map_err(&switching)
        };
        if let Some(beside) = &self.beside {
            switch(&beside.turn())?;
        }
        switch(&self.connection)
    }
}
