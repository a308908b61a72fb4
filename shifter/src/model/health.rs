//! How the backends of a service are checked, as its owner writes it.

use std::{fmt, time::Duration};

use super::duration;

/// Between two checks of one backend, in ms.
pub const INTERVAL_MS: (u64, u64) = (100, 3_600_000);
/// How long one check may take, in ms; never longer than the interval.
pub const TIMEOUT_MS: (u64, u64) = (10, 60_000);
/// Passed or failed checks in a row until a verdict.
pub const THRESHOLD: (u32, u32) = (1, 100);
/// Backends that a pool has at most, and so can be asked to have up.
pub const MAX_MIN_HEALTHY: u32 = 16_384;

/// What becomes of the new flows of a pool none of whose backends is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnPoolDown {
    /// They go to the other pool, as long as that has one that is up.
    #[default]
    Other,
    /// They stay.
    Hold,
}

/// What becomes of the flows of a backend that its checks have found down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDown {
    /// They stay.
    #[default]
    Keep,
    /// They are ended, so that clients connect to another.
    Cut,
}

/// The checks of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthSpec {
    pub check: Check,
    /// Checked in place of the backend's own port.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Passed checks in a row until a backend is up.
    pub rise: u32,
    /// Failed checks in a row until it is down.
    pub fall: u32,
    /// A pool with fewer that are not down is given no more traffic.
    pub min_healthy: u32,
    pub on_pool_down: OnPoolDown,
    pub on_down: OnDown,
}

/// What is asked of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// It takes a connection.
    Tcp,
    /// It answers a GET as it should.
    Http(HttpCheck),
    /// grpc.health.v1 says SERVING.
    Grpc(GrpcCheck),
    /// A program of the agent's `exec_dir` ends with 0.
    Exec(ExecCheck),
}

/// A GET over HTTP/1.1, and what its answer must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpCheck {
    pub tls: Option<Tls>,
    pub path: String,
    /// Inclusive ranges.
    pub status: Vec<(u16, u16)>,
    /// For the Host header and the server's certificate; `None`: the address.
    pub host: Option<String>,
    pub body_contains: Option<String>,
    pub headers: Vec<(String, String)>,
}

/// `grpc.health.v1.Health/Check` over HTTP/2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GrpcCheck {
    pub tls: Option<Tls>,
    /// Empty: the server as a whole.
    pub service: String,
    pub host: Option<String>,
}

/// A program that looks after a backend itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecCheck {
    /// Name of a file in `exec_dir`; no path, no arguments.
    pub file: String,
}

/// How a server's certificate is verified.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tls {
    /// File with those who may sign it; `None`: the system's.
    pub ca: Option<String>,
    /// It is not verified at all.
    pub insecure: bool,
}

/// Why checks are refused, and at which key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("health.{key}: {text}")]
pub struct HealthFault {
    pub key: &'static str,
    pub text: String,
}

/// The keys as they were written, in a file or a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Written {
    pub kind: Option<String>,
    pub port: Option<u64>,
    pub path: Option<String>,
    pub status: Option<String>,
    pub host: Option<String>,
    pub body_contains: Option<String>,
    pub headers: Vec<(String, String)>,
    pub service: Option<String>,
    pub tls: Option<bool>,
    pub ca: Option<String>,
    pub insecure: Option<bool>,
    pub file: Option<String>,
    pub interval: Option<String>,
    pub timeout: Option<String>,
    pub rise: Option<u64>,
    pub fall: Option<u64>,
    pub min_healthy: Option<u64>,
    pub on_pool_down: Option<String>,
    pub on_down: Option<String>,
}

/// Every key, as files and errors name it.
pub const KEYS: [&str; 19] = [
    "type",
    "port",
    "path",
    "status",
    "host",
    "body_contains",
    "headers",
    "service",
    "tls",
    "ca",
    "insecure",
    "file",
    "interval",
    "timeout",
    "rise",
    "fall",
    "min_healthy",
    "on_pool_down",
    "on_down",
];

/// Exact to the ms, as [`duration::parse`] reads it.
pub(crate) fn show(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => duration::show(duration),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn show_statuses(ranges: &[(u16, u16)]) -> String {
    let parts: Vec<String> = ranges
        .iter()
        .map(|(low, high)| match low == high {
            true => low.to_string(),
            false => format!("{low}-{high}"),
        })
        .collect();
    parts.join(",")
}

impl HttpCheck {
    /// Whether an answer's status is one of those wanted.
    pub fn takes(&self, status: u16) -> bool {
        self.status
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&status))
    }

    /// Those wanted, as they are written.
    pub fn wanted(&self) -> String {
        show_statuses(&self.status)
    }
}

