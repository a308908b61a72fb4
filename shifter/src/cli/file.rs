//! Services from a file: TOML, or JSON with the same keys.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::proto;

/// A file of services. The agent's own sections may stand beside them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    service: Vec<Service>,
    #[serde(default, rename = "agent")]
    _agent: Ignored,
    #[serde(default, rename = "api")]
    _api: Ignored,
    #[serde(default, rename = "metrics")]
    _metrics: Ignored,
}

type Ignored = Option<serde::de::IgnoredAny>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: String,
    vip: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    live: String,
    #[serde(default)]
    green: String,
    #[serde(default)]
    affinity: String,
    #[serde(default)]
    seed: String,
    #[serde(default)]
    vip_routed: bool,
    pools: Pools,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pools {
    #[serde(default)]
    blue: Vec<Backend>,
    #[serde(default)]
    green: Vec<Backend>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Backend {
    Address(String),
    Whole(WholeBackend),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeBackend {
    addr: String,
    #[serde(default)]
    weight: u32,
    #[serde(default)]
    state: String,
}

/// Reads the services of a file; `-` is standard input.
pub(super) fn read_services(path: &Path) -> anyhow::Result<Vec<proto::ServiceSpec>> {
    let text = match path.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json")
        || (path.as_os_str() == "-" && text.trim_start().starts_with('{'));
    let file: File = match json {
        true => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
        false => toml::from_str(&text).with_context(|| path.display().to_string())?,
    };
    let service = file.service;
    if service.is_empty() {
        bail!(
            "{} has no [[service]]: there is nothing to apply",
            path.display()
        );
    }
    service.into_iter().map(message).collect()
}

fn message(service: Service) -> anyhow::Result<proto::ServiceSpec> {
    let live = match service.live.as_str() {
        "" => proto::Pool::Unspecified,
        "blue" => proto::Pool::Blue,
        "green" => proto::Pool::Green,
        other => bail!(
            "service {:?}: live is {other:?}: write \"blue\" or \"green\"",
            service.name
        ),
    };
    let backends = |pool: Vec<Backend>| pool.into_iter().map(backend).collect::<Result<_, _>>();
    Ok(proto::ServiceSpec {
        name: service.name,
        vip: service.vip,
        mode: service.mode,
        live: live.into(),
        green: service.green,
        affinity: service.affinity,
        seed: service.seed,
        vip_routed: service.vip_routed,
        blue: backends(service.pools.blue)?,
        green_pool: backends(service.pools.green)?,
    })
}

fn backend(backend: Backend) -> anyhow::Result<proto::BackendSpec> {
    let whole = match backend {
        Backend::Address(addr) => WholeBackend {
            addr,
            weight: 1,
            state: String::new(),
        },
        Backend::Whole(whole) => whole,
    };
    let state = match whole.state.as_str() {
        "" | "ready" => proto::BackendState::Ready,
        "drain" => proto::BackendState::Drain,
        "maint" => proto::BackendState::Maint,
        other => bail!(
            "backend {}: state is {other:?}: write \"ready\", \"drain\" or \"maint\"",
            whole.addr
        ),
    };
    Ok(proto::BackendSpec {
        address: whole.addr,
        weight: whole.weight,
        state: state.into(),
    })
}

/// What a request with this many services may take beyond the timeout.
pub(super) fn more_time(services: usize) -> std::time::Duration {
    std::time::Duration::from_millis(10) * u32::try_from(services).unwrap_or(u32::MAX)
}
