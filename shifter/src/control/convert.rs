//! Messages of the API as values of the model, and back.

use std::time::Duration;

use shifter_common::abi::ABI_VERSION;

use super::health;
use crate::{
    datapath::{Census, ProgramStatus, VerdictCount},
    model::{PoolName, Protocol, Weight},
    proto,
    reconcile::controller::{
        BackendView, Change, ControlError, Event, Explanation, FlowView, InfoView, Receipt,
        Recorded, RolloutView, ServiceView, ShareOf, WeightChange,
    },
    telemetry::is_drop,
};

mod cuts;
mod desired;
mod signals;

pub use desired::desired_message;
pub(super) use desired::{spec, without_prefixes};
use desired::{spec_message, state_message};

fn invalid(text: impl std::fmt::Display) -> ControlError {
    ControlError::Invalid(text.to_string())
}

/// Seconds of a request as a duration; `field` names it in the error.
pub(super) fn seconds(value: f64, field: &str) -> Result<Duration, ControlError> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| duration.as_secs() <= MAX_SECONDS)
        .ok_or_else(|| {
            invalid(format!(
                "{field} is {value}: write seconds from 0 to {MAX_SECONDS}"
            ))
        })
}

/// Longest span a request can name: a year.
const MAX_SECONDS: u64 = 366 * 86_400;

pub(super) fn audit(record: Recorded) -> proto::AuditRecord {
    let Recorded { number, audit } = record;
    proto::AuditRecord {
        number,
        at_unix_seconds: audit.at_unix_ms as f64 / 1e3,
        actor: audit.actor,
        request_id: audit.request_id,
        service: audit.service,
        action: audit.action,
        reason: audit.reason,
        before: audit.before,
        after: audit.after,
        generation: audit.generation,
    }
}

pub(super) fn event(event: Event) -> proto::Event {
    proto::Event {
        number: event.number,
        at_unix_seconds: event.at_unix_ms as f64 / 1e3,
        kind: event.kind,
        what: event.what,
        service: event.service,
        actor: event.actor,
        text: event.text,
        before: event.before,
        after: event.after,
        generation: event.generation,
        rollout: event.rollout,
    }
}

pub(super) fn pool(value: i32) -> Option<PoolName> {
    match proto::Pool::try_from(value) {
        Ok(proto::Pool::Blue) => Some(PoolName::Blue),
        Ok(proto::Pool::Green) => Some(PoolName::Green),
        Ok(proto::Pool::Unspecified) | Err(_) => None,
    }
}

const fn pool_message(pool: PoolName) -> proto::Pool {
    match pool {
        PoolName::Blue => proto::Pool::Blue,
        PoolName::Green => proto::Pool::Green,
    }
}

/// A change of weight.
pub(super) fn weight_change(
    message: &proto::SetWeightRequest,
) -> Result<WeightChange, ControlError> {
    use proto::set_weight_request::ShareOf as Asked;
    let weight = |text: &str| text.parse::<Weight>().map_err(invalid);
    let share = match &message.share_of {
        Some(Asked::Green(text)) => ShareOf::Green(weight(text)?),
        Some(Asked::Blue(text)) => ShareOf::Blue(weight(text)?),
        Some(Asked::Candidate(text)) => ShareOf::Candidate(weight(text)?),
        None => {
            return Err(invalid(
                "the request names no share: give one of green, blue and candidate",
            ));
        }
    };
    let revert_after = seconds(message.revert_after_seconds, "revert_after_seconds")?;
    Ok(WeightChange {
        service: message.name.clone(),
        share,
        revert_after: (!revert_after.is_zero()).then_some(revert_after),
        cohorts: message.cohorts_on,
    })
}

