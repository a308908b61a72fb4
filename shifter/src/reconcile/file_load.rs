//! `[[service]]` of the agent's own file against the stored state.

use std::collections::HashMap;

use super::{
    controller::ControlError,
    reconciler::{Reconciler, lock},
    write::own_context,
};
use crate::model::ServiceSpec;

/// What the agent writes as when it takes its own file in.
pub(super) const FILE_ACTOR: &str = "file";

impl Reconciler {
    /// Brings the services of the agent's file into force, key by key: a value
    /// that differs from the file's at the last load wins, loudly; otherwise
    /// the stored one stays. Returns the warnings.
    pub fn load_file_services(&self, specs: &[ServiceSpec]) -> Result<Vec<String>, ControlError> {
        let internal = |error: crate::store::StoreError| ControlError::Internal(error.to_string());
        let mut warnings = Vec::new();
        let mut wanted = Vec::new();
        {
            let core = lock(&self.core);
            if core.store.refused().is_some() {
                let text =
                    "the services of the agent's file are not loaded: it runs without its store";
                tracing::warn!("{text}");
                return Ok(vec![text.to_owned()]);
            }
            let last: HashMap<String, ServiceSpec> = core
                .store
                .file_values()
                .map_err(internal)?
                .into_iter()
                .map(|spec| (spec.name.clone(), spec))
                .collect();
            for file in specs {
                let last = last.get(&file.name);
                match core.services.get(&file.name) {
                    Some(entry) => {
                        wanted.push(merge(file, last, &entry.spec, &mut warnings));
                    }
                    None if last == Some(file) => warnings.push(format!(
                        "service {:?} is in the file as before but was deleted since: it stays deleted; apply the file to bring it back",
                        file.name
                    )),
                    None => wanted.push(file.clone()),
                }
            }
            for name in last.keys() {
                let dropped = !specs.iter().any(|s| s.name == *name);
                if dropped && core.services.contains_key(name) {
                    warnings.push(format!(
                        "service {name:?} is not in the file any more but goes on: delete it if it is not wanted"
                    ));
                }
            }
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        if !wanted.is_empty() {
            let context = own_context(FILE_ACTOR, "the agent's file".into());
            let (receipts, _) = self.do_apply(&wanted, &context)?;
            warnings.extend(receipts.into_iter().flat_map(|r| r.warnings));
        }
        let mut core = lock(&self.core);
        core.store.set_file_values(specs).map_err(internal)?;
        Ok(warnings)
    }
}

/// The stored spec with every key whose value in the file is new.
fn merge(
    file: &ServiceSpec,
    last: Option<&ServiceSpec>,
    stored: &ServiceSpec,
    warnings: &mut Vec<String>,
) -> ServiceSpec {
    let mut merged = stored.clone();
    let mut won = Vec::new();
    // A field that is added is a key to be merged, unless it is said here why not.
    let ServiceSpec {
        name: _,
        vip: _,
        mode: _,
        live: _,
        green: _,
        split: _,
        affinity: _,
        seed: _,
        vip_routed: _,
        blue_pool: _,
        green_pool: _,
        breaker: _,
        cohorts: _,
        cohorts_on: _,
        health: _,
        rollout: _,
    } = file;
    macro_rules! key {
        ($field:ident, $name:literal) => {
            if last.is_none_or(|last| last.$field != file.$field) && stored.$field != file.$field {
                merged.$field = file.$field.clone();
                won.push($name);
            }
        };
    }
    key!(vip, "vip");
    key!(mode, "mode");
    key!(live, "live");
    key!(green, "green");
    key!(split, "split");
    key!(affinity, "affinity");
    key!(vip_routed, "vip_routed");
    key!(blue_pool, "pools.blue");
    key!(green_pool, "pools.green");
    key!(breaker, "breaker");
    key!(cohorts, "cohort");
    key!(cohorts_on, "cohorts_on");
    key!(health, "health");
    key!(rollout, "rollout");
    if file.seed.is_some() {
        key!(seed, "seed");
    }
    if !won.is_empty() {
        warnings.push(format!(
            "service {:?}: the file has new values for {}, which replace the stored ones",
            file.name,
            won.join(", ")
        ));
    }
    merged
}
