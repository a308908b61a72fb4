//! Checks as they were written, whole and in range or refused.

use std::time::Duration;

use super::{
    duration,
    health::{
        Check, ExecCheck, GrpcCheck, HealthFault, HealthSpec, HttpCheck, INTERVAL_MS,
        MAX_MIN_HEALTHY, OnDown, OnPoolDown, THRESHOLD, TIMEOUT_MS, Tls, Written, show,
    },
};
use crate::judge::check_program;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_HEADERS: usize = 16;
const MAX_TEXT: usize = 1_024;

/// Which types have a key that not all of them have.
const ONLY: [(&str, &[&str]); 11] = [
    ("port", &["tcp", "http", "https", "grpc"]),
    ("path", &["http", "https"]),
    ("status", &["http", "https"]),
    ("host", &["http", "https", "grpc"]),
    ("body_contains", &["http", "https"]),
    ("headers", &["http", "https"]),
    ("service", &["grpc"]),
    ("tls", &["grpc"]),
    ("ca", &["https", "grpc"]),
    ("insecure", &["https", "grpc"]),
    ("file", &["exec"]),
];

fn fault<T>(key: &'static str, text: impl Into<String>) -> Result<T, HealthFault> {
    let text = text.into();
    Err(HealthFault { key, text })
}

impl Written {
    /// What was written, whole and in range.
    pub fn read(self) -> Result<HealthSpec, HealthFault> {
        let kind = self.kind()?;
        self.refuse_keys_of_other_types(kind)?;
        let interval = span("interval", &self.interval, DEFAULT_INTERVAL, INTERVAL_MS)?;
        let default = DEFAULT_TIMEOUT.min(interval);
        let timeout = span("timeout", &self.timeout, default, TIMEOUT_MS)?;
        if timeout > interval {
            return fault(
                "timeout",
                format!(
                    "{} is longer than the interval of {}: a check ends before the next begins; write at most the interval",
                    show(timeout),
                    show(interval)
                ),
            );
        }
        let port = number("port", self.port, 0, (1, 65_535))?;
        Ok(HealthSpec {
            port: (port > 0).then_some(port as u16),
            interval,
            timeout,
            rise: number("rise", self.rise, 2, THRESHOLD)?,
            fall: number("fall", self.fall, 3, THRESHOLD)?,
            min_healthy: number("min_healthy", self.min_healthy, 1, (0, MAX_MIN_HEALTHY))?,
            on_pool_down: match self.on_pool_down.as_deref() {
                None | Some("other") => OnPoolDown::Other,
                Some("hold") => OnPoolDown::Hold,
                Some(word) => {
                    return fault(
                        "on_pool_down",
                        format!("{word:?} is unknown: write \"other\" or \"hold\""),
                    );
                }
            },
            on_down: match self.on_down.as_deref() {
                None | Some("keep") => OnDown::Keep,
                Some("cut") => OnDown::Cut,
                Some(word) => {
                    return fault(
                        "on_down",
                        format!("{word:?} is unknown: write \"keep\" or \"cut\""),
                    );
                }
            },
            check: self.check(kind)?,
        })
    }

    fn kind(&self) -> Result<&'static str, HealthFault> {
        const KINDS: [&str; 5] = ["tcp", "http", "https", "grpc", "exec"];
        match self.kind.as_deref() {
            None => fault(
                "type",
                "the key is missing: write type = \"tcp\", \"http\", \"https\", \"grpc\" or \"exec\"",
            ),
            Some(word) => match KINDS.into_iter().find(|kind| *kind == word) {
                Some(kind) => Ok(kind),
                None => fault(
                    "type",
                    format!(
                        "{word:?} is unknown: write \"tcp\", \"http\", \"https\", \"grpc\" or \"exec\""
                    ),
                ),
            },
        }
    }

    fn has(&self, key: &str) -> bool {
        match key {
            "port" => self.port.is_some(),
            "file" => self.file.is_some(),
            "path" => self.path.is_some(),
            "status" => self.status.is_some(),
            "host" => self.host.is_some(),
            "body_contains" => self.body_contains.is_some(),
            "headers" => !self.headers.is_empty(),
            "service" => self.service.is_some(),
            "tls" => self.tls.is_some(),
            "ca" => self.ca.is_some(),
            _ => self.insecure.is_some(),
        }
    }

    fn refuse_keys_of_other_types(&self, kind: &str) -> Result<(), HealthFault> {
        for (key, kinds) in ONLY {
            if self.has(key) && !kinds.contains(&kind) {
                return fault(
                    key,
                    format!(
                        "a check of type {kind:?} has none: it goes with type {}",
                        quoted(kinds)
                    ),
                );
            }
        }
        Ok(())
    }

    fn check(self, kind: &str) -> Result<Check, HealthFault> {
        let host = self.host.map(|host| checked_host(&host)).transpose()?;
        let tls = Tls {
            ca: self.ca.map(checked_ca).transpose()?,
            insecure: self.insecure.unwrap_or(false),
        };
        if tls.insecure && tls.ca.is_some() {
            return fault("insecure", "with it ca is not looked at: write one of them");
        }
        match kind {
            "tcp" => Ok(Check::Tcp),
            "exec" => self.file.map_or_else(no_file, checked_file),
            "grpc" => {
                let asked = self.tls.unwrap_or(false);
                if !asked && tls != Tls::default() {
                    let key = if tls.insecure { "insecure" } else { "ca" };
                    return fault(key, "it needs tls = true, which is not there");
                }
                Ok(Check::Grpc(GrpcCheck {
                    tls: asked.then_some(tls),
                    service: self.service.map_or(Ok(String::new()), |text| {
                        plain("service", text, "a service's name, as \"shop.Cart\"")
                    })?,
                    host,
                }))
            }
            _ => Ok(Check::Http(HttpCheck {
                tls: (kind == "https").then_some(tls),
                path: self.path.map_or(Ok("/".to_owned()), checked_path)?,
                status: statuses(self.status.as_deref().unwrap_or("200-299"))?,
                host,
                body_contains: self.body_contains.map(checked_body).transpose()?,
                headers: checked_headers(self.headers)?,
            })),
        }
    }
}

