//! `[service.health]` of a file, with the place of each key.

use super::{
    file_table::{Table, place},
    health::{HealthFault, HealthSpec, KEYS, Written},
    tree::{Entry, Fault, Node, Value},
};

/// The checks, and where its keys stand.
pub(super) struct HealthPlaces {
    at: usize,
    keys: Vec<(String, usize)>,
}

impl HealthPlaces {
    /// The place of a key, or of the table.
    pub fn at(&self, key: &str) -> usize {
        let found = self.keys.iter().find(|(name, _)| name == key);
        found.map_or(self.at, |(_, at)| *at)
    }
}

/// Reads the table.
pub(super) fn health(entry: &Entry) -> Result<(HealthSpec, HealthPlaces), Fault> {
    let table = Table::of(&entry.node, "health", &KEYS)?;
    let places = HealthPlaces {
        at: table.at,
        keys: keys(&entry.node),
    };
    let text = |key| -> Result<Option<String>, Fault> {
        Ok(table.string(key)?.map(|(text, _)| text.to_owned()))
    };
    // Ranges are looked at where what a request says is looked at, too.
    let number = |key| -> Result<Option<u64>, Fault> {
        let number = table.integer(key, 0, i64::from(u32::MAX))?;
        Ok(number.map(|number| number as u64))
    };
    let written = Written {
        kind: text("type")?,
        port: number("port")?,
        path: text("path")?,
        status: text("status")?,
        host: text("host")?,
        body_contains: text("body_contains")?,
        headers: table.find("headers").map_or(Ok(Vec::new()), headers)?,
        service: text("service")?,
        tls: table.boolean("tls")?,
        ca: text("ca")?,
        insecure: table.boolean("insecure")?,
        file: text("file")?,
        interval: text("interval")?,
        timeout: text("timeout")?,
        rise: number("rise")?,
        fall: number("fall")?,
        min_healthy: number("min_healthy")?,
        on_pool_down: text("on_pool_down")?,
        on_down: text("on_down")?,
    };
    match written.read() {
        Ok(spec) => Ok((spec, places)),
        Err(fault @ HealthFault { key, .. }) => Err(place(places.at(key), fault)),
    }
}

fn keys(node: &Node) -> Vec<(String, usize)> {
    let Value::Table(entries) = &node.value else {
        return Vec::new();
    };
    let place = |entry: &Entry| (entry.key.clone(), entry.node.at);
    entries.iter().map(place).collect()
}

fn headers(entry: &Entry) -> Result<Vec<(String, String)>, Fault> {
    let Value::Table(entries) = &entry.node.value else {
        return Err(Fault::new(
            entry.node.at,
            format!(
                "headers is {}: write a table, as headers = {{ X-Probe = \"shifter\" }}",
                entry.node.value.kind()
            ),
        ));
    };
    let header = |entry: &Entry| match &entry.node.value {
        Value::String(value) => Ok((entry.key.clone(), value.clone())),
        other => Err(Fault::new(
            entry.node.at,
            format!(
                "the header {} is {}: write it in quotes, as a string",
                entry.key,
                other.kind()
            ),
        )),
    };
    entries.iter().map(header).collect()
}
