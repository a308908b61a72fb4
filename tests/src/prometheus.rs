//! A real Prometheus beside the agent.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{certificates::Certificates, command::Process, topology::Lab};

/// Where it answers, inside the host's namespace.
pub const PROMETHEUS: &str = "127.0.0.1:9090";

/// Starts one that scrapes an address each second.
pub fn start(lab: &Lab, job: &str, scraped: &str) -> Result<Process> {
    Process::start(command(lab, job, scraped)?, log(lab))
}

/// As [`start`]; it is asked over TLS.
pub fn start_with_tls(
    lab: &Lab,
    job: &str,
    scraped: &str,
    certificates: &Certificates,
) -> Result<Process> {
    let config = lab.dir().join("prometheus-web.yml");
    let text = format!(
        "tls_server_config: {{ cert_file: {}, key_file: {} }}\n",
        certificates.cert.display(),
        certificates.key.display()
    );
    fs::write(&config, text)?;
    let mut command = command(lab, job, scraped)?;
    command.arg(format!("--web.config.file={}", config.display()));
    Process::start(command, log(lab))
}

fn log(lab: &Lab) -> PathBuf {
    lab.dir().join("prometheus.log")
}

fn command(lab: &Lab, job: &str, scraped: &str) -> Result<Command> {
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
    Ok(command)
}
