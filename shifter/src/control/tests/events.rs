//! Events: listed, streamed as they happen, resumed; and recordings of what pools do.

use std::time::Duration;

use tonic::{Code, Streaming};

use super::assert_refused;
use crate::{
    control::testbed::Testbed,
    proto::{
        self, ListEventsRequest, StreamEventsRequest, StreamRecordingRequest, error::Reason,
        observe_client::ObserveClient,
    },
    reconcile::controller::Event,
};

fn happen(testbed: &Testbed, what: &str, service: &str) {
    testbed.agent.happen(Event {
        kind: "change".into(),
        what: what.into(),
        service: service.into(),
        ..Event::default()
    });
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let wait = Duration::from_secs(10);
    let message = tokio::time::timeout(wait, stream.message()).await.unwrap();
    message.unwrap().expect("the stream goes on")
}

async fn stream(testbed: &Testbed, request: StreamEventsRequest) -> Streaming<proto::Event> {
    let mut observe = ObserveClient::new(testbed.channel());
    observe.stream_events(request).await.unwrap().into_inner()
}

async fn words(events: &mut Streaming<proto::Event>, count: usize) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let event = next(events).await;
        seen.push((event.number, event.what));
    }
    seen
}

#[test]
fn a_stream_begins_with_the_newest_and_goes_on_with_what_happens() {
    let testbed = Testbed::with_web();
    for what in ["apply", "shift", "shift"] {
        happen(&testbed, what, "web");
    }
    testbed.runtime.block_on(async {
        let request = StreamEventsRequest {
            limit: 2,
            ..Default::default()
        };
        let mut events = stream(&testbed, request).await;
        let seen = words(&mut events, 2).await;
        assert_eq!(seen, [(2, "shift".into()), (3, "shift".into())]);
        happen(&testbed, "rollback", "web");
        happen(&testbed, "freeze", "dns");
        let seen = words(&mut events, 2).await;
        assert_eq!(seen, [(4, "rollback".into()), (5, "freeze".into())]);
        let request = StreamEventsRequest {
            after: 1,
            service: "web".into(),
            ..Default::default()
        };
        let mut resumed = stream(&testbed, request).await;
        let seen = words(&mut resumed, 3).await;
        assert_eq!(seen[2], (4, "rollback".into()));
        happen(&testbed, "shift", "dns");
        happen(&testbed, "confirm", "web");
        assert_eq!(words(&mut resumed, 1).await, [(7, "confirm".into())]);
    });
}

#[test]
fn a_stream_that_cannot_go_on_without_a_gap_is_refused() {
    let testbed = Testbed::with_web();
    happen(&testbed, "apply", "web");
    testbed.runtime.block_on(async {
        let request = StreamEventsRequest {
            after: 5,
            ..Default::default()
        };
        let mut events = stream(&testbed, request).await;
        let refused = events.message().await.unwrap_err();
        let helps = "begin anew";
        assert_refused(
            &refused,
            Code::FailedPrecondition,
            Reason::Precondition,
            helps,
        );
    });
}

#[test]
fn more_events_than_a_page_come_all_once_and_in_order() {
    let testbed = Testbed::new();
    for _ in 0..2_500 {
        happen(&testbed, "shift", "web");
    }
    testbed.runtime.block_on(async {
        let request = StreamEventsRequest {
            after: 1,
            limit: 7,
            ..Default::default()
        };
        let mut events = stream(&testbed, request).await;
        let seen = words(&mut events, 2_499).await;
        assert!(seen.iter().map(|(number, _)| *number).eq(2..=2_500));
        let mut observe = ObserveClient::new(testbed.channel());
        let listed = observe.list_events(ListEventsRequest::default()).await;
        let listed = listed.unwrap().into_inner().events;
        assert_eq!((listed.len(), listed[0].number), (100, 2_401));
    });
}

#[test]
fn a_recording_is_a_header_and_windows_and_ends_when_another_pool_is_live() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        let mut observe = ObserveClient::new(testbed.channel());
        let request = |service: &str| StreamRecordingRequest {
            service: service.into(),
            interval_seconds: 0.1,
        };
        let refused = observe.stream_recording(request("dns")).await.unwrap_err();
        assert_refused(
            &refused,
            Code::NotFound,
            Reason::ServiceNotFound,
            "there is no service",
        );
        let lines = observe.stream_recording(request("web")).await;
        let mut lines = lines.unwrap().into_inner();
        let mut text = String::new();
        for _ in 0..3 {
            text += &next(&mut lines).await.line;
            text.push('\n');
        }
        let recording = crate::judge::Recording::parse(&text).unwrap();
        assert_eq!(
            (recording.service.as_str(), recording.windows.len()),
            ("web", 2)
        );
        testbed
            .agent
            .edit("web", |view| view.spec.live = view.spec.live.other());
        let ended = loop {
            match lines.message().await {
                Ok(line) => assert!(line.is_some(), "it says why it ends"),
                Err(status) => break status,
            }
        };
        assert_refused(
            &ended,
            Code::FailedPrecondition,
            Reason::Precondition,
            "green is live now",
        );
    });
}
