//! The agent's own file, `/etc/shifter/shifter.toml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use shifter_common::abi::config::{DEFAULT_TIMEOUTS_S, TIMEOUTS};

use super::{
    ServiceSpec,
    cohort_file::ReadFile,
    file::{self, FileError, Format},
    file_table::Table,
    gates::{self, GatesConfig},
    tree::{Fault, Value},
};

/// Hook asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HookChoice {
    #[default]
    Auto,
    Xdp,
    Tc,
}

/// How the un-NAT at egress is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HookEgress {
    /// tcx where the kernel has it (6.6).
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// What the agent is told at its start.
#[derive(Clone, PartialEq, Debug)]
pub struct AgentConfig {
    pub interfaces: Vec<String>,
    pub hook: HookChoice,
    pub hook_egress: HookEgress,
    /// The BPF file system that maps and links are pinned in.
    pub bpffs: PathBuf,
    /// Flows really pinned.
    pub flow_capacity: u32,
    /// One flow in so many is watched for what is sent again; a power of two.
    pub watch_one_in: u32,
    pub state_dir: PathBuf,
    /// How long a new service or a lost table is settling.
    pub settle: Duration,
    /// How long after a promote a rollback undoes it.
    pub bake: Duration,
    /// How long a flow whose socket is gone counts on without a packet.
    pub gone_after: Duration,
    /// Seconds, in the order of `shifter_common::abi::config`.
    pub timeouts_s: [u32; TIMEOUTS],
    pub unix: PathBuf,
    /// `None`: no metrics are served.
    pub metrics: Option<SocketAddr>,
    pub services: Vec<ServiceSpec>,
    pub gates: GatesConfig,
}

/// Bounds of `flow_capacity`.
pub const FLOW_CAPACITY: std::ops::RangeInclusive<i64> = 1_024..=67_108_864;
/// Bounds of `watch_one_in`.
pub const WATCH_ONE_IN: std::ops::RangeInclusive<i64> = 1..=65_536;
/// Default of `watch_one_in`.
pub const DEFAULT_WATCH_ONE_IN: u32 = 64;
/// Default of `bpffs`.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Default of `settle`.
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(60);
/// Default of `bake`.
pub const DEFAULT_BAKE: Duration = Duration::from_secs(600);
/// Default of `gone_after`.
pub const DEFAULT_GONE_AFTER: Duration = Duration::from_secs(60);

/// Keys of `[agent]`.
const AGENT_KEYS: [&str; 11] = [
    "interfaces",
    "hook",
    "hook_egress",
    "bpffs",
    "flow_capacity",
    "watch_one_in",
    "state_dir",
    "settle",
    "bake",
    "gone_after",
    "timeouts",
];

/// Keys of `[agent.timeouts]`, in the order of the indices in `abi::config`.
const TIMEOUT_KEYS: [&str; 7] = [
    "half_open",
    "established",
    "closing",
    "reset",
    "udp_unanswered",
    "udp_answered",
    "proven_max",
];

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            hook: HookChoice::Auto,
            hook_egress: HookEgress::Auto,
            bpffs: DEFAULT_BPFFS.into(),
            flow_capacity: shifter_common::abi::DEFAULT_FLOW_CAPACITY,
            watch_one_in: DEFAULT_WATCH_ONE_IN,
            state_dir: "/var/lib/shifter".into(),
            settle: DEFAULT_SETTLE,
            bake: DEFAULT_BAKE,
            gone_after: DEFAULT_GONE_AFTER,
            timeouts_s: DEFAULT_TIMEOUTS_S,
            unix: "/run/shifter/shifter.sock".into(),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            services: Vec::new(),
            gates: GatesConfig::default(),
        }
    }
}

/// Reads the agent's file (TOML).
pub fn parse_config(text: &str, file_name: &str) -> Result<AgentConfig, FileError> {
    parse_config_with(text, file_name, &mut file::no_file)
}

/// As [`parse_config`], where files that this one names are read by `read_file`.
pub fn parse_config_with(
    text: &str,
    file_name: &str,
    read_file: &mut ReadFile<'_>,
) -> Result<AgentConfig, FileError> {
    config(text, read_file).map_err(|fault| file::locate(text, file_name, fault))
}

fn config(text: &str, read_file: &mut ReadFile<'_>) -> Result<AgentConfig, Fault> {
    let root = file::read(text, Format::Toml)?;
    let table = Table::of(
        &root,
        "the file",
        &["agent", "api", "metrics", "service", "gates"],
    )?;
    let mut config = AgentConfig::default();
    match table.find("agent") {
        Some(entry) => agent(entry.at, &entry.node, &mut config)?,
        None => return Err(no_interfaces(0)),
    }
    if let Some(entry) = table.find("api") {
        api(&entry.node, &mut config)?;
    }
    if let Some(entry) = table.find("metrics") {
        metrics(&entry.node, &mut config)?;
    }
    if let Some(entry) = table.find("gates") {
        config.gates = gates::section(&entry.node)?;
    }
    if let Some(entry) = table.find("service") {
        config.services = file::services(entry, read_file)?;
    }
    Ok(config)
}

