//! Services from a file: TOML, or JSON with the same keys.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};

use crate::{
    control::desired_message,
    model::file::{Format, parse_services_with},
    proto,
};

/// Reads the services of a file; `-` is standard input.
pub(super) fn read_services(path: &Path) -> anyhow::Result<Vec<proto::ServiceSpec>> {
    let is_stdin = path.as_os_str() == "-";
    let text = match is_stdin {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
    let name = path.display().to_string();
    let format = match is_stdin && text.trim_start().starts_with('{') {
        true => Format::Json,
        false => Format::of(&name),
    };
    let services = parse_services_with(&text, &name, format, &mut read_named)?;
    if services.is_empty() {
        bail!("{name} has no [[service]]: there is nothing to apply");
    }
    Ok(services.iter().map(desired_message).collect())
}

/// A file that the services' file names.
fn read_named(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))
}

/// What a request with this many services may take beyond the timeout.
pub(super) fn more_time(services: usize) -> std::time::Duration {
    std::time::Duration::from_millis(10) * u32::try_from(services).unwrap_or(u32::MAX)
}
