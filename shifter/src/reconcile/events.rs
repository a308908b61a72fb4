//! Changes of services for watchers: a bounded list with rising versions.

use std::{collections::VecDeque, sync::Mutex};

use tokio::sync::watch;

use super::controller::ServiceEvent;

/// Events that a watcher can resume over.
const KEPT: usize = 4_096;

pub struct Events {
    kept: Mutex<VecDeque<ServiceEvent>>,
    newest: watch::Sender<u64>,
}

impl Events {
    /// Versions begin above `base`: microseconds since 1970, so that those of
    /// a later start are higher than any before.
    pub fn new(base: u64) -> Self {
        Self {
            kept: Mutex::default(),
            newest: watch::Sender::new(base),
        }
    }

    pub fn push(&self, service: &str, deleted: bool) {
        let mut kept = super::reconciler::lock(&self.kept);
        let version = *self.newest.borrow() + 1;
        kept.push_back(ServiceEvent {
            version,
            service: service.to_owned(),
            deleted,
        });
        if kept.len() > KEPT {
            kept.pop_front();
        }
        self.newest.send_replace(version);
    }

    pub fn since(&self, since: u64) -> Option<Vec<ServiceEvent>> {
        let kept = super::reconciler::lock(&self.kept);
        let newest = *self.newest.borrow();
        let oldest = newest - kept.len() as u64;
        if since < oldest || since > newest {
            return None;
        }
        Some(kept.iter().filter(|e| e.version > since).cloned().collect())
    }

    pub fn version(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_resumes_as_long_as_its_events_are_kept() {
        let events = Events::new(1_000);
        assert!(events.since(1_000).unwrap().is_empty());
        assert!(events.since(999).is_none());
        assert!(events.since(1_001).is_none());
        for _ in 0..KEPT + 1 {
            events.push("web", false);
        }
        assert!(events.since(1_000).is_none());
        assert_eq!(events.since(1_001).unwrap().len(), KEPT);
        assert_eq!(events.since(1_001).unwrap()[0].version, 1_002);
        assert_eq!(*events.version().borrow(), 1_000 + KEPT as u64 + 1);
    }
}
