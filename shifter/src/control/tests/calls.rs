//! Every call once.

use std::time::{Duration, Instant};

use tonic::Code;

use super::assert_refused;
use crate::{
    control::testbed::{Testbed, web},
    proto::{self, error::Reason, set_weight_request::ShareOf},
};

pub(super) fn weight(green: &str) -> proto::SetWeightRequest {
    proto::SetWeightRequest {
        name: "web".to_owned(),
        share_of: Some(ShareOf::Green(green.to_owned())),
        ..Default::default()
    }
}

pub(super) fn named(name: &str) -> proto::GetServiceRequest {
    proto::GetServiceRequest {
        name: name.to_owned(),
    }
}

#[test]
fn a_service_is_applied_read_shifted_promoted_and_deleted() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    testbed.runtime.block_on(async {
        let web = services.get(named("web")).await.unwrap().into_inner();
        let spec = web.spec.clone().unwrap();
        assert_eq!(
            (spec.vip.as_str(), spec.mode.as_str(), spec.live()),
            ("203.0.113.10:443/tcp", "nat", proto::Pool::Blue)
        );
        assert_eq!(web.weights.clone().unwrap().configured, "5%");
        assert_eq!(web.weights.unwrap().carried.unwrap().share, Some(0.03));
        assert_eq!(web.backends.len(), 2);

        let mut request = weight("10%");
        request.revert_after_seconds = 600.0;
        let receipt = services.set_weight(request).await.unwrap().into_inner();
        assert_eq!(
            (
                receipt.generation,
                receipt.green_share,
                receipt.programmed_ns
            ),
            (2, 0.1, 214_000)
        );
        let web = services.get(named("web")).await.unwrap().into_inner();
        assert_eq!(web.dead_man.unwrap().remaining_seconds, 600.0);

        let confirm = proto::ConfirmRequest {
            name: "web".to_owned(),
            ..Default::default()
        };
        services.confirm(confirm).await.unwrap();
        let web = services.get(named("web")).await.unwrap().into_inner();
        assert_eq!(web.dead_man, None);

        let rollback = proto::RollbackRequest {
            name: "web".to_owned(),
            reason: "errors".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            services
                .rollback(rollback)
                .await
                .unwrap()
                .into_inner()
                .green_share,
            0.0
        );
        assert_eq!(testbed.agent.last_context().reason, "errors");

        let promote = proto::PromoteRequest {
            name: "web".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            services
                .promote(promote)
                .await
                .unwrap()
                .into_inner()
                .green_share,
            1.0
        );

        let mut delete = proto::DeleteServiceRequest {
            name: "web".to_owned(),
            ..Default::default()
        };
        let refused = services.delete(delete.clone()).await.unwrap_err();
        assert_refused(
            &refused,
            Code::FailedPrecondition,
            Reason::Precondition,
            "3 flows on green",
        );
        delete.force = true;
        services.delete(delete).await.unwrap();
        let left = services
            .list(proto::ListServicesRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(left.services, []);
    });
    let writes = testbed.receipts.writes();
    assert!(
        writes.contains(&("delete", "PRECONDITION", 1)),
        "{writes:?}"
    );
    assert!(writes.contains(&("set_weight", "ok", 1)), "{writes:?}");
}

#[test]
fn the_caller_and_the_arrival_reach_the_agent() {
    let testbed = Testbed::with_web();
    let before = Instant::now();
    let mut services = testbed.services();
    testbed
        .runtime
        .block_on(services.set_weight(weight("1/3")))
        .unwrap();
    let context = testbed.agent.last_context();
    assert!(context.arrived >= before && context.arrived <= Instant::now());
    let pid = format!("pid {}", std::process::id());
    assert!(context.actor.ends_with(&pid), "{}", context.actor);
    assert_eq!(context.etag, None);
}

#[test]
fn plans_of_files_and_of_weights_change_nothing() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    testbed.runtime.block_on(async {
        let mut more = web("web");
        more.green = "60%".to_owned();
        let request = proto::PlanRequest {
            services: vec![web("new"), more],
            weight: None,
        };
        let plan = services.plan(request).await.unwrap().into_inner();
        let actions: Vec<_> = plan.changes.iter().map(|c| c.action.as_str()).collect();
        assert_eq!(actions, ["create", "update"]);
        assert_eq!(plan.changes[1].warnings.len(), 1);
        let request = proto::PlanRequest {
            services: Vec::new(),
            weight: Some(weight("10%")),
        };
        let plan = services.plan(request).await.unwrap().into_inner();
        assert_eq!(plan.changes[0].details, ["green: 5% -> 10%"]);
        let status = services
            .plan(proto::PlanRequest::default())
            .await
            .unwrap_err();
        assert_refused(
            &status,
            Code::InvalidArgument,
            Reason::Invalid,
            "give one of them",
        );
        let web = services.get(named("web")).await.unwrap().into_inner();
        assert_eq!(web.generation, 1);
    });
}

#[test]
fn first_flow_is_waited_for_and_its_absence_is_a_warning() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    let mut request = weight("10%");
    request.wait_first_flow_seconds = 0.05;
    let answer = testbed
        .runtime
        .block_on(services.set_weight(request.clone()));
    let receipt = answer.unwrap().into_inner();
    assert_eq!(receipt.first_flow, None);
    assert!(
        receipt.warnings[0].contains("generation 2 within 0.05 s"),
        "{receipt:?}"
    );

    request.wait_first_flow_seconds = 60.0;
    let agent = testbed.agent.clone();
    testbed.runtime.spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        agent.let_first_flow_come(3);
    });
    let answer = testbed.runtime.block_on(services.set_weight(request));
    let receipt = answer.unwrap().into_inner();
    assert_eq!(
        receipt.first_flow.unwrap(),
        proto::FirstFlow {
            generation: 3,
            after_ns: 1_200_000
        }
    );
    assert_eq!(receipt.warnings, Vec::<String>::new());
}

