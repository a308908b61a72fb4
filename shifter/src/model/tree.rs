//! A read file as a tree in which every key and value knows its place.
//!
//! TOML comes through the toml crate, JSON through [`super::json`]; what
//! follows is the same for both.

use toml::de::{DeTable, DeValue};

/// A value and the byte where it begins.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub at: usize,
    pub value: Value,
}

/// What a file can hold.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    String(String),
    Integer(i64),
    /// With a point or an exponent; finite.
    Float(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// Date, null: nothing that any key takes.
    Other(&'static str),
}

/// A key of a table with its value.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub key: String,
    pub at: usize,
    pub node: Node,
}

/// A fault at a byte of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub at: usize,
    pub text: String,
}

impl Fault {
    /// A fault at a byte.
    pub fn new(at: usize, text: impl Into<String>) -> Self {
        Self {
            at,
            text: text.into(),
        }
    }
}

impl Value {
    /// What it is, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a number with a point",
            Self::Bool(_) => "a boolean",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// Line and column (in characters) of a byte, both from 1.
pub fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// Reads TOML 1.1. Keys that occur twice are refused here.
pub fn from_toml(text: &str) -> Result<Node, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Fault::new(at, error.message().trim().replace('\n', ", "))
    })?;
    Ok(toml_table(table.span().start, table.get_ref()))
}

fn toml_table(at: usize, table: &DeTable<'_>) -> Node {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            at: key.span().start,
            node: toml_node(value.span().start, value.get_ref()),
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    Node {
        at,
        value: Value::Table(entries),
    }
}

fn toml_node(at: usize, value: &DeValue<'_>) -> Node {
    let value = match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other("a number out of range"),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Float(number),
            _ => Value::Other("a number that is not finite"),
        },
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| toml_node(item.span().start, item.get_ref()))
                .collect(),
        ),
        DeValue::Table(table) => return toml_table(at, table),
    };
    Node { at, value }
}
