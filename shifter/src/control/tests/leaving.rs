//! Writes while the agent hands over, and what its health says.

use std::time::Duration;

use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::assert_refused;
use crate::{
    control::testbed::Testbed,
    proto::{
        GetServiceRequest, RollbackRequest, SetWeightRequest, error::Reason,
        set_weight_request::ShareOf,
    },
};

fn shift(green: &str) -> SetWeightRequest {
    SetWeightRequest {
        name: "web".to_owned(),
        share_of: Some(ShareOf::Green(green.to_owned())),
        ..Default::default()
    }
}

#[test]
fn writes_wait_while_the_gate_is_held_and_reads_do_not() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        testbed.gate.hold();
        let mut services = testbed.services();
        let write = tokio::spawn(async move { services.set_weight(shift("9%")).await });
        let name = "web".to_owned();
        let read = testbed.services().get(GetServiceRequest { name }).await;
        assert!(read.is_ok(), "{read:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!write.is_finished());
        testbed.gate.quiet().await;
        testbed.gate.release();
        write.await.unwrap().unwrap();
    });
}

#[test]
fn writes_of_an_agent_that_goes_are_sent_away_and_change_nothing() {
    let testbed = Testbed::with_web();
    testbed.runtime.block_on(async {
        testbed.gate.hold();
        let mut services = testbed.services();
        let waits = tokio::spawn(async move { services.set_weight(shift("9%")).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        testbed.gate.close();
        let rollback = RollbackRequest {
            name: "web".to_owned(),
            ..Default::default()
        };
        let sent_away = [
            waits.await.unwrap().unwrap_err(),
            testbed.services().rollback(rollback).await.unwrap_err(),
        ];
        for status in sent_away {
            let helps = "send the request again";
            assert_refused(&status, Code::Unavailable, Reason::AgentLeaving, helps);
        }
        let name = "web".to_owned();
        let web = testbed.services().get(GetServiceRequest { name }).await;
        let weights = web.unwrap().into_inner().weights.unwrap();
        assert_eq!(weights.configured, "5%");
    });
}

#[test]
fn health_tells_of_each_task_of_the_agent() {
    let testbed = Testbed::new();
    testbed.runtime.block_on(async {
        let channel = testbed.channel();
        let check = |name: &str| {
            let (mut health, service) = (HealthClient::new(channel.clone()), name.to_owned());
            async move { health.check(HealthCheckRequest { service }).await }
        };
        let is = |status: ServingStatus, answer: Result<tonic::Response<_>, _>| {
            let answer: tonic_health::pb::HealthCheckResponse = answer.unwrap().into_inner();
            answer.status() == status
        };
        assert!(is(ServingStatus::Serving, check("maintain").await));
        assert!(check("nothing").await.is_err());
        testbed.components.send_modify(|components| {
            components.insert("maintain", false);
        });
        while !is(ServingStatus::NotServing, check("maintain").await) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(is(ServingStatus::Serving, check("").await));
    });
}
