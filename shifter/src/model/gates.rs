//! Section `[gates]` of the agent's file: what gates of rollouts may reach.

use std::{path::PathBuf, time::Duration};

use super::{
    file_table::Table,
    tree::{Fault, Node, Value},
};
use crate::judge::{Allowed, allowed_host};

/// Keys of `[gates]`.
pub(super) const KEYS: [&str; 5] = ["hosts", "ca", "exec_dir", "exec_user", "timeout_max"];

/// What gates may reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatesConfig {
    /// `host:port` that PromQL and webhooks may go to.
    pub hosts: Vec<String>,
    /// A file in PEM with those who may have signed the certificates of these hosts;
    /// `None`: the host's own list.
    pub ca: Option<String>,
    /// Where the programs of exec gates lie; `None`: there are none.
    pub exec_dir: Option<PathBuf>,
    /// Who they run as.
    pub exec_user: String,
    /// The longest time-out that a gate may have.
    pub timeout_max: Duration,
}

impl Default for GatesConfig {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            ca: None,
            exec_dir: None,
            exec_user: "nobody".into(),
            timeout_max: Duration::from_secs(60),
        }
    }
}

impl GatesConfig {
    /// What [`crate::judge::check_allowed`] asks for.
    pub fn allowed(&self) -> Allowed {
        Allowed {
            hosts: self.hosts.clone(),
            exec: self.exec_dir.is_some(),
            timeout_max: Some(self.timeout_max),
        }
    }
}

pub(super) fn section(node: &Node) -> Result<GatesConfig, Fault> {
    let table = Table::of(node, "[gates]", &KEYS)?;
    let mut gates = GatesConfig::default();
    if let Some(entry) = table.find("hosts") {
        gates.hosts = hosts(&entry.node)?;
    }
    gates.ca = table
        .absolute_path("ca")?
        .map(|path| path.to_string_lossy().into_owned());
    gates.exec_dir = table.absolute_path("exec_dir")?;
    if let Some((user, at)) = table.string("exec_user")? {
        if user == "root" || user == "0" || user.is_empty() || user.contains([':', '\n']) {
            let text = format!(
                "exec_user = {user:?}: programs of gates run without privileges: write the name of a user as \"nobody\""
            );
            return Err(Fault::new(at, text));
        }
        gates.exec_user = user.to_owned();
    }
    if let Some(timeout) = table.seconds("timeout_max", 1)? {
        gates.timeout_max = Duration::from_secs(u64::from(timeout));
    }
    Ok(gates)
}

fn hosts(node: &Node) -> Result<Vec<String>, Fault> {
    let wrong = |at, what: &str| {
        Fault::new(
            at,
            format!("hosts: {what}: write a list as [\"127.0.0.1:9090\"]"),
        )
    };
    let Value::Array(items) = &node.value else {
        return Err(wrong(node.at, node.value.kind()));
    };
    let mut hosts = Vec::with_capacity(items.len());
    for item in items {
        let Value::String(text) = &item.value else {
            return Err(wrong(item.at, item.value.kind()));
        };
        match allowed_host(text) {
            Some(host) if !hosts.contains(&host) => hosts.push(host),
            Some(host) => return Err(wrong(item.at, &format!("{host:?} is named twice"))),
            None => {
                return Err(wrong(
                    item.at,
                    &format!("{text:?} is no host with its port"),
                ));
            }
        }
    }
    Ok(hosts)
}