fn no_interfaces(at: usize) -> Fault {
    Fault::new(
        at,
        "no interface is named: write [agent] with interfaces = [\"eth0\"], those that clients and remote backends are reached by",
    )
}

fn agent(at: usize, node: &super::tree::Node, config: &mut AgentConfig) -> Result<(), Fault> {
    let table = Table::of(node, "[agent]", &AGENT_KEYS)?;
    config.interfaces = interfaces(at, &table)?;
    if let Some((text, at)) = table.string("hook")? {
        config.hook = match text {
            "auto" => HookChoice::Auto,
            "xdp" => HookChoice::Xdp,
            "tc" => HookChoice::Tc,
            _ => {
                return Err(Fault::new(
                    at,
                    format!("{text:?} is no hook: write \"auto\", \"xdp\" or \"tc\""),
                ));
            }
        };
    }
    if let Some((text, at)) = table.string("hook_egress")? {
        config.hook_egress = match text {
            "auto" => HookEgress::Auto,
            "tcx" => HookEgress::Tcx,
            "clsact" => HookEgress::Clsact,
            _ => {
                let text =
                    format!("{text:?} is no way to egress: write \"auto\", \"tcx\" or \"clsact\"");
                return Err(Fault::new(at, text));
            }
        };
    }
    if let Some(path) = table.absolute_path("bpffs")? {
        config.bpffs = path;
    }
    let (low, high) = (*FLOW_CAPACITY.start(), *FLOW_CAPACITY.end());
    if let Some(number) = table.integer("flow_capacity", low, high)? {
        config.flow_capacity = number as u32;
    }
    if let Some(number) = watch_one_in(&table)? {
        config.watch_one_in = number;
    }
    if let Some(path) = table.absolute_path("state_dir")? {
        config.state_dir = path;
    }
    if let Some(settle) = table.seconds("settle", 0)? {
        config.settle = Duration::from_secs(u64::from(settle));
    }
    if let Some(bake) = table.seconds("bake", 0)? {
        config.bake = Duration::from_secs(u64::from(bake));
    }
    // Below, a connection that is about to end would be asked for too often.
    if let Some(gone_after) = table.seconds("gone_after", 4)? {
        config.gone_after = Duration::from_secs(u64::from(gone_after));
    }
    if let Some(entry) = table.find("timeouts") {
        let timeouts = Table::of(&entry.node, "[agent.timeouts]", &TIMEOUT_KEYS)?;
        for (index, key) in TIMEOUT_KEYS.iter().enumerate() {
            if let Some(timeout) = timeouts.seconds(key, 1)? {
                config.timeouts_s[index] = timeout;
            }
        }
    }
    Ok(())
}

fn watch_one_in(table: &Table<'_>) -> Result<Option<u32>, Fault> {
    let (low, high) = (*WATCH_ONE_IN.start(), *WATCH_ONE_IN.end());
    let Some(number) = table.integer("watch_one_in", low, high)? else {
        return Ok(None);
    };
    if number & (number - 1) == 0 {
        return Ok(Some(number as u32));
    }
    let at = table
        .find("watch_one_in")
        .map_or(table.at, |entry| entry.node.at);
    let text = format!(
        "watch_one_in = {number} is no power of two: write 1, 2, 4 … {high}; one flow in so many is watched for what is sent again"
    );
    Err(Fault::new(at, text))
}

fn interfaces(at: usize, table: &Table<'_>) -> Result<Vec<String>, Fault> {
    let Some(entry) = table.find("interfaces") else {
        return Err(no_interfaces(at));
    };
    let Value::Array(items) = &entry.node.value else {
        return Err(Fault::new(
            entry.node.at,
            "interfaces is no list: write interfaces = [\"eth0\"]",
        ));
    };
    let mut names: Vec<String> = Vec::new();
    for item in items {
        match &item.value {
            Value::String(name) if names.contains(name) => {
                let text = format!("interface {name:?} is named twice: write it once");
                return Err(Fault::new(item.at, text));
            }
            // IFNAMSIZ of linux/if.h is 16 with the final zero.
            Value::String(name)
                if (1..=15).contains(&name.len())
                    && !name.contains(|c: char| c == '/' || c.is_whitespace()) =>
            {
                names.push(name.clone());
            }
            other => {
                let text = format!(
                    "{} is no interface name: write one of `ip link`, as \"eth0\"",
                    match other {
                        Value::String(name) => format!("{name:?}"),
                        other => other.kind().to_owned(),
                    }
                );
                return Err(Fault::new(item.at, text));
            }
        }
    }
    if names.is_empty() {
        return Err(no_interfaces(entry.node.at));
    }
    Ok(names)
}

fn api(node: &super::tree::Node, config: &mut AgentConfig) -> Result<(), Fault> {
    let keys = ["unix", "tcp", "tls_cert", "tls_key", "client_ca"];
    let table = Table::of(node, "[api]", &keys)?;
    for key in &keys[1..] {
        if let Some(entry) = table.find(key) {
            return Err(Fault::new(
                entry.at,
                format!("{key}: this version listens on the unix socket only; take the line out"),
            ));
        }
    }
    if let Some(path) = table.absolute_path("unix")? {
        config.unix = path;
    }
    Ok(())
}

