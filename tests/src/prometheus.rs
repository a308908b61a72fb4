//! A real Prometheus beside the agent.

use std::fs;

use anyhow::Result;

use crate::{command::Process, topology::Lab};

/// Where it answers, inside the host's namespace.
pub const PROMETHEUS: &str = "127.0.0.1:9090";

/// Starts one that scrapes an address each second.
pub fn start(lab: &Lab, job: &str, scraped: &str) -> Result<Process> {
    let config = lab.dir().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s }}\n\
         scrape_configs: [{{ job_name: {job}, static_configs: [{{ targets: ['{scraped}'] }}] }}]\n"
    );
    fs::write(&config, text)?;
    let mut command = lab.host.command("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            lab.dir().join("tsdb").display()
        ))
        .arg(format!("--web.listen-address={PROMETHEUS}"));
    Process::start(command, lab.dir().join("prometheus.log"))
}
