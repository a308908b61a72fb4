//! What a plan says of a service that changes.

use std::{collections::HashMap, net::SocketAddr};

use super::{
    entry::{Entry, adoption, adoption_meaning},
    plan::Step,
};
use crate::model::{BackendSpec, PoolName, ServiceSpec, cohort, health};

/// What changes, one line each.
pub(super) fn details(entry: Option<&Entry>, step: &Step) -> Vec<String> {
    let spec = &step.spec;
    let mut lines = Vec::new();
    match entry {
        None => {
            lines.push(format!("vip: {}", spec.vip));
            lines.push(format!("live: {}", spec.live));
            lines.push(format!("green: {}", spec.green));
            lines.push(format!("split: {}", spec.split));
            lines.push(format!("affinity: {}", spec.affinity));
            if let Some(breaker) = &spec.breaker {
                lines.push(format!("breaker: {breaker}"));
            }
        }
        Some(entry) => {
            let old = &entry.spec;
            let mut line = |what: &str, before: String, after: String| {
                if before != after {
                    lines.push(format!("{what}: {before} -> {after}"));
                }
            };
            line("live", old.live.to_string(), spec.live.to_string());
            line("green", old.green.to_string(), spec.green.to_string());
            line("split", old.split.to_string(), spec.split.to_string());
            line(
                "affinity",
                old.affinity.to_string(),
                spec.affinity.to_string(),
            );
            line(
                "vip_routed",
                old.vip_routed.to_string(),
                spec.vip_routed.to_string(),
            );
            let told = |spec: &ServiceSpec| {
                let breaker = spec.breaker.as_ref();
                breaker.map_or_else(|| "none".to_owned(), ToString::to_string)
            };
            line("breaker", told(old), told(spec));
            if old.seed != spec.seed {
                lines.push("seed: changed".to_owned());
            }
            if entry.dead_man.is_some() {
                lines.push("the armed dead-man is taken out".to_owned());
            }
        }
    }
    let before = entry.and_then(|e| e.spec.health.as_ref());
    lines.extend(health::changes(before, spec.health.as_ref()));
    for pool in [PoolName::Blue, PoolName::Green] {
        let before = entry.map_or(&[][..], |e| e.spec.pool(pool));
        pool_details(pool, before, spec.pool(pool), &mut lines);
    }
    let mut none = spec.clone();
    none.cohorts = Vec::new();
    cohort::details(entry.map_or(&none, |e| &e.spec), spec, &mut lines);
    let case = adoption(spec, step.translated);
    if entry.is_none_or(|e| e.adoption() != case) {
        lines.push(format!("adoption: {case} ({})", adoption_meaning(case)));
    }
    lines
}

fn pool_details(
    pool: PoolName,
    before: &[BackendSpec],
    after: &[BackendSpec],
    lines: &mut Vec<String>,
) {
    let old: HashMap<SocketAddr, &BackendSpec> = before.iter().map(|b| (b.addr, b)).collect();
    let new: HashMap<SocketAddr, &BackendSpec> = after.iter().map(|b| (b.addr, b)).collect();
    for backend in after {
        let addr = backend.addr;
        match old.get(&addr) {
            None => lines.push(format!("{pool}: + {addr}")),
            Some(was) => {
                if was.weight != backend.weight {
                    let (from, to) = (was.weight, backend.weight);
                    lines.push(format!("{pool}: {addr} weight {from} -> {to}"));
                }
                if was.state != backend.state {
                    let (from, to) = (was.state, backend.state);
                    lines.push(format!("{pool}: {addr} state {from} -> {to}"));
                }
            }
        }
    }
    for backend in before.iter().filter(|b| !new.contains_key(&b.addr)) {
        lines.push(format!("{pool}: - {}", backend.addr));
    }
}
