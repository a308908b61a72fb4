//! Which gates may reach out of the agent, and where to.

use std::time::Duration;

use super::{GateSpec, Judge, words};

/// Who wrote a list of gates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A `[[service]]` of the agent's own file.
    AgentFile,
    /// The API: `apply`, `rollout start`.
    Api,
}

/// `[gates]` of the agent's file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Allowed {
    /// `host:port` as they stand in URLs.
    pub hosts: Vec<String>,
    /// Whether there is an `exec_dir`.
    pub exec: bool,
    /// The longest time-out that a gate may have; `None`: whatever it says.
    pub timeout_max: Option<Duration>,
}

/// Why a gate is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GateError {
    #[error(
        "gate {gate:?}: judge {judge:?} reaches out of the agent and cannot come over the API: write it into [[service]] of the agent's own file and restart the agent"
    )]
    OverApi { gate: String, judge: &'static str },
    #[error(
        "gate {gate:?}: {host} is not allowed: add it to hosts of [gates] in the agent's file, as hosts = [\"{host}\"]"
    )]
    Host { gate: String, host: String },
    #[error(
        "gate {gate:?}: there is no directory of programs: set exec_dir of [gates] in the agent's file, as exec_dir = \"/etc/shifter/exec\""
    )]
    NoExecDir { gate: String },
    #[error(
        "gate {gate:?}: its time-out of {} is above timeout_max of [gates] in the agent's file, {}: lower the one or raise the other", words::show_time(*timeout), words::show_time(*most)
    )]
    Timeout {
        gate: String,
        timeout: Duration,
        most: Duration,
    },
    #[error("gate {gate:?}: {error}")]
    Url { gate: String, error: UrlError },
}

/// Why a text is no URL of a gate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    #[error("{0:?} is not reached by http: write http://HOST:PORT/PATH or https://HOST:PORT/PATH")]
    Scheme(String),
    #[error("{0:?} names no host: write http://HOST:PORT/PATH, an IPv6 address in brackets")]
    Host(String),
    #[error("{0:?} holds a user's name or password: take it out, it would be stored and shown")]
    User(String),
    #[error("{0:?} has a space, a control character or a fragment: percent-encode it")]
    Sign(String),
}

/// `host:port` that a URL leads to, and whether by TLS; port 80, by TLS 443, where
/// none is written. In lower case.
pub fn host_of(url: &str) -> Result<(String, bool), UrlError> {
    let fault = || url.to_owned();
    let (rest, is_tls) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return Err(UrlError::Scheme(fault())),
    };
    if !url.bytes().all(|b| b.is_ascii_graphic()) || url.contains(['#', '\\', '"', '<', '>']) {
        return Err(UrlError::Sign(fault()));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or("");
    if authority.contains('@') {
        return Err(UrlError::User(fault()));
    }
    let port = if is_tls { "443" } else { "80" };
    let host = host_and_port(authority, port).ok_or_else(|| UrlError::Host(fault()))?;
    Ok((host, is_tls))
}

/// A host with its port, as `hosts` lists it; `None` if it is none. Port 80 where
/// none is written.
pub fn allowed_host(text: &str) -> Option<String> {
    host_and_port(text, "80")
}

fn host_and_port(text: &str, default_port: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            let address: std::net::Ipv6Addr = address.parse().ok()?;
            (
                format!("[{address}]"),
                rest.strip_prefix(':')
                    .or(rest.is_empty().then_some(default_port))?,
            )
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, default_port));
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
                return None;
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let is_port = port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| is_port && *port != 0)?;
    Some(format!("{host}:{port}"))
}

/// Refuses what is no name of a file in `exec_dir`; the text says what would be.
pub fn check_program(file: &str) -> Result<(), String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=255).contains(&file.len()) && !file.starts_with('.') && file.chars().all(is_good) {
        return Ok(());
    }
    Err(format!(
        "{file:?} is no name of a program: write the name of a file in exec_dir, of letters, digits, '-', '_' and '.', without a path or arguments"
    ))
}

