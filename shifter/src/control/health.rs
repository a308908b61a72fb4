//! Messages about health checks as values of the model, and back.

use crate::{
    model::{
        HealthSpec,
        health::{HealthFault, Written},
    },
    proto,
    reconcile::controller::Standing,
};

/// The checks that a request asks for.
pub(super) fn spec(message: Option<&proto::HealthSpec>) -> Result<Option<HealthSpec>, HealthFault> {
    let Some(message) = message.cloned() else {
        return Ok(None);
    };
    let text = |text: String| (!text.is_empty()).then_some(text);
    let number = |number: u32| (number != 0).then_some(number.into());
    let flag = |flag: bool| flag.then_some(true);
    let mut headers: Vec<(String, String)> = message.headers.into_iter().collect();
    headers.sort();
    let written = Written {
        kind: text(message.r#type),
        port: number(message.port),
        path: text(message.path),
        status: text(message.status),
        host: text(message.host),
        body_contains: text(message.body_contains),
        headers,
        service: text(message.service),
        tls: flag(message.tls),
        ca: text(message.ca),
        insecure: flag(message.insecure),
        file: text(message.file),
        interval: text(message.interval),
        timeout: text(message.timeout),
        rise: number(message.rise),
        fall: number(message.fall),
        min_healthy: message.min_healthy.map(u64::from),
        on_pool_down: text(message.on_pool_down),
        on_down: text(message.on_down),
    };
    written.read().map(Some)
}

pub(super) fn message(spec: &HealthSpec) -> proto::HealthSpec {
    let written = spec.write();
    let number = |number: Option<u64>| number.unwrap_or(0) as u32;
    proto::HealthSpec {
        r#type: written.kind.unwrap_or_default(),
        port: number(written.port),
        path: written.path.unwrap_or_default(),
        status: written.status.unwrap_or_default(),
        host: written.host.unwrap_or_default(),
        body_contains: written.body_contains.unwrap_or_default(),
        headers: written.headers.into_iter().collect(),
        service: written.service.unwrap_or_default(),
        tls: written.tls.unwrap_or(false),
        ca: written.ca.unwrap_or_default(),
        insecure: written.insecure.unwrap_or(false),
        file: written.file.unwrap_or_default(),
        interval: written.interval.unwrap_or_default(),
        timeout: written.timeout.unwrap_or_default(),
        rise: number(written.rise),
        fall: number(written.fall),
        min_healthy: Some(number(written.min_healthy)),
        on_pool_down: written.on_pool_down.unwrap_or_default(),
        on_down: written.on_down.unwrap_or_default(),
    }
}

pub(super) fn checks(standing: &Standing) -> proto::BackendHealth {
    proto::BackendHealth {
        since_unix_seconds: standing.since_unix_ms as f64 / 1e3,
        reason: standing.reason.clone(),
        passed: standing.passed,
        failed: standing.failed(),
        took_seconds: standing.took.as_secs_f64(),
    }
}