#[test]
fn flows_explanations_counters_and_the_agent_are_shown() {
    let testbed = Testbed::with_web();
    let mut services = testbed.services();
    testbed.runtime.block_on(async {
        let mut observe = proto::observe_client::ObserveClient::new(testbed.channel());
        let request = proto::ListFlowsRequest {
            service: "web".into(),
            pool: proto::Pool::Green.into(),
            ..Default::default()
        };
        let answer = observe.list_flows(request).await.unwrap().into_inner();
        assert_eq!(
            (answer.matched, answer.flows[0].client.as_str()),
            (1, "192.0.2.7:40002")
        );
        let request = proto::ListFlowsRequest {
            client: "nobody".into(),
            ..Default::default()
        };
        let status = observe.list_flows(request).await.unwrap_err();
        assert_refused(
            &status,
            Code::InvalidArgument,
            Reason::Invalid,
            "is no client",
        );

        let request = proto::ExplainRequest {
            name: "web".into(),
            client: "192.0.2.7".into(),
            client_port: 40_002,
        };
        let answer = services.explain(request).await.unwrap().into_inner();
        assert!(answer.pinned && answer.pool() == proto::Pool::Green);
        let request = proto::ExplainRequest {
            name: "web".into(),
            client: "192.0.2.7".into(),
            client_port: 70_000,
        };
        let status = services.explain(request).await.unwrap_err();
        assert_refused(
            &status,
            Code::InvalidArgument,
            Reason::Invalid,
            "1 to 65535",
        );

        let request = proto::StreamStatsRequest {
            service: "web".into(),
            interval_seconds: 0.1,
        };
        let mut stats = observe.stream_stats(request).await.unwrap().into_inner();
        for _ in 0..3 {
            let stats = stats.message().await.unwrap().unwrap();
            assert_eq!((stats.services.len(), stats.table.unwrap().live), (1, 100));
            assert!(
                stats
                    .verdicts
                    .iter()
                    .any(|v| v.drop && v.reason == "table_full")
            );
        }
        let request = proto::StreamStatsRequest {
            service: String::new(),
            interval_seconds: 0.01,
        };
        let status = observe.stream_stats(request).await.unwrap_err();
        assert_refused(
            &status,
            Code::InvalidArgument,
            Reason::Invalid,
            "0.1 or more",
        );

        let mut admin = proto::admin_client::AdminClient::new(testbed.channel());
        let info = admin
            .get_info(proto::GetInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.interfaces[0].why, "auto: veth");
        assert_eq!(info.pid, std::process::id() as i32);
        assert!(info.kernel.contains('.'), "{}", info.kernel);
    });
}

#[test]
fn health_and_reflection_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let testbed = Testbed::new();
    testbed.runtime.block_on(async {
        for service in ["", "shifter.v1.Services"] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let mut health = HealthClient::new(testbed.channel());
            assert_eq!(
                health.check(request).await.unwrap().into_inner().status,
                1,
                "{service}"
            );
        }
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(testbed.channel());
        let mut answers = reflection
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else {
            panic!("reflection answered {answer:?}");
        };
        let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
        for name in [
            "shifter.v1.Services",
            "shifter.v1.Observe",
            "shifter.v1.Admin",
            "grpc.health.v1.Health",
        ] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
    });
}

#[test]
fn the_health_of_the_store_follows_what_keeps_writes_from_being_stored() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let testbed = Testbed::new();
    let problem = Some("the disk is full");
    testbed.runtime.block_on(async {
        let mut health = HealthClient::new(testbed.channel());
        for (problem, expected) in [(None, 1), (problem, 2), (None, 1)] {
            testbed.agent.set_store_problem(problem);
            let mut status = 0;
            for _ in 0..100 {
                let request = HealthCheckRequest {
                    service: "shifter.store".to_owned(),
                };
                let answer = health.check(request).await;
                status = answer.map_or(0, |answer| answer.into_inner().status);
                if status == expected {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            assert_eq!(status, expected, "{problem:?}");
        }
    });
}

#[test]
fn the_audit_is_listed_newest_first_and_paged_by_number() {
    let testbed = Testbed::new();
    testbed.runtime.block_on(async {
        let mut admin = proto::admin_client::AdminClient::new(testbed.channel());
        let all = proto::ListAuditRequest::default();
        let records = admin.list_audit(all).await.unwrap().into_inner().records;
        let numbers: Vec<_> = records.iter().map(|record| record.number).collect();
        assert_eq!(numbers, [2, 1]);
        assert_eq!(records[0].at_unix_seconds, 1_800_000_061.25);
        assert_eq!(records[0].before, "blue live, green 0%");
        let older = proto::ListAuditRequest {
            before: 2,
            ..Default::default()
        };
        let records = admin.list_audit(older).await.unwrap().into_inner().records;
        assert_eq!((records.len(), records[0].action.as_str()), (1, "apply"));
    });
}

#[test]
fn five_thousand_services_fit_into_one_call() {
    let testbed = Testbed::new();
    let mut services = testbed.services();
    let all: Vec<_> = (0..5_000)
        .map(|i| web(&format!("service-{i:04}")))
        .collect();
    testbed.runtime.block_on(async {
        let request = proto::ApplyRequest {
            services: all,
            ..Default::default()
        };
        let answer = services.apply(request).await.unwrap().into_inner();
        assert_eq!(
            (answer.receipts.len(), answer.changes.len()),
            (5_000, 5_000)
        );
        let list = services
            .list(proto::ListServicesRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(list.services.len(), 5_000);
    });
}
