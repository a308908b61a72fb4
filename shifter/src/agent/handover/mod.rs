//! How a new agent takes over from the one that runs, while the API answers.
//!
//! | new | old |
//! |---|---|
//! | checks what needs no lock, then `ask`s | has new writes wait, ends those under way and its own tasks, gives up the locks |
//! | | `offer`s its listening sockets, and goes on answering reads |
//! | takes the locks, opens the datapath and the store, attaches | waits |
//! | is `ready` | accepts no more, tells the service manager, is `gone` |
//! | accepts | ends what is under way, and itself |
//!
//! If the new one fails or dies before it is ready, the old one starts over in
//! its own process, on the same sockets: what the new one has changed in the
//! kernel and the store is adopted, as after any start.

mod give;
mod take;
mod wire;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use give::{Answer, Asked, listen};
pub use take::{Handed, ask};

/// Of this protocol. Another one is refused, and nothing happens.
const VERSION: u32 = 1;
/// Listening sockets that are handed over at most.
const SOCKETS: usize = 3;

/// What one side says to the other; a line of JSON each, in turns.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Said {
    /// New: make way.
    Ask { version: u32 },
    /// Old: no, and nothing has changed.
    Refuse { why: String },
    /// Old: here are the sockets, and the locks are free.
    Offer(Offer),
    /// New: it did not work; go on.
    Failed { why: String },
    /// New: attached. Sockets at paths that it has taken over are its own now.
    Ready { taken: Vec<PathBuf> },
    /// Old: nobody accepts any more.
    Gone,
}

/// What the old agent has; its sockets come along, in this order.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    /// Listening unix sockets, with the inode of each.
    pub unix: Vec<(PathBuf, u64)>,
    /// Where metrics are served, as its configuration says it.
    pub metrics: Option<SocketAddr>,
    pub manager: Option<Watched>,
}

/// A service manager, and how long it waits for a sign of life.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    /// As NOTIFY_SOCKET names it.
    pub socket: String,
    pub watchdog_usec: Option<u64>,
}