fn metrics(node: &super::tree::Node, config: &mut AgentConfig) -> Result<(), Fault> {
    let table = Table::of(node, "[metrics]", &["listen"])?;
    match table.string("listen")? {
        Some(("", _)) => config.metrics = None,
        Some((text, at)) => {
            config.metrics = Some(text.parse().map_err(|_| {
                Fault::new(
                    at,
                    format!("{text:?} is no address to listen on: write \"127.0.0.1:9464\", or \"\" for no metrics"),
                )
            })?);
        }
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_file_shows_every_key_with_its_default() {
        let text = include_str!("../../../packaging/shifter.toml");
        let config = parse_config(text, "shifter.toml").unwrap();
        let default = AgentConfig {
            interfaces: vec!["eth0".into()],
            ..AgentConfig::default()
        };
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
        for key in TIMEOUT_KEYS.iter().chain(&AGENT_KEYS).chain(&gates::KEYS) {
            let line = format!("{key} = ");
            let is_shown = text
                .lines()
                .any(|l| l.trim_start_matches("# ").starts_with(&line));
            assert!(is_shown || *key == "timeouts", "{key} is not shown");
        }
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let config = parse_config(
            r#"
[agent]
interfaces = ["eth0", "eth1"]
hook = "tc"
flow_capacity = 65_536
state_dir = "/tmp/s"
settle = 5
gone_after = "2m"
[agent.timeouts]
half_open = "1m15s"
established = 7_200
[api]
unix = "/run/s.sock"
[metrics]
listen = "127.0.0.1:9465"
[[service]]
name = "web"
vip = "203.0.113.10:443/tcp"
pools = { blue = ["10.0.0.1:80"] }
"#,
            "shifter.toml",
        )
        .unwrap();
        assert_eq!(config.interfaces, ["eth0", "eth1"]);
        assert_eq!(config.hook, HookChoice::Tc);
        assert_eq!(config.settle, Duration::from_secs(5));
        assert_eq!(config.gone_after, Duration::from_secs(120));
        assert_eq!(config.timeouts_s[..3], [75, 7_200, 60]);
        assert_eq!(config.metrics.unwrap().port(), 9465);
        assert_eq!(config.services.len(), 1);
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let config = parse_config("[agent]\ninterfaces = [\"eth0\"]\n", "f").unwrap();
        let expected = AgentConfig {
            interfaces: vec!["eth0".into()],
            ..AgentConfig::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn wrong_keys_and_values_are_refused_with_their_place() {
        let agent = "[agent]\ninterfaces = [\"eth0\"]\n";
        for (text, part) in [
            (String::new(), "f:1:1: no interface is named"),
            ("[agent]\nhook = \"tc\"\n".into(), "no interface is named"),
            ("[agent]\ninterfaces = []\n".into(), "no interface is named"),
            (
                "[agent]\ninterfaces = [\"a\", \"a\"]\n".into(),
                "f:2:20: interface \"a\" is named twice",
            ),
            (
                "[agent]\ninterfaces = [\"a/b\"]\n".into(),
                "is no interface name",
            ),
            (
                "[agnet]\n".into(),
                "f:1:2: the file has no key \"agnet\": did you mean \"agent\"?",
            ),
            (
                format!("{agent}watch_one_in = 48\n"),
                "f:3:16: watch_one_in = 48 is no power of two",
            ),
            (format!("{agent}watch_one_in = 0\n"), "write 1 to 65536"),
            (
                format!("{agent}hook = \"ebpf\"\n"),
                "write \"auto\", \"xdp\" or \"tc\"",
            ),
            (
                format!("{agent}flow_capacity = 3\n"),
                "f:3:17: flow_capacity = 3 is out of range",
            ),
            (format!("{agent}state_dir = \"x\"\n"), "begins with '/'"),
            (format!("{agent}settle = \"1.5s\"\n"), "is no duration"),
            (
                format!("{agent}[agent.timeouts]\nclosing = 0\n"),
                "out of range: write 1 to",
            ),
            (
                format!("{agent}[agent.timeouts]\nopen = 1\n"),
                "has no key \"open\"",
            ),
            (
                format!("{agent}[api]\ntcp = \"0.0.0.0:1\"\n"),
                "unix socket only",
            ),
            (
                format!("{agent}[gates]\nhosts = [\"a\", \"A:80\"]\n"),
                "f:4:15: hosts: \"a:80\" is named twice",
            ),
            (
                format!("{agent}[gates]\nhosts = [\"http://a\"]\n"),
                "is no host with its port",
            ),
            (
                format!("{agent}[gates]\nexec_user = \"root\"\n"),
                "run without privileges",
            ),
            (
                format!("{agent}[gates]\nexec_dir = \"x\"\n"),
                "begins with '/'",
            ),
            (
                format!("{agent}[gates]\nca = \"ca.pem\"\n"),
                "begins with '/'",
            ),
            (
                format!("{agent}[metrics]\nlisten = \"x\"\n"),
                "no address to listen on",
            ),
        ] {
            let error = parse_config(&text, "f").unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
