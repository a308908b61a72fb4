//! The list of events, and the stream of them.
//!
//! A stream reads on from the store after the last event that it has sent. So a slow
//! client misses nothing, and nothing piles up for it.

use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    Context, convert, list_limit,
    services::long,
    stream::{self, Ended, Queue},
};
use crate::{
    proto,
    reconcile::controller::{ControlError, EventQuery, Events},
};

/// Events that are read at once for a stream.
const PAGE: u32 = 1_000;
/// Events that wait for the client.
const QUEUE: usize = 64;

type Item = Result<proto::Event, Status>;

pub(super) fn list_query(message: proto::ListEventsRequest) -> EventQuery {
    EventQuery {
        service: message.service,
        kind: message.kind,
        since_unix_ms: (message.since_unix_seconds * 1e3) as i64,
        after: (message.after > 0).then_some(message.after),
        limit: list_limit(message.limit),
    }
}

pub(super) fn stream_query(message: proto::StreamEventsRequest) -> EventQuery {
    list_query(proto::ListEventsRequest {
        service: message.service,
        kind: message.kind,
        since_unix_seconds: message.since_unix_seconds,
        after: message.after,
        limit: message.limit,
    })
}

/// Starts a stream: what the query finds, then whatever happens.
pub(super) fn start(context: &Context, query: EventQuery) -> ReceiverStream<Item> {
    stream::start(context, QUEUE, |context, queue| async move {
        follow(&context, query, &queue).await
    })
}

/// Ends with `None` when the client or the agent is gone.
async fn follow(
    context: &Context,
    mut query: EventQuery,
    queue: &Queue<proto::Event>,
) -> Result<(), Ended> {
    let mut stored = context.controller.events_stored();
    // What the client has seen so far must still be followed by what is kept.
    let mut resumed = query.after.filter(|after| *after > 0);
    loop {
        // Marked as seen before it is read: what comes in between wakes the loop again.
        stored.borrow_and_update();
        loop {
            let asked = query.clone();
            let found = long(&context.controller, move |c| c.events(&asked)).await;
            let Events {
                events,
                newest,
                oldest,
            } = found.map_err(|error| Some(Status::from(error)))?;
            if let Some(after) = resumed.take()
                && (after > newest || after + 1 < oldest)
            {
                let text = format!(
                    "what came after event {after} is not there any more: {oldest} to {newest} are kept; begin anew"
                );
                return Err(Some(ControlError::Precondition(text).into()));
            }
            let is_page = query.after.is_some() && events.len() as u64 == u64::from(query.limit);
            let mut last = 0;
            // What is not stored yet comes once it is.
            for event in events.into_iter().filter(|event| event.number > 0) {
                last = event.number;
                queue
                    .send(Ok(convert::event(event)))
                    .await
                    .map_err(|_| None::<Status>)?;
            }
            let before = query.after.unwrap_or(0);
            query.limit = PAGE;
            if is_page {
                query.after = Some(last.max(before));
                continue;
            }
            query.after = Some(newest.max(last).max(before));
            break;
        }
        stored.changed().await.map_err(|_| None::<Status>)?;
    }
}