fn no_file() -> Result<Check, HealthFault> {
    fault(
        "file",
        "the key is missing: write a file of the agent's exec_dir, as file = \"check.sh\"",
    )
}

fn checked_file(file: String) -> Result<Check, HealthFault> {
    match check_program(&file) {
        Ok(()) => Ok(Check::Exec(ExecCheck { file })),
        Err(text) => fault("file", text),
    }
}

fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    quoted.join(", ")
}

fn number(
    key: &'static str,
    written: Option<u64>,
    default: u32,
    (low, high): (u32, u32),
) -> Result<u32, HealthFault> {
    match written {
        None => Ok(default),
        Some(number) if (u64::from(low)..=u64::from(high)).contains(&number) => Ok(number as u32),
        Some(number) => fault(
            key,
            format!("{number} is out of range: write {low} to {high}"),
        ),
    }
}

fn span(
    key: &'static str,
    written: &Option<String>,
    default: Duration,
    (low, high): (u64, u64),
) -> Result<Duration, HealthFault> {
    let Some(text) = written else {
        return Ok(default);
    };
    let duration = match duration::parse(text) {
        Ok(duration) => duration,
        Err(error) => return fault(key, error.to_string()),
    };
    let ms = duration.as_millis() as u64;
    if !(low..=high).contains(&ms) {
        let [low, high] = [low, high].map(|ms| show(Duration::from_millis(ms)));
        return fault(
            key,
            format!("{text} is out of range: write {low} to {high}"),
        );
    }
    Ok(duration)
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic())
}

fn plain(key: &'static str, text: String, right: &str) -> Result<String, HealthFault> {
    if is_plain(&text) {
        return Ok(text);
    }
    fault(
        key,
        format!("{text:?} has spaces, other than ASCII or a wrong length: write {right}"),
    )
}

fn checked_path(path: String) -> Result<String, HealthFault> {
    if !path.starts_with('/') || path.contains('#') {
        return fault(
            "path",
            format!("{path:?} is no path of a request: write it from its '/' on, as \"/healthz\""),
        );
    }
    plain("path", path, "a path of a request, as \"/healthz\"")
}

fn checked_host(host: &str) -> Result<String, HealthFault> {
    let is_right = is_plain(host)
        && host.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']')
        });
    if is_right {
        return Ok(host.to_owned());
    }
    fault(
        "host",
        format!("{host:?} is no host: write a name, as \"shop.example\""),
    )
}

fn checked_ca(path: String) -> Result<String, HealthFault> {
    if path.starts_with('/') && !path.contains('\0') && path.len() <= MAX_TEXT {
        return Ok(path);
    }
    fault(
        "ca",
        format!("{path:?} is no absolute path: write one, as \"/etc/ssl/our-ca.pem\""),
    )
}

fn checked_body(text: String) -> Result<String, HealthFault> {
    if (1..=MAX_TEXT).contains(&text.len()) {
        return Ok(text);
    }
    fault(
        "body_contains",
        format!("{} bytes: write 1 to {MAX_TEXT}", text.len()),
    )
}

fn checked_headers(
    mut headers: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, HealthFault> {
    const OURS: [&str; 5] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
    ];
    if headers.len() > MAX_HEADERS {
        let count = headers.len();
        return fault(
            "headers",
            format!("{count} of them: write at most {MAX_HEADERS}"),
        );
    }
    let mut seen = Vec::new();
    for (name, value) in &headers {
        let lower = name.to_ascii_lowercase();
        let is_token = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        if !is_token || name.len() > MAX_TEXT {
            return fault(
                "headers",
                format!("{name:?} is no name of a header: write one, as \"X-Probe\""),
            );
        }
        if OURS.contains(&lower.as_str()) {
            let right = if lower == "host" {
                "write the key host"
            } else {
                "leave it out"
            };
            return fault("headers", format!("{name:?} is set by the check: {right}"));
        }
        if value.len() > MAX_TEXT || value.bytes().any(|b| !(b' '..=b'~').contains(&b)) {
            return fault(
                "headers",
                format!(
                    "the value of {name:?} has other than printable ASCII, or more than {MAX_TEXT} bytes"
                ),
            );
        }
        if seen.contains(&lower) {
            return fault("headers", format!("{name:?} occurs twice: write it once"));
        }
        seen.push(lower);
    }
    // The order of a table, of JSON and of a request is none.
    headers.sort();
    Ok(headers)
}

fn statuses(text: &str) -> Result<Vec<(u16, u16)>, HealthFault> {
    let wrong = || HealthFault {
        key: "status",
        text: format!(
            "{text:?} is no list of statuses: write 100 to 599, as \"200-299\" or \"200,204,301-308\""
        ),
    };
    text.split(',')
        .map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let read = |text: &str| {
                let digits = text.trim();
                let is_number = digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit());
                is_number.then(|| digits.parse().ok()).flatten()
            };
            match (read(low), read(high)) {
                (Some(low), Some(high)) if (100..=high).contains(&low) && high <= 599 => {
                    Ok((low, high))
                }
                _ => Err(wrong()),
            }
        })
        .collect()
}
