//! Watching: present state, changes, resuming, slow clients, the end.

use std::time::{Duration, Instant};

use tonic::{Code, Streaming};

use super::assert_refused;
use crate::{
    control::testbed::Testbed,
    proto::{WatchRequest, WatchResponse, error::Reason},
};

async fn start(testbed: &Testbed, name: &str, resume_version: u64) -> Streaming<WatchResponse> {
    let request = WatchRequest {
        name: name.to_owned(),
        resume_version,
    };
    testbed
        .services()
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}

/// Kind, service and version of the next response.
async fn next(watch: &mut Streaming<WatchResponse>) -> (String, String, u64) {
    let wait = Duration::from_secs(10);
    let message = tokio::time::timeout(wait, watch.message()).await.unwrap();
    let response = message.unwrap().expect("the stream goes on");
    let name = response.service.and_then(|service| service.spec);
    (
        response.kind,
        name.map_or_else(String::new, |spec| spec.name),
        response.version,
    )
}

fn said(kind: &str, service: &str, version: u64) -> (String, String, u64) {
    (kind.to_owned(), service.to_owned(), version)
}

#[test]
fn a_watcher_sees_the_present_state_then_each_change() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        let mut watch = start(&testbed, "", 0).await;
        assert_eq!(next(&mut watch).await, said("present", "web", 0));
        assert_eq!(next(&mut watch).await, said("synced", "", 101));
        testbed.agent.edit("web", |view| view.generation = 7);
        assert_eq!(next(&mut watch).await, said("changed", "web", 102));
        let delete = crate::proto::DeleteServiceRequest {
            name: "web".into(),
            force: true,
            ..Default::default()
        };
        testbed.services().delete(delete).await.unwrap();
        let mut last = next(&mut watch).await;
        if last.0 == "changed" {
            last = next(&mut watch).await;
        }
        assert_eq!((last.0.as_str(), last.1.as_str()), ("deleted", "web"));
    });
}

#[test]
fn a_watcher_resumes_where_it_ended_and_is_told_where_that_is_impossible() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        testbed.agent.edit("web", |view| view.generation = 7);
        let mut watch = start(&testbed, "web", 101).await;
        assert_eq!(next(&mut watch).await, said("changed", "web", 102));
        for _ in 0..10 {
            testbed.agent.edit("web", |view| view.generation += 1);
        }
        for version_out_of_reach in [101, 9_999] {
            let mut watch = start(&testbed, "web", version_out_of_reach).await;
            assert_eq!(next(&mut watch).await, said("resync", "", 0));
            assert_eq!(next(&mut watch).await, said("present", "web", 0));
            assert_eq!(next(&mut watch).await, said("synced", "", 112));
        }
    });
}

#[test]
fn a_watcher_of_one_service_hears_of_no_other() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        let request = WatchRequest {
            name: "nope".to_owned(),
            resume_version: 0,
        };
        let status = testbed.services().watch(request).await.unwrap_err();
        assert_refused(
            &status,
            Code::NotFound,
            Reason::ServiceNotFound,
            "there are: web",
        );
        let mut watch = start(&testbed, "web", 0).await;
        next(&mut watch).await;
        next(&mut watch).await;
        let other = crate::proto::ApplyRequest {
            services: vec![crate::control::testbed::web("other")],
            ..Default::default()
        };
        testbed.services().apply(other).await.unwrap();
        testbed.agent.edit("web", |view| view.generation = 9);
        let (kind, name, _) = next(&mut watch).await;
        assert_eq!((kind.as_str(), name.as_str()), ("changed", "web"));
    });
}

#[test]
fn a_slow_watcher_holds_nobody_up_and_ends_with_the_last_state() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        let mut watch = start(&testbed, "", 0).await;
        let begun = Instant::now();
        for generation in 1..=20_000 {
            testbed
                .agent
                .edit("web", |view| view.generation = generation);
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        let mut responses = 0;
        loop {
            let response = watch.message().await.unwrap().unwrap();
            responses += 1;
            let last = response.service.is_some_and(|s| s.generation == 20_000);
            // Resyncs tell the last state more than once; the last one can be resumed from.
            let whole = last || response.kind == "synced";
            if whole && response.version == 20_101 {
                break;
            }
        }
        assert!(responses < 20_000, "nothing was coalesced");
    });
}

#[test]
fn the_end_of_the_server_ends_its_streams_at_once() {
    let mut testbed = Testbed::with_web();
    let mut watch = testbed.runtime.block_on(start(&testbed, "", 0));
    testbed.runtime.block_on(async {
        next(&mut watch).await;
        next(&mut watch).await;
    });
    let begun = Instant::now();
    testbed.stop().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let end = testbed.runtime.block_on(watch.message()).unwrap_err();
    assert_refused(
        &end,
        Code::Unavailable,
        Reason::AgentLeaving,
        "last version",
    );
}