/// A rollout as the API shows it.
pub(super) fn rollout(view: RolloutView) -> proto::Rollout {
    let candidate = match view.candidate.as_str() {
        "blue" => proto::Pool::Blue,
        _ => proto::Pool::Green,
    };
    let at = |ms: i64| ms as f64 / 1e3;
    proto::Rollout {
        id: view.id,
        service: view.service,
        strategy: view.strategy,
        state: view.state,
        why: view.why,
        step: view.step as u32 + 1,
        steps: view.steps,
        weight: view.weight,
        candidate: candidate.into(),
        spent_seconds: view.spent_s,
        expected_seconds: view.expected_s,
        began_unix_seconds: at(view.began_unix_ms),
        ended_unix_seconds: view.ended_unix_ms.map_or(0.0, at),
        lease_seconds: view.lease_s,
        gates: view
            .gates
            .into_iter()
            .map(|gate| proto::RolloutGate {
                name: gate.name,
                verdict: gate.verdict.to_owned(),
                reason: gate.reason,
            })
            .collect(),
        notes: view
            .notes
            .into_iter()
            .map(|note| proto::RolloutNote {
                at_unix_seconds: at(note.at_unix_ms),
                kind: note.kind,
                text: note.text,
            })
            .collect(),
        actor: view.actor,
        reason: view.reason,
        over: view.is_over,
        has_report: view.has_report,
        description: view.spec,
    }
}

pub(super) fn service(view: &ServiceView) -> proto::Service {
    let observed = &view.observed;
    let [blue, green] = view.carried;
    let [idle_blue, idle_green] = view.idle;
    let counters = view.counters.map(|counters| proto::PoolCounters {
        new_flows: counters.new_flows,
        adopted_flows: counters.adopted_flows,
        forward_packets: counters.forward_packets,
        forward_bytes: counters.forward_bytes,
        reply_packets: counters.reply_packets,
        reply_bytes: counters.reply_bytes,
        unpinned_flows: counters.unpinned_flows,
        fragments: counters.fragments,
        cohort_flows: counters.cohort_flows,
    });
    proto::Service {
        spec: Some(spec_message(&view.spec)),
        etag: view.etag.clone(),
        generation: view.generation,
        weights: Some(proto::Weights {
            configured: view.spec.green.to_string(),
            configured_share: view.spec.green.share(),
            programmed_share: view.programmed_share,
            observed: Some(proto::Observed {
                window_seconds: observed.window_s,
                green: observed.green,
                total: observed.total,
                share: observed.interval.map(|(share, _, _)| share),
                low: observed.interval.map(|(_, low, _)| low),
                high: observed.interval.map(|(_, _, high)| high),
                adopted: observed.adopted,
                unpinned: observed.unpinned,
                cohort: observed.cohort,
            }),
            carried: Some(proto::Carried {
                blue,
                green,
                share: carried_share(view.carried),
                idle_blue,
                idle_green,
            }),
        }),
        dead_man: view.dead_man.map(|dead_man| proto::DeadMan {
            safe_share: dead_man.safe_share,
            remaining_seconds: dead_man.remaining_s,
            passed: dead_man.passed,
        }),
        backends: view.backends.iter().map(backend).collect(),
        first_flow: view.first_flow.map(first_flow),
        warnings: view.warnings.clone(),
        adoption: view.adoption.to_owned(),
        blue_counters: Some(counters[0]),
        green_counters: Some(counters[1]),
        blue_signals: Some(signals::message(&view.signals[0])),
        green_signals: Some(signals::message(&view.signals[1])),
        breaker: view.breaker.as_ref().map(signals::status),
        cohorts: view.cohorts.to_owned(),
        cuts: view.cuts.iter().map(cuts::status).collect(),
        ended_flows: view
            .ended_flows
            .into_iter()
            .map(|(cause, flows)| (cause.to_owned(), flows))
            .collect(),
    }
}

/// Green's share of live flows `[blue, green]`; `None` without flows.
fn carried_share([blue, green]: [u64; 2]) -> Option<f64> {
    let total = blue + green;
    (total > 0).then(|| green as f64 / total as f64)
}

fn backend(view: &BackendView) -> proto::BackendStatus {
    proto::BackendStatus {
        address: view.spec.addr.to_string(),
        pool: pool_message(view.pool).into(),
        weight: view.spec.weight,
        state: state_message(view.spec.state).into(),
        health: view.health.to_owned(),
        placement: view.placement.to_owned(),
        live_flows: view.live_flows,
        new_flows: view.counters.flows,
        forward_packets: view.counters.forward_packets,
        forward_bytes: view.counters.forward_bytes,
        reply_packets: view.counters.reply_packets,
        reply_bytes: view.counters.reply_bytes,
        warnings: view.warnings.clone(),
        id: u32::from(view.id),
        checks: view.checks.as_ref().map(health::checks),
    }
}

