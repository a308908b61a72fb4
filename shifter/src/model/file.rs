//! Services from a file: TOML or JSON, refused whole at the first fault.

use super::{
    Affinity, BackendSpec, BackendState, Mode, PoolName, ServiceSpec, SplitMethod,
    breaker::Breaker,
    cohort_file::{self, CohortPlaces, ReadFile},
    file_table::{Table, place},
    health_file::{HealthPlaces, health},
    text,
    tree::{self, Entry, Fault, Node, Value},
    validate::{self, Place, SpecError},
};
use crate::rollout;

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Toml,
    Json,
}

impl Format {
    /// By the name's ending; TOML unless it says `.json`.
    pub fn of(file_name: &str) -> Self {
        if file_name.ends_with(".json") {
            Self::Json
        } else {
            Self::Toml
        }
    }
}

/// Why a file is refused, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}:{column}: {text}")]
pub struct FileError {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub text: String,
}

/// Reads `[[service]]` tables and checks them, alone and against each other.
pub fn parse_services(
    text: &str,
    file_name: &str,
    format: Format,
) -> Result<Vec<ServiceSpec>, FileError> {
    parse_services_with(text, file_name, format, &mut no_file)
}

/// As [`parse_services`], where files that this one names are read by `read`.
pub fn parse_services_with(
    text: &str,
    file_name: &str,
    format: Format,
    read_file: &mut ReadFile<'_>,
) -> Result<Vec<ServiceSpec>, FileError> {
    read(text, format)
        .and_then(|root| {
            // The agent's own file may be applied too.
            let sections = ["service", "agent", "api", "metrics", "gates"];
            let table = Table::of(&root, "the file", &sections)?;
            match table.find("service") {
                Some(entry) => services(entry, read_file),
                None => Err(Fault::new(
                    0,
                    "there is no service in this file: write a [[service]] table",
                )),
            }
        })
        .map_err(|fault| locate(text, file_name, fault))
}

/// Where no other file is read.
pub(super) fn no_file(_: &str) -> Result<String, String> {
    Err("no file is read here: write the prefixes themselves".to_owned())
}

/// Reads a text into a tree.
pub(crate) fn read(text: &str, format: Format) -> Result<Node, Fault> {
    match format {
        Format::Toml => tree::from_toml(text),
        Format::Json => super::json::from_json(text),
    }
}

pub(crate) fn locate(text: &str, file_name: &str, fault: Fault) -> FileError {
    let (line, column) = tree::line_column(text, fault.at);
    FileError {
        file: file_name.to_owned(),
        line,
        column,
        text: fault.text,
    }
}

/// One service as `spec_to_json` wrote it, without the checks of `validate`.
pub fn spec_from_json(text: &str) -> Result<ServiceSpec, FileError> {
    super::json::from_json(text)
        .and_then(|node| service(&node, &mut no_file).map(|(spec, _)| spec))
        .map_err(|fault| locate(text, "stored service", fault))
}

/// One service with its seed, for the store.
pub fn spec_to_json(spec: &ServiceSpec) -> String {
    let pool = |backends: &[BackendSpec]| -> Vec<serde_json::Value> {
        backends
            .iter()
            .map(|b| {
                serde_json::json!({
                    "addr": b.addr.to_string(), "weight": b.weight, "state": b.state.to_string(),
                })
            })
            .collect()
    };
    let mut json = serde_json::json!({
        "name": spec.name,
        "vip": spec.vip.to_string(),
        "mode": spec.mode.to_string(),
        "live": spec.live.to_string(),
        "green": spec.green.to_string(),
        "affinity": spec.affinity.to_string(),
        "vip_routed": spec.vip_routed,
        "pools": { "blue": pool(&spec.blue_pool), "green": pool(&spec.green_pool) },
    });
    // Written only where it is chosen: what was stored before there was a
    // choice keeps its hash.
    if spec.split != SplitMethod::Hash {
        json["split"] = spec.split.to_string().into();
    }
    if let Some(breaker) = spec.breaker {
        json["breaker"] = breaker.to_json();
    }
    if !spec.cohorts.is_empty() {
        json["cohort"] = spec.cohorts.iter().map(cohort_json).collect();
    }
    if !spec.cohorts_on {
        json["cohorts_on"] = false.into();
    }
    if let Some(rollout) = &spec.rollout {
        let source: Option<serde_json::Value> = serde_json::from_str(&rollout.source).ok();
        json["rollout"] = source.unwrap_or_default();
    }
    if let Some(seed) = spec.seed {
        json["seed"] = seed.reveal().into();
    }
    if let Some(health) = &spec.health {
        let pairs = health.write().pairs().into_iter();
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value));
        json["health"] = serde_json::Value::Object(pairs.collect());
    }
    json.to_string()
}

