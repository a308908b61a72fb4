//! Services as clients ask for them.

use std::str::FromStr;

use super::{health, invalid, pool, pool_message, signals};
use crate::{
    model::{
        BackendSpec, BackendState, CohortSpec, PoolName, Prefix, Seed, ServiceSpec,
        text::{TextError, parse_backend_addr},
    },
    proto,
    reconcile::controller::ControlError,
};

pub(super) const fn state_message(state: BackendState) -> proto::BackendState {
    match state {
        BackendState::Ready => proto::BackendState::Ready,
        BackendState::Drain => proto::BackendState::Drain,
        BackendState::Maint => proto::BackendState::Maint,
    }
}

/// A desired service. Errors name the service and the field.
pub(in crate::control) fn spec(message: &proto::ServiceSpec) -> Result<ServiceSpec, ControlError> {
    let name = &message.name;
    let wrong = |field: &'static str| {
        move |text: String| invalid(format!("service {name:?}, {field}: {text}"))
    };
    let live = pool(message.live).unwrap_or(PoolName::Blue);
    let green = match message.green.as_str() {
        "" => live.all(),
        text => text
            .parse()
            .map_err(|error: crate::model::weight::WeightError| {
                wrong("green")(error.to_string())
            })?,
    };
    Ok(ServiceSpec {
        name: name.clone(),
        vip: message
            .vip
            .parse()
            .map_err(|e: TextError| wrong("vip")(e.to_string()))?,
        mode: optional(&message.mode).map_err(wrong("mode"))?,
        live,
        green,
        split: optional(&message.split).map_err(wrong("split"))?,
        affinity: optional(&message.affinity).map_err(wrong("affinity"))?,
        seed: match message.seed.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|e: TextError| wrong("seed")(e.to_string()))?,
            ),
        },
        vip_routed: message.vip_routed,
        blue_pool: backends(&message.blue).map_err(wrong("pools.blue"))?,
        green_pool: backends(&message.green_pool).map_err(wrong("pools.green"))?,
        breaker: (message.breaker.as_ref())
            .map(signals::breaker)
            .transpose()
            .map_err(wrong("breaker"))?,
        cohorts: cohorts(&message.cohorts).map_err(wrong("cohorts"))?,
        cohorts_on: !message.cohorts_off,
        health: health::spec(message.health.as_ref())
            .map_err(|fault| invalid(format!("service {name:?}, {fault}")))?,
        rollout: match message.rollout.as_str() {
            "" => None,
            text => Some(
                crate::rollout::spec::from_json(text)
                    .map_err(|error| wrong("rollout")(error.to_string()))?,
            ),
        },
    })
}

/// The default where the message says nothing.
fn optional<T: Default + FromStr<Err = TextError>>(text: &str) -> Result<T, String> {
    match text {
        "" => Ok(T::default()),
        text => text.parse().map_err(|error: TextError| error.to_string()),
    }
}

fn backends(messages: &[proto::BackendSpec]) -> Result<Vec<BackendSpec>, String> {
    messages
        .iter()
        .map(|message| {
            Ok(BackendSpec {
                addr: parse_backend_addr(&message.address).map_err(|error| error.to_string())?,
                weight: message.weight.max(1),
                state: match message.state() {
                    proto::BackendState::Unspecified | proto::BackendState::Ready => {
                        BackendState::Ready
                    }
                    proto::BackendState::Drain => BackendState::Drain,
                    proto::BackendState::Maint => BackendState::Maint,
                },
            })
        })
        .collect()
}

fn cohorts(messages: &[proto::Cohort]) -> Result<Vec<CohortSpec>, String> {
    messages
        .iter()
        .map(|message| {
            let prefixes: Result<Vec<Prefix>, _> =
                message.prefixes.iter().map(|text| text.parse()).collect();
            Ok(CohortSpec {
                name: message.name.clone(),
                pool: pool(message.pool),
                prefixes: prefixes
                    .map_err(|error| format!("cohort {:?}: {error}", message.name))?
                    .into(),
            })
        })
        .collect()
}

fn cohort_message(cohort: &CohortSpec, vip_is_ipv4: bool) -> proto::Cohort {
    proto::Cohort {
        name: cohort.name.clone(),
        pool: cohort
            .pool
            .map_or(proto::Pool::Unspecified, pool_message)
            .into(),
        prefixes: cohort.prefixes.iter().map(Prefix::to_string).collect(),
        prefix_count: cohort.prefixes.len() as u32,
        usable_count: cohort.counts(vip_is_ipv4).0 as u32,
    }
}

/// What is asked for again and again goes without the prefixes of cohorts,
/// which may be thousands: `Get` tells them.
pub(in crate::control) fn without_prefixes(mut service: proto::Service) -> proto::Service {
    for cohort in service.spec.iter_mut().flat_map(|spec| &mut spec.cohorts) {
        cohort.prefixes = Vec::new();
    }
    service
}

/// What a client asks for: with the seed, which answers never show.
pub fn desired_message(spec: &ServiceSpec) -> proto::ServiceSpec {
    proto::ServiceSpec {
        seed: spec.seed.as_ref().map(Seed::reveal).unwrap_or_default(),
        ..spec_message(spec)
    }
}

pub(super) fn spec_message(spec: &ServiceSpec) -> proto::ServiceSpec {
    let backends = |pool: &[BackendSpec]| {
        pool.iter()
            .map(|backend| proto::BackendSpec {
                address: backend.addr.to_string(),
                weight: backend.weight,
                state: state_message(backend.state).into(),
            })
            .collect()
    };
    proto::ServiceSpec {
        name: spec.name.clone(),
        vip: spec.vip.to_string(),
        mode: spec.mode.to_string(),
        live: pool_message(spec.live).into(),
        green: spec.green.to_string(),
        split: spec.split.to_string(),
        affinity: spec.affinity.to_string(),
        seed: String::new(),
        vip_routed: spec.vip_routed,
        blue: backends(&spec.blue_pool),
        green_pool: backends(&spec.green_pool),
        breaker: spec.breaker.as_ref().map(signals::breaker_message),
        cohorts: spec
            .cohorts
            .iter()
            .map(|cohort| cohort_message(cohort, spec.vip.addr.is_ipv4()))
            .collect(),
        cohorts_off: !spec.cohorts_on,
        health: spec.health.as_ref().map(health::message),
        rollout: spec
            .rollout
            .as_ref()
            .map_or(String::new(), |r| r.source.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testbed::web;

    #[test]
    fn without_a_share_the_live_pool_has_everything() {
        for (live, green) in [
            (proto::Pool::Unspecified, "0%"),
            (proto::Pool::Blue, "0%"),
            (proto::Pool::Green, "100%"),
        ] {
            let message = proto::ServiceSpec {
                live: live.into(),
                green: String::new(),
                ..web("web")
            };
            let spec = spec(&message).unwrap();
            assert_eq!(spec.green.to_string(), green, "{live:?}");
        }
    }
}
