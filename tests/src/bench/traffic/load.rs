//! Load: nginx behind wrk, iperf3, and the CPU time of the whole machine.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::way::{BULK_PORT, shared_by_servers};
use crate::{
    command::{Process, eventually, run},
    topology::{Family, Lab, Side},
};

/// Connections that wrk holds, in two threads.
const CONNECTIONS: u32 = 32;

/// Programs that the load is made with, and their Debian packages.
pub const TOOLS: [(&str, &str); 3] = [
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("iperf3", "iperf3"),
];

/// What wrk says.
#[derive(Clone, Debug)]
pub struct Requests {
    pub count: u64,
    /// Of connections that failed.
    pub failed: u64,
    /// The same by kind, as wrk says it, if there were any.
    pub errors: Option<String>,
    pub per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    /// CPU time of the whole machine for a million of them.
    pub cpu_s_per_million: f64,
}

/// Servers of a lab: nginx on both sides, iperf3 on blue.
pub fn servers(lab: &Lab) -> Result<Vec<Process>> {
    let mut servers = vec![nginx(lab, Side::Blue)?, nginx(lab, Side::Green)?];
    let mut command = lab.server_ns(Side::Blue).command("iperf3");
    command.args(["-s", "-p", &BULK_PORT.to_string()]);
    servers.push(Process::start(command, lab.dir().join("iperf3.log"))?);
    let bulk = Lab::at_port(lab.listen(Side::Blue, Family::V4), BULK_PORT);
    for addr in [
        lab.listen(Side::Blue, Family::V4),
        lab.listen(Side::Green, Family::V4),
        bulk,
    ] {
        let is_up = eventually(Duration::from_secs(5), || {
            lab.client.run(|| TcpStream::connect(addr)).is_ok()
        });
        ensure!(is_up, "no server answers at {addr}");
    }
    Ok(servers)
}

fn nginx(lab: &Lab, side: Side) -> Result<Process> {
    let dir = lab.dir().join(format!("nginx-{}", side.name()));
    let shared = shared_by_servers(lab);
    lab.server_ns(side)
        .ip(&[format!("addr add {}/32 dev lo", shared.ip())])?;
    fs::create_dir_all(&dir)?;
    let path = |file: &str| dir.join(file).display().to_string();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {};", path(what)))
        .concat();
    let config = format!(
        "daemon off; master_process off; user root; pid {}; error_log {};
         events {{ worker_connections 8192; }}
         http {{ {temp} keepalive_requests 1000000000; access_log off;
           server {{ listen {} backlog=8192; listen {shared} backlog=8192; location / {{ return 200 'a short answer'; }} }} }}",
        path("pid"),
        path("error"),
        lab.listen(side, Family::V4),
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = lab.server_ns(side).command("nginx");
    command.arg("-p").arg(&dir).args(["-c", "nginx.conf", "-e"]);
    command.arg(dir.join("error"));
    Process::start(command, dir.join("output"))
}

/// Requests from two threads, each to an address of its own; with `is_short`
/// each over a connection of its own.
pub fn wrk(lab: &Lab, to: [SocketAddr; 2], seconds: u64, is_short: bool) -> Result<Requests> {
    let script = lab.dir().join("wrk.lua");
    let lookups = to.map(|addr| format!("wrk.lookup('{}', '{}')[1]", addr.ip(), addr.port()));
    fs::write(
        &script,
        format!(
            "local to, turn\n\
             function setup(thread)\n\
               to = to or {{ {} }}\n\
               turn = (turn or 0) % #to + 1\n\
               thread.addr = to[turn]\n\
             end\n\
             function done(summary, latency)\n\
               local e = summary.errors\n\
               io.write(string.format('RESULT %d %d %d %d %d %d\\n', summary.requests,\n\
                 summary.duration, e.connect + e.read + e.write + e.status + e.timeout,\n\
                 latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))\n\
             end\n",
            lookups.join(", ")
        ),
    )?;
    let mut command = lab.client.command("wrk");
    command.args(["-t2", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    if is_short {
        command.args(["-H", "Connection: close"]);
    }
    command.arg("-s").arg(&script);
    command.arg(format!("http://{}/", to[0]));
    let before = busy_s()?;
    let output = run(&mut command)?;
    let busy = busy_s()? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Option<Vec<u64>> = text
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .map(|line| {
            line.split(' ')
                .map(|word| word.parse().unwrap_or(0))
                .collect()
        });
    let Some(&[count, duration_us, errors, p50, p99, p999]) = numbers.as_deref() else {
        bail!("wrk said something else: {text}");
    };
    ensure!(count > 0, "wrk got no answer:\n{text}");
    let ms = |us: u64| us as f64 / 1e3;
    let errors_by_kind = text.lines().find(|line| line.contains("Socket errors"));
    Ok(Requests {
        count,
        failed: errors,
        errors: errors_by_kind.map(|line| line.trim().to_owned()),
        per_s: count as f64 / (duration_us as f64 / 1e6),
        p50_ms: ms(p50),
        p99_ms: ms(p99),
        p999_ms: ms(p999),
        cpu_s_per_million: busy / count as f64 * 1e6,
    })
}

impl Requests {
    /// Says what failed, of whom, on stderr.
    pub fn tell(&self, whose: &str) {
        if let Some(errors) = &self.errors {
            eprintln!("{whose}: {errors}");
        }
    }
}

/// Gbit/s that arrive from one sender.
pub fn bulk(lab: &Lab, to: SocketAddr, seconds: u64) -> Result<f64> {
    let mut command: Command = lab.client.command("iperf3");
    command.args(["-J", "-c", &to.ip().to_string()]);
    command.args(["-p", &to.port().to_string(), "-t", &seconds.to_string()]);
    let output = run(&mut command)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rate = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 said something else: {report}"))?;
    Ok(rate / 1e9)
}

/// CPU time that the whole machine has worked, in s (proc(5), USER_HZ = 100).
fn busy_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    Ok(busy as f64 / 100.0)
}