fn cohort_json(cohort: &super::CohortSpec) -> serde_json::Value {
    let prefixes: Vec<String> = cohort.prefixes.iter().map(|p| p.to_string()).collect();
    let mut json = serde_json::json!({ "name": cohort.name, "prefixes": prefixes });
    if let Some(pool) = cohort.pool {
        json["pool"] = pool.to_string().into();
    }
    json
}

/// Reads and checks the list under the key `service`.
pub(super) fn services(
    entry: &Entry,
    read_file: &mut ReadFile<'_>,
) -> Result<Vec<ServiceSpec>, Fault> {
    let Value::Array(items) = &entry.node.value else {
        return Err(Fault::new(
            entry.at,
            format!(
                "service is {}: write [[service]], a list of tables",
                entry.node.value.kind()
            ),
        ));
    };
    let mut specs = Vec::with_capacity(items.len());
    let mut places = Vec::with_capacity(items.len());
    for item in items {
        let (spec, place) = service(item, read_file)?;
        validate::service(&spec).map_err(|error| place.fault(&error))?;
        specs.push(spec);
        places.push(place);
    }
    validate::set(&specs).map_err(|(index, error)| places[index].fault(&error))?;
    Ok(specs)
}

/// Where the parts of a service stand in the file.
struct Places {
    service: usize,
    name: usize,
    vip: usize,
    green: Option<usize>,
    split: Option<usize>,
    affinity: Option<usize>,
    breaker: Option<usize>,
    pools: [Option<usize>; 2],
    backends: [Vec<usize>; 2],
    cohorts: CohortPlaces,
    health: Option<HealthPlaces>,
}

impl Places {
    fn fault(&self, error: &SpecError) -> Fault {
        let at = match error.place {
            Place::Name => Some(self.name),
            Place::Vip => Some(self.vip),
            Place::Green => self.green,
            Place::Split => self.split,
            Place::Affinity => self.affinity,
            Place::Breaker => self.breaker,
            Place::Pool(pool) => self.pools[pool.index()],
            Place::Backend(pool, index) => self.backends[pool.index()].get(index).copied(),
            Place::Cohorts(place) => self.cohorts.of(place),
            Place::Health(key) => self.health.as_ref().map(|places| places.at(key)),
        };
        Fault::new(at.unwrap_or(self.service), error.to_string())
    }
}

const SERVICE_KEYS: [&str; 15] = [
    "name",
    "vip",
    "mode",
    "live",
    "green",
    "split",
    "affinity",
    "seed",
    "vip_routed",
    "pools",
    "breaker",
    "cohort",
    "cohorts_on",
    "health",
    "rollout",
];

