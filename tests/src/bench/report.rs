//! What a run found, as tables and as JSON.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The machine, in one line.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, kernel {}", kernel.trim())
}

/// A table in Markdown, its columns aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!(" {cell:<width$} "));
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = line(head.to_vec());
    text += &line(rule.iter().map(String::as_str).collect());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Writes the whole report.
pub fn write_json(path: &Path, quick: bool, parts: &[(&str, Value)]) -> Result<()> {
    let mut report = json!({ "machine": machine(), "quick": quick });
    for (name, part) in parts {
        report[*name] = part.clone();
    }
    fs::write(path, format!("{report:#}\n")).with_context(|| format!("writing {}", path.display()))
}