/// Refuses gates that come from where they may not, or lead where they may not.
/// Every writer of a rollout asks it, and once more the one who starts it.
pub fn check_allowed(
    gates: &[GateSpec],
    origin: Origin,
    allowed: &Allowed,
) -> Result<(), GateError> {
    for spec in gates.iter().filter(|spec| spec.reaches_out()) {
        let gate = spec.name.clone();
        if origin == Origin::Api {
            let judge = spec.judge.word();
            return Err(GateError::OverApi { gate, judge });
        }
        let (url, timeout) = match &spec.judge {
            Judge::Prometheus(it) => (Some(&it.url), it.timeout),
            Judge::Webhook(it) => (Some(&it.url), it.timeout),
            Judge::Exec(it) if allowed.exec => (None, it.timeout),
            _ => return Err(GateError::NoExecDir { gate }),
        };
        if let Some(most) = allowed.timeout_max
            && timeout > most
        {
            return Err(GateError::Timeout {
                gate,
                timeout,
                most,
            });
        }
        let Some(url) = url else { continue };
        match host_of(url) {
            Ok((host, _)) if allowed.hosts.contains(&host) => {}
            Ok((host, _)) => return Err(GateError::Host { gate, host }),
            Err(error) => return Err(GateError::Url { gate, error }),
        }
    }
    Ok(())
}

impl Judge {
    /// The word of its kind.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Sequential(_) => "sequential",
            Self::Threshold(_) => "threshold",
            Self::MannWhitney(_) => "mann-whitney",
            Self::Prometheus(_) => "prometheus",
            Self::Webhook(_) => "webhook",
            Self::Exec(_) => "exec",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::read;

    #[test]
    fn a_host_is_what_a_url_leads_to() {
        for (url, host, is_tls) in [
            ("http://127.0.0.1:9090", "127.0.0.1:9090", false),
            ("http://Prom.example/api?x=1", "prom.example:80", false),
            ("http://[::1]:9090/", "[::1]:9090", false),
            ("http://[0:0::1]", "[::1]:80", false),
            ("http://a:80?x", "a:80", false),
            ("https://Prom.example/api?x=1", "prom.example:443", true),
            ("https://[::1]:9090/", "[::1]:9090", true),
            ("https://[::1]", "[::1]:443", true),
            ("https://a:80", "a:80", true),
        ] {
            assert_eq!(host_of(url), Ok((host.to_owned(), is_tls)), "{url}");
        }
        for url in [
            "https://",
            "httpss://a",
            "ftp://a",
            "http://",
            "http:///x",
            "http://a:0",
            "http://a:+80",
            "http://a:99999",
            "http://ok:1@evil:2/",
            "http://a b",
            "http://a\\@b",
            "http://a#b",
            "http://[::1",
            "http://[::1]9",
            "http://::1",
            "http://ä",
        ] {
            assert!(host_of(url).is_err(), "{url} was taken");
        }
    }

    #[test]
    fn gates_that_reach_out_come_from_the_agents_file_and_go_where_it_says() {
        let prometheus = r#"[{ judge = "prometheus", url = "http://h:1", query = "up", max = 1, timeout = "4s" }]"#;
        let exec = r#"[{ judge = "exec", file = "a.sh", timeout = "4s" }]"#;
        let pure = r#"[{ judge = "sequential" }, { judge = "mann-whitney" }]"#;
        let none = Allowed::default();
        let some = Allowed {
            hosts: vec!["h:1".into()],
            exec: true,
            timeout_max: Some(Duration::from_secs(4)),
        };
        assert_eq!(check_allowed(&read(pure), Origin::Api, &none), Ok(()));
        for text in [prometheus, exec] {
            let gates = read(text);
            let error = check_allowed(&gates, Origin::Api, &some).unwrap_err();
            assert!(
                error.to_string().contains("cannot come over the API"),
                "{error}"
            );
            assert_eq!(check_allowed(&gates, Origin::AgentFile, &some), Ok(()));
        }
        let error = check_allowed(&read(prometheus), Origin::AgentFile, &none).unwrap_err();
        assert!(error.to_string().contains("hosts = [\"h:1\"]"), "{error}");
        let error = check_allowed(&read(exec), Origin::AgentFile, &none).unwrap_err();
        assert!(error.to_string().contains("exec_dir = "), "{error}");
        let slow = read(r#"[{ judge = "exec", file = "a.sh" }]"#);
        let error = check_allowed(&slow, Origin::AgentFile, &some).unwrap_err();
        assert!(error.to_string().contains("5000ms is above"), "{error}");
    }
}
