//! The stream of a watcher: present state, then changes, coalesced.
//!
//! Each watcher has a task and a small queue of its own. While its client is
//! slow the task waits on the queue and the agent's events pile up nowhere:
//! afterwards the task asks for what happened since, and only the last event
//! of each service counts.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Context, convert, services::long, stream};
use crate::{
    proto::WatchResponse,
    reconcile::{
        Controller,
        controller::{ControlError, ServiceEvent, ServiceView},
    },
};

/// Responses that wait for the client.
const QUEUE: usize = 16;

/// Where a watcher begins.
pub(super) enum Resume {
    /// With the present state.
    Present,
    /// With what happened after this version.
    After(u64),
}

type Item = Result<WatchResponse, Status>;

/// Why a watcher's task ends without an error for the client.
struct Gone;

struct Watcher {
    controller: Arc<dyn Controller>,
    /// Empty: all services.
    name: String,
    queue: mpsc::Sender<Item>,
    /// Version up to which the client knows everything.
    known: u64,
}

/// Starts a watcher of one service, or of all where `name` is empty.
pub(super) fn start(context: &Context, name: String, resume: Resume) -> ReceiverStream<Item> {
    stream::start(context, QUEUE, move |context, queue| async move {
        let mut watcher = Watcher {
            controller: context.controller,
            name,
            queue,
            known: 0,
        };
        let ended = watcher.follow(resume).await;
        ended.map_err(|error| error.map(Status::from))
    })
}

impl Watcher {
    /// Ends with `None` when the client is gone.
    async fn follow(&mut self, resume: Resume) -> Result<(), Option<ControlError>> {
        let mut newest = self.controller.version();
        match resume {
            Resume::Present => self.send_present().await?,
            Resume::After(version) if version <= *newest.borrow() => self.known = version,
            Resume::After(_) => self.resync().await?,
        }
        loop {
            // Marked as seen before the events are read: one that comes in
            // between wakes the loop once more.
            newest.borrow_and_update();
            match self.controller.events_since(self.known) {
                Some(events) => self.send_events(events).await?,
                None => self.resync().await?,
            }
            if newest.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn resync(&mut self) -> Result<(), Option<ControlError>> {
        self.send(0, "resync", None).await?;
        self.send_present().await
    }

    async fn send_present(&mut self) -> Result<(), Option<ControlError>> {
        // Taken before the state is read, so that nothing is missed; what
        // changes in between is told twice.
        let version = *self.controller.version().borrow();
        let views = if self.name.is_empty() {
            long(&self.controller, |controller| controller.list()).await?
        } else {
            let name = self.name.clone();
            match long(&self.controller, move |controller| controller.get(&name)).await {
                Ok(view) => vec![view],
                Err(ControlError::NotFound { .. }) => Vec::new(),
                Err(error) => return Err(Some(error)),
            }
        };
        for view in &views {
            self.send(0, "present", Some(view)).await?;
        }
        self.known = version;
        self.send(version, "synced", None).await?;
        Ok(())
    }

    async fn send_events(&mut self, events: Vec<ServiceEvent>) -> Result<(), Option<ControlError>> {
        let newest = events.last().map_or(self.known, |event| event.version);
        for event in last_of_each(events) {
            if !self.name.is_empty() && event.service != self.name {
                continue;
            }
            let name = event.service.clone();
            match long(&self.controller, move |controller| controller.get(&name)).await {
                Ok(view) => self.send(event.version, "changed", Some(&view)).await?,
                // Deleted by this event or by one that is yet to be read.
                Err(ControlError::NotFound { .. }) => self.send_deleted(&event).await?,
                Err(error) => return Err(Some(error)),
            }
        }
        self.known = newest;
        Ok(())
    }

    async fn send_deleted(&self, event: &ServiceEvent) -> Result<(), Gone> {
        let spec = crate::proto::ServiceSpec {
            name: event.service.clone(),
            ..Default::default()
        };
        let response = WatchResponse {
            version: event.version,
            kind: "deleted".to_owned(),
            service: Some(crate::proto::Service {
                spec: Some(spec),
                ..Default::default()
            }),
        };
        self.queue.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn send(&self, version: u64, kind: &str, view: Option<&ServiceView>) -> Result<(), Gone> {
        let response = WatchResponse {
            version,
            kind: kind.to_owned(),
            service: view.map(convert::service),
        };
        self.queue.send(Ok(response)).await.map_err(|_| Gone)
    }
}

impl From<Gone> for Option<ControlError> {
    fn from(_: Gone) -> Self {
        None
    }
}

/// The last event of each service, oldest first.
fn last_of_each(events: Vec<ServiceEvent>) -> Vec<ServiceEvent> {
    let mut last: HashMap<String, ServiceEvent> = HashMap::new();
    for event in events {
        last.insert(event.service.clone(), event);
    }
    let mut events: Vec<_> = last.into_values().collect();
    events.sort_by_key(|event| event.version);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_event_of_each_service_counts_in_order() {
        let event = |version, service: &str, deleted| ServiceEvent {
            version,
            service: service.to_owned(),
            deleted,
        };
        let events = vec![
            event(1, "web", false),
            event(2, "dns", false),
            event(3, "web", false),
            event(4, "old", true),
        ];
        let left: Vec<_> = last_of_each(events)
            .iter()
            .map(|e| (e.version, e.service.clone()))
            .collect();
        assert_eq!(
            left,
            [
                (2, "dns".to_owned()),
                (3, "web".to_owned()),
                (4, "old".to_owned())
            ]
        );
    }
}
