//! Lets writes through, has them wait while the agent hands over, and sends
//! them away once another has taken over.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{Request, Response};
use tokio::sync::watch;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::proto::error::Reason;

/// Methods whose names begin so write nothing.
const READS: [&str; 6] = ["Explain", "Get", "List", "Plan", "Stream", "Watch"];
/// Where the methods of this API are.
const API: &str = "/shifter.v1.";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Open,
    /// Writes wait; a rollback does not, as long as this agent writes at all.
    Held,
    /// This agent writes no more.
    Still,
    Closed,
}

#[derive(Clone, Copy)]
struct State {
    door: Door,
    /// Writes that were let in and are not answered yet.
    under_way: usize,
}

/// What every write passes through.
#[derive(Debug)]
pub struct Gate {
    state: watch::Sender<State>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} under way", self.door, self.under_way)
    }
}

/// A write under way; dropped when it is answered or given up.
struct Pass(Arc<Gate>);

impl Gate {
    /// A gate that lets everything through.
    pub fn open() -> Arc<Self> {
        let state = State {
            door: Door::Open,
            under_way: 0,
        };
        Arc::new(Self {
            state: watch::Sender::new(state),
        })
    }

    /// From now on writes wait.
    pub fn hold(&self) {
        self.turn(Door::Held);
    }

    /// Lets those that wait, and all after them, through.
    pub fn release(&self) {
        self.turn(Door::Open);
    }

    /// Sends those that wait, and all after them, away.
    pub fn close(&self) {
        self.turn(Door::Closed);
    }

    fn turn(&self, door: Door) {
        self.state.send_modify(|state| state.door = door);
    }

    /// Waits until no write is under way. From then on, where writes are held,
    /// rollbacks wait as well.
    pub async fn quiet(&self) {
        let mut state = self.state.subscribe();
        loop {
            let mut is_quiet = false;
            self.state.send_if_modified(|state| {
                is_quiet = state.under_way == 0;
                let is_stilled = is_quiet && state.door == Door::Held;
                if is_stilled {
                    state.door = Door::Still;
                }
                is_stilled
            });
            // It cannot fail: the sender is here.
            if is_quiet || state.wait_for(|state| state.under_way == 0).await.is_err() {
                return;
            }
        }
    }

    /// Waits until writes are not let through at once.
    pub(super) async fn shut(&self) {
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| state.door != Door::Open)
            .await;
    }

    /// Waits for the gate to be open; `None` once it is closed.
    async fn enter(self: Arc<Self>, is_rollback: bool) -> Option<Pass> {
        let mut state = self.state.subscribe();
        loop {
            let let_in = self.state.send_if_modified(|state| {
                let is_open = state.door == Door::Open || (is_rollback && state.door == Door::Held);
                state.under_way += usize::from(is_open);
                is_open
            });
            if let_in {
                return Some(Pass(self));
            }
            let door = state
                .wait_for(|state| matches!(state.door, Door::Open | Door::Closed))
                .await
                .ok()?;
            if door.door == Door::Closed {
                return None;
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.under_way -= 1);
    }
}

/// What a client is told whose agent goes.
pub(super) fn leaving() -> Status {
    Reason::AgentLeaving.status(
        "this agent ends or is being replaced, and nothing was changed: send the request again, and resume a watch from its last version",
        &[],
    )
}

/// Whether a path is a method that changes something.
fn is_write(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    path.starts_with(API) && !READS.iter().any(|read| method.starts_with(read))
}

/// Whether it is the one write that waits for nothing.
fn is_rollback(path: &str) -> bool {
    path.ends_with("/Rollback") || path.ends_with("Rollouts/Abort")
}

/// Puts a gate before the writes of a server.
#[derive(Clone)]
pub(super) struct GateLayer(pub Arc<Gate>);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            gate: Arc::clone(&self.0),
        }
    }
}

/// A server behind a gate.
#[derive(Clone)]
pub(super) struct Gated<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready answers; its copy gets ready for the next.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        if !is_write(request.uri().path()) {
            return Box::pin(inner.call(request));
        }
        let gate = Arc::clone(&self.gate);
        let is_rollback = is_rollback(request.uri().path());
        Box::pin(async move {
            let Some(pass) = gate.enter(is_rollback).await else {
                return Ok(leaving().into_http());
            };
            // A task of its own: a client that goes away ends its request, but not
            // what that has begun, which stays under way.
            let answered = tokio::spawn(async move {
                let answer = inner.call(request).await;
                drop(pass);
                answer
            });
            match answered.await {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Ok(leaving().into_http()),
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_changes_nothing_goes_past_the_gate() {
        for write in [
            "Apply",
            "Confirm",
            "Delete",
            "Promote",
            "Rollback",
            "SetWeight",
        ] {
            assert!(
                is_write(&format!("/shifter.v1.Services/{write}")),
                "{write}"
            );
        }
        for read in ["Explain", "Get", "List", "Plan", "Watch"] {
            assert!(!is_write(&format!("/shifter.v1.Services/{read}")), "{read}");
        }
        assert!(!is_write("/shifter.v1.Admin/GetInfo"));
        assert!(is_write("/shifter.v1.Admin/Freeze"), "what is not known");
        assert!(!is_write("/grpc.health.v1.Health/Check"));
    }

    #[tokio::test]
    async fn a_held_gate_waits_for_what_is_under_way_and_lets_nothing_in() {
        let gate = Gate::open();
        let first = Arc::clone(&gate).enter(false).await.unwrap();
        gate.hold();
        gate.shut().await;
        let mut second = tokio::spawn(Arc::clone(&gate).enter(false));
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, gate.quiet()).await.is_err());
        drop(first);
        gate.quiet().await;
        assert!(tokio::time::timeout(short, &mut second).await.is_err());
        gate.release();
        assert!(second.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_rollback_passes_a_held_gate_until_this_agent_writes_no_more() {
        let gate = Gate::open();
        let write = Arc::clone(&gate).enter(false).await.unwrap();
        gate.hold();
        let rollback = Arc::clone(&gate).enter(true).await.unwrap();
        drop(write);
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, gate.quiet()).await.is_err());
        drop(rollback);
        gate.quiet().await;
        let mut late = tokio::spawn(Arc::clone(&gate).enter(true));
        assert!(tokio::time::timeout(short, &mut late).await.is_err());
        gate.release();
        assert!(late.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_closed_gate_sends_away_what_waits_and_what_comes() {
        let gate = Gate::open();
        gate.hold();
        let waits = tokio::spawn(Arc::clone(&gate).enter(false));
        tokio::task::yield_now().await;
        gate.close();
        assert!(waits.await.unwrap().is_none());
        assert!(gate.enter(false).await.is_none());
    }
}