impl HealthSpec {
    /// "tcp", "http", "https", "grpc" or "exec".
    pub fn kind(&self) -> &'static str {
        match &self.check {
            Check::Tcp => "tcp",
            Check::Http(HttpCheck { tls: None, .. }) => "http",
            Check::Http(_) => "https",
            Check::Grpc(_) => "grpc",
            Check::Exec(_) => "exec",
        }
    }

    /// Every key as it would be written, defaults included.
    pub fn write(&self) -> Written {
        let mut written = Written {
            kind: Some(self.kind().to_owned()),
            port: self.port.map(u64::from),
            interval: Some(show(self.interval)),
            timeout: Some(show(self.timeout)),
            rise: Some(self.rise.into()),
            fall: Some(self.fall.into()),
            min_healthy: Some(self.min_healthy.into()),
            on_pool_down: Some(self.on_pool_down.to_string()),
            // Left out as what it was before the key was known: the hash of what a
            // service is stays the same.
            on_down: (self.on_down == OnDown::Cut).then(|| "cut".to_owned()),
            ..Written::default()
        };
        let tls = match &self.check {
            Check::Tcp => None,
            Check::Exec(exec) => {
                written.file = Some(exec.file.clone());
                None
            }
            Check::Http(http) => {
                written.path = Some(http.path.clone());
                written.status = Some(http.wanted());
                written.host = http.host.clone();
                written.body_contains = http.body_contains.clone();
                written.headers = http.headers.clone();
                http.tls.as_ref()
            }
            Check::Grpc(grpc) => {
                written.service = (!grpc.service.is_empty()).then(|| grpc.service.clone());
                written.host = grpc.host.clone();
                written.tls = grpc.tls.is_some().then_some(true);
                grpc.tls.as_ref()
            }
        };
        if let Some(tls) = tls {
            written.ca = tls.ca.clone();
            written.insecure = tls.insecure.then_some(true);
        }
        written
    }

    /// Whether a backend's standing under these checks holds under `other` too.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let asked = |spec: &Self| Self {
            min_healthy: 0,
            on_pool_down: OnPoolDown::Other,
            on_down: OnDown::Keep,
            ..spec.clone()
        };
        asked(self) == asked(other)
    }
}

impl Written {
    /// Keys and values that are there, in the order of [`KEYS`].
    pub fn pairs(&self) -> Vec<(&'static str, serde_json::Value)> {
        let text = |value: &Option<String>| value.clone().map(serde_json::Value::from);
        let number = |value: Option<u64>| value.map(serde_json::Value::from);
        let flag = |value: Option<bool>| value.map(serde_json::Value::from);
        let headers = (!self.headers.is_empty()).then(|| {
            let headers = self.headers.iter().cloned();
            headers.map(|(name, value)| (name, value.into())).collect()
        });
        let values = [
            text(&self.kind),
            number(self.port),
            text(&self.path),
            text(&self.status),
            text(&self.host),
            text(&self.body_contains),
            headers.map(serde_json::Value::Object),
            text(&self.service),
            flag(self.tls),
            text(&self.ca),
            flag(self.insecure),
            text(&self.file),
            text(&self.interval),
            text(&self.timeout),
            number(self.rise),
            number(self.fall),
            number(self.min_healthy),
            text(&self.on_pool_down),
            text(&self.on_down),
        ];
        let pairs = KEYS.into_iter().zip(values);
        pairs
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }
}

/// What an apply changes in the checks, a line for each key.
pub fn changes(before: Option<&HealthSpec>, after: Option<&HealthSpec>) -> Vec<String> {
    match (before, after) {
        (None, None) => Vec::new(),
        (None, Some(after)) => vec![format!("health: none -> {after}")],
        (Some(before), None) => vec![format!("health: {before} -> none")],
        (Some(before), Some(after)) => {
            let (before, after) = (before.write().pairs(), after.write().pairs());
            let of = |pairs: &[(&'static str, serde_json::Value)], key| {
                let value = pairs.iter().find(|(k, _)| *k == key);
                value.map_or("none".to_owned(), |(_, value)| bare(value))
            };
            KEYS.into_iter()
                .map(|key| (key, of(&before, key), of(&after, key)))
                .filter(|(_, before, after)| before != after)
                .map(|(key, before, after)| format!("health: {key} {before} -> {after}"))
                .collect()
        }
    }
}

fn bare(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl fmt::Display for HealthSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.write().pairs();
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key} {}", bare(value)))
            .collect();
        f.write_str(&pairs.join(", "))
    }
}

impl fmt::Display for OnPoolDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Other => "other",
            Self::Hold => "hold",
        })
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
