//! Every refusal: code, reason, and a text that helps.

use tonic::Code;

use super::{
    assert_refused,
    calls::{named, weight},
};
use crate::{
    control::testbed::{Testbed, web},
    proto::{self, error::Reason},
    reconcile::controller::ControlError,
};

type Edit = fn(&mut proto::ServiceSpec);

#[test]
fn each_error_of_the_agent_has_its_code_and_reason() {
    let rows = [
        (
            ControlError::Invalid("x".into()),
            Code::InvalidArgument,
            Reason::Invalid,
        ),
        (
            ControlError::NotFound {
                name: "x".into(),
                known: "web".into(),
            },
            Code::NotFound,
            Reason::ServiceNotFound,
        ),
        (
            ControlError::Precondition("x".into()),
            Code::FailedPrecondition,
            Reason::Precondition,
        ),
        (
            ControlError::Conflict {
                service: "x".into(),
                is: "e2".into(),
                asked: "e1".into(),
            },
            Code::Aborted,
            Reason::EtagStale,
        ),
        (
            ControlError::Exhausted("x".into()),
            Code::ResourceExhausted,
            Reason::LimitReached,
        ),
        (
            ControlError::Internal("x".into()),
            Code::Internal,
            Reason::Internal,
        ),
    ];
    for (error, code, reason) in rows {
        let text = error.to_string();
        assert_refused(&error.into(), code, reason, &text);
    }
}

#[test]
fn a_stale_etag_is_aborted_and_says_the_present_one() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    let mut request = weight("10%");
    request.etag = "e0".to_owned();
    let status = testbed
        .runtime
        .block_on(services.set_weight(request))
        .unwrap_err();
    assert_refused(&status, Code::Aborted, Reason::EtagStale, "read it again");
    assert_eq!(
        proto::error::ErrorInfo::of(&status).unwrap().metadata["etag"],
        "e1"
    );
    let two = proto::ApplyRequest {
        services: vec![web("a"), web("b")],
        etag: "e1".to_owned(),
        ..Default::default()
    };
    let status = testbed.runtime.block_on(services.apply(two)).unwrap_err();
    assert_refused(
        &status,
        Code::InvalidArgument,
        Reason::Invalid,
        "one by one",
    );
}

#[test]
fn bad_fields_are_refused_with_service_and_field_and_change_nothing() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    let edits: [(Edit, &str); 6] = [
        (|s| s.vip = "here".into(), "vip: \"here\" is no VIP"),
        (|s| s.green = "5".into(), "green: \"5\" is no weight"),
        (|s| s.mode = "magic".into(), "mode: \"magic\" is no mode"),
        (
            |s| s.affinity = "cookie".into(),
            "affinity: \"cookie\" is no affinity",
        ),
        (|s| s.seed = "abc".into(), "32 hex digits"),
        (
            |s| s.blue[0].address = "10.0.0.1".into(),
            "pools.blue: \"10.0.0.1\" is no backend",
        ),
    ];
    for (edit, helps) in edits {
        let mut spec = web("new");
        edit(&mut spec);
        let request = proto::ApplyRequest {
            services: vec![web("fine"), spec],
            ..Default::default()
        };
        let status = testbed
            .runtime
            .block_on(services.apply(request))
            .unwrap_err();
        assert_refused(&status, Code::InvalidArgument, Reason::Invalid, helps);
    }
    let mut nothing = weight("5%");
    nothing.share_of = None;
    let status = testbed
        .runtime
        .block_on(services.set_weight(nothing))
        .unwrap_err();
    assert_refused(
        &status,
        Code::InvalidArgument,
        Reason::Invalid,
        "give one of",
    );
    let mut endless = weight("5%");
    endless.revert_after_seconds = f64::NAN;
    let status = testbed
        .runtime
        .block_on(services.set_weight(endless))
        .unwrap_err();
    assert_refused(
        &status,
        Code::InvalidArgument,
        Reason::Invalid,
        "revert_after_seconds",
    );
    let status = testbed
        .runtime
        .block_on(services.get(named("nope")))
        .unwrap_err();
    assert_refused(
        &status,
        Code::NotFound,
        Reason::ServiceNotFound,
        "there are: web",
    );
    let list = testbed
        .runtime
        .block_on(services.list(proto::ListServicesRequest {}));
    assert_eq!(list.unwrap().into_inner().services.len(), 1);
}