fn service(node: &Node, read_file: &mut ReadFile<'_>) -> Result<(ServiceSpec, Places), Fault> {
    let table = Table::of(node, "a service", &SERVICE_KEYS)?;
    let (name, name_at) = table.need("name", "a service's name, as name = \"web\"")?;
    let (vip, vip_at) = table.need(
        "vip",
        "where clients connect to, as vip = \"203.0.113.10:443/tcp\"",
    )?;
    let live = table.parse("live")?.unwrap_or(PoolName::Blue);
    let Some(pools) = table.find("pools") else {
        return Err(Fault::new(
            node.at,
            format!(
                "service {name:?} has no pools: write pools = {{ blue = [\"10.0.0.11:8443\"], green = [] }}"
            ),
        ));
    };
    refuse_service_keys(&pools.node)?;
    let pools = Table::of(&pools.node, "pools", &["blue", "green"])?;
    let (blue_pool, blue_places) = pool(&pools, "blue")?;
    let (green_pool, green_places) = pool(&pools, "green")?;
    let (cohorts, cohort_places) = cohort_file::parse(&table, read_file)?;
    let health = table.find("health").map(health).transpose()?;
    let (health, health_places) = health.unzip();
    let spec = ServiceSpec {
        name: name.to_owned(),
        vip: vip.parse().map_err(|e| place(vip_at, e))?,
        mode: table.parse("mode")?.unwrap_or(Mode::Nat),
        live,
        green: table.parse("green")?.unwrap_or(live.all()),
        split: table.parse("split")?.unwrap_or_default(),
        affinity: table.parse("affinity")?.unwrap_or(Affinity::Flow),
        seed: table.parse("seed")?,
        vip_routed: table.boolean("vip_routed")?.unwrap_or(false),
        blue_pool,
        green_pool,
        breaker: table
            .find("breaker")
            .map(|entry| Breaker::read(&entry.node))
            .transpose()?,
        cohorts,
        cohorts_on: table.boolean("cohorts_on")?.unwrap_or(true),
        health,
        rollout: table
            .find("rollout")
            .map(|entry| rollout::spec::read(&entry.node))
            .transpose()?,
    };
    let at = |key: &str| table.find(key).map(|entry| entry.node.at);
    let places = Places {
        service: node.at,
        name: name_at,
        vip: vip_at,
        green: at("green"),
        split: at("split"),
        affinity: at("affinity"),
        breaker: at("breaker"),
        pools: ["blue", "green"].map(|key| pools.find(key).map(|entry| entry.node.at)),
        backends: [blue_places, green_places],
        cohorts: cohort_places,
        health: health_places,
    };
    Ok((spec, places))
}

fn pool(pools: &Table<'_>, key: &str) -> Result<(Vec<BackendSpec>, Vec<usize>), Fault> {
    let Some(entry) = pools.find(key) else {
        return Ok(Default::default());
    };
    let Value::Array(items) = &entry.node.value else {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "{key} is {}: write a list of backends, as [\"10.0.0.11:8443\"]",
                entry.node.value.kind()
            ),
        ));
    };
    let mut backends = Vec::with_capacity(items.len());
    for item in items {
        backends.push(backend(item)?);
    }
    Ok((backends, items.iter().map(|item| item.at).collect()))
}

fn backend(node: &Node) -> Result<BackendSpec, Fault> {
    if let Value::String(addr) = &node.value {
        return Ok(BackendSpec {
            addr: text::parse_backend_addr(addr).map_err(|e| place(node.at, e))?,
            weight: 1,
            state: BackendState::Ready,
        });
    }
    let table = Table::of(node, "a backend", &["addr", "weight", "state"])?;
    let (addr, at) = table.need("addr", "its address, as addr = \"10.0.0.12:8443\"")?;
    let weight = table.integer("weight", 1, i64::from(validate::MAX_BACKEND_WEIGHT))?;
    Ok(BackendSpec {
        addr: text::parse_backend_addr(addr).map_err(|e| place(at, e))?,
        weight: weight.map_or(1, |weight| weight as u32),
        state: table.parse("state")?.unwrap_or_default(),
    })
}

/// In TOML a key below `[service.pools]` is one of the pools, whatever was meant.
fn refuse_service_keys(pools: &Node) -> Result<(), Fault> {
    let Value::Table(entries) = &pools.value else {
        return Ok(());
    };
    let is_misplaced = |entry: &&Entry| {
        let key = entry.key.as_str();
        !["blue", "green"].contains(&key) && SERVICE_KEYS.contains(&key)
    };
    match entries.iter().find(is_misplaced) {
        Some(Entry { key, at, .. }) => Err(Fault::new(
            *at,
            format!(
                "pools has no key {key:?}: it belongs to the service: write it above [service.pools]"
            ),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