pub(super) fn first_flow((generation, after_ns): (u32, u64)) -> proto::FirstFlow {
    proto::FirstFlow {
        generation,
        after_ns,
    }
}

pub(super) fn receipt(receipt: Receipt) -> proto::Receipt {
    proto::Receipt {
        service: receipt.service,
        generation: receipt.generation,
        moved_share: receipt.moved_share,
        programmed_ns: receipt.programmed_ns,
        total_ns: receipt.total_ns,
        warnings: receipt.warnings,
        etag: receipt.etag,
        unchanged: receipt.unchanged,
        first_flow: None,
        green_share: receipt.green_share,
    }
}

pub(super) fn change(change: Change) -> proto::Change {
    proto::Change {
        service: change.service,
        action: change.action.to_owned(),
        details: change.details,
        moved_share: change.moved_share,
        flows_that_stay: change.flows_that_stay,
        warnings: change.warnings,
    }
}

pub(super) fn flow(view: FlowView) -> proto::Flow {
    let row = view.row;
    proto::Flow {
        service: view.service,
        client: row.client.to_string(),
        protocol: match row.protocol {
            Protocol::Tcp => proto::Protocol::Tcp,
            Protocol::Udp => proto::Protocol::Udp,
        }
        .into(),
        pool: pool_message(row.pool).into(),
        backend: view.backend.to_string(),
        state: row.state.to_owned(),
        proven: row.proven,
        adopted: row.adopted,
        generation: row.generation,
        age_seconds: row.age_s,
        idle_seconds: row.idle_s,
        bytes: row.bytes,
        cohort: row.cohort,
    }
}

pub(super) fn explanation(explanation: Explanation) -> proto::ExplainResponse {
    proto::ExplainResponse {
        pool: pool_message(explanation.pool).into(),
        backend: explanation.backend.to_string(),
        pinned: explanation.pinned,
        flow: explanation.flow.map(flow),
        why: explanation.why,
        cohort: explanation.cohort.unwrap_or_default(),
    }
}

pub(super) fn verdicts(info: &InfoView) -> Vec<proto::VerdictCount> {
    let lately = |count: &VerdictCount| info.dropped_lately.get(&(count.hook, count.number));
    info.verdicts
        .iter()
        .map(|count| proto::VerdictCount {
            hook: count.hook.to_owned(),
            number: count.number,
            reason: count.reason.to_owned(),
            packets: count.packets,
            drop: is_drop(count.number),
            recent_packets: lately(count).copied().unwrap_or(0),
        })
        .collect()
}

pub(super) fn table(census: &Census, capacity: u64, memory_bytes: u64) -> proto::Table {
    proto::Table {
        capacity,
        live: census.live,
        proven: census.proven,
        unproven: census.unproven,
        closing: census.closing,
        memory_bytes,
        evicted: census.evicted.values().sum(),
    }
}

fn program(program: ProgramStatus) -> proto::Program {
    proto::Program {
        direction: program.direction.to_owned(),
        at: program.at.to_owned(),
        id: program.id,
        name: program.name,
        tag: program.tag,
        state: program.state.word().to_owned(),
    }
}

pub(super) fn info(view: InfoView, kernel: String) -> proto::Info {
    let verdicts = verdicts(&view);
    proto::Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi_version: ABI_VERSION,
        tag: view.tag,
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        uptime_seconds: view.uptime_s,
        interfaces: view
            .hooks
            .into_iter()
            .map(|hook| proto::Interface {
                name: hook.interface,
                index: hook.ifindex,
                hook: hook.hook,
                egress: hook.egress,
                why: hook.why,
                tag: hook.tag,
                up: hook.up,
                programs: hook.programs.into_iter().map(program).collect(),
            })
            .collect(),
        limits: view
            .limits
            .iter()
            .map(|limit| proto::Limit {
                name: limit.name.to_owned(),
                used: limit.used,
                limit: limit.limit,
                memory_bytes: limit.memory_bytes,
            })
            .collect(),
        table: Some(table(
            &view.census,
            view.flow_capacity,
            view.table_memory_bytes,
        )),
        verdicts,
        warnings: view.warnings,
        state_dir: view.state_dir,
        kernel,
    }
}
