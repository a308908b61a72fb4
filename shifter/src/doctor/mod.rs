//! Is this host fit for shifter, and what mends it.

mod hook;
mod host;
mod network;

use std::{fmt::Write as _, net::SocketAddr};

use serde::Serialize;

pub use hook::{Hook, HookError, choose_hook};

use crate::model::{Protocol, Vip};

/// What doctor shall look at beside the host itself.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Interfaces that have or shall get a hook; empty: those that are up.
    pub interfaces: Vec<String>,
    pub hook: Hook,
    pub vips: Vec<Vip>,
    pub backends: Vec<(SocketAddr, Protocol)>,
    /// Ids of XDP programs that are shifter's own.
    pub own_programs: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Shifter works, but not in every case.
    Warning,
    /// Shifter cannot work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn error(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Looks at the host, and at `wanted` where one is given. Changes nothing.
/// Runs nft and iptables-save where they are installed: blocks for some ms.
pub fn run(wanted: Option<&Wanted>) -> Vec<Finding> {
    let mut findings = Vec::new();
    host::check(&mut findings);
    network::check(wanted, &mut findings);
    findings
}

/// The worst that was found.
pub fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Ok)
}

/// One line a finding, its remedy below it.
pub fn render(findings: &[Finding], color: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, code) = match finding.level {
            Level::Ok => ("ok", "32"),
            Level::Warning => ("warning", "33"),
            Level::Error => ("error", "31"),
        };
        // Writing to a String cannot fail.
        let _ = match color {
            true => write!(text, "\x1b[{code}m{word:<8}\x1b[0m"),
            false => write!(text, "{word:<8}"),
        };
        let _ = writeln!(text, "{}", finding.what);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:8}remedy: {remedy}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_with_their_remedies_below() {
        let findings = [
            Finding::ok("kernel 6.18"),
            Finding::error("bpffs is not mounted", "mount -t bpf bpf /sys/fs/bpf"),
        ];
        assert_eq!(
            render(&findings, false),
            "ok      kernel 6.18\n\
             error   bpffs is not mounted\n        remedy: mount -t bpf bpf /sys/fs/bpf\n"
        );
        assert!(render(&findings, true).starts_with("\x1b[32mok      \x1b[0mkernel"));
        assert_eq!(worst(&findings), Level::Error);
        assert_eq!(worst(&[]), Level::Ok);
        assert_eq!(
            serde_json::to_value(&findings[1]).unwrap(),
            serde_json::json!({"level": "error", "what": "bpffs is not mounted", "remedy": "mount -t bpf bpf /sys/fs/bpf"})
        );
        let ok = serde_json::to_value(&findings[0]).unwrap();
        assert!(ok.get("remedy").is_none());
    }
}
