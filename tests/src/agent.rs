//! A shifter agent on a lab's host, and its command line.

use std::{
    env,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    blocker::Blocker,
    command::{Process, run},
    mover::{Service, to_toml},
    next::next_binary,
    topology::Lab,
};

/// How an agent is configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// "tc", "xdp" or "auto".
    pub hook: &'static str,
    pub flow_capacity: u64,
    /// Seconds after attach in which SYNs are looked up as sockets.
    pub settle: u32,
    /// Interfaces; empty: all of the lab's.
    pub interfaces: Vec<&'static str>,
    /// Lines added to the section `[agent]`.
    pub more: String,
    /// With the three capabilities of the unit only, after `shifter prepare`.
    pub confined: bool,
    /// A file for the system calls that it makes, as strace(1) writes them.
    pub traced: Option<PathBuf>,
    /// Variables of the agent's environment.
    pub environment: Vec<(&'static str, String)>,
    /// The agent of a later layout: see [`next_binary`].
    pub next: bool,
    /// Another build than the one beside the test.
    pub build: Option<PathBuf>,
}

impl Settings {
    /// A small table and no settling.
    pub fn hook(hook: &'static str) -> Self {
        Self {
            hook,
            flow_capacity: 65_536,
            settle: 0,
            interfaces: Vec::new(),
            more: String::new(),
            confined: false,
            traced: None,
            environment: Vec::new(),
            next: false,
            build: None,
        }
    }

    /// What is started.
    fn binary(&self) -> Result<PathBuf> {
        match &self.build {
            Some(build) => Ok(build.clone()),
            None if self.next => next_binary(),
            None => binary(),
        }
    }

    /// With the unit's capabilities only.
    pub fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    /// With tc programs in clsact, as on kernels before 6.6.
    pub fn with_clsact(mut self) -> Self {
        self.more += "hook_egress = \"clsact\"\n";
        self
    }

    /// With another table size.
    pub fn with_capacity(mut self, flows: u64) -> Self {
        self.flow_capacity = flows;
        self
    }

    /// With settling, which UDP flows need that are there before shifter is.
    pub fn with_settle(mut self, seconds: u32) -> Self {
        self.settle = seconds;
        self
    }
}

/// A running agent; ended, detached and removed when dropped.
#[derive(Debug)]
pub struct Agent<'lab> {
    lab: &'lab Lab,
    process: Option<Process>,
    starts: u32,
    settings: Settings,
    _far_end: Option<Blocker>,
}

/// setpriv(1) gives what packaging/shifter.service leaves root with.
const CONFINED: [&str; 4] = [
    "--bounding-set=-all,+bpf,+net_admin,+perfmon",
    "--inh-caps=-all",
    "--no-new-privs",
    "--",
];

/// How long an agent may take to be ready: it loads and verifies its programs.
fn start_limit() -> Duration {
    // An emulated CPU verifies ten times slower, and slower yet under traffic.
    let is_emulated = env::var_os("SHIFTER_TEST_EMULATED").is_some();
    Duration::from_secs(if is_emulated { 240 } else { 60 })
}

impl<'lab> Agent<'lab> {
    /// Starts an agent and waits until it answers.
    pub fn start(lab: &'lab Lab, settings: Settings) -> Result<Self> {
        fs::create_dir_all(lab.dir().join("state"))?;
        let mut agent = Self {
            lab,
            process: None,
            starts: 0,
            _far_end: far_end(lab, &settings)?,
            settings,
        };
        agent.configure(&agent.settings)?;
        agent.restart()?;
        Ok(agent)
    }

    /// Other settings, for the next start.
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        Ok(fs::write(self.config(), config_text(self.lab, settings))?)
    }

    /// Other settings, for the next start and all that follow.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        change(&mut self.settings);
        self.configure(&self.settings)
    }

    /// Path of the configuration file.
    pub fn config(&self) -> PathBuf {
        self.lab.dir().join("shifter.toml")
    }

    /// `unix://` address of the agent's socket.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Path of the agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.lab.dir().join("shifter.sock")
    }

    /// Starts the process again, after [`Agent::stop`] or [`Agent::kill`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = Some(self.begin(&[], &[])?);
        self.wait_until_ready()
    }

    /// Starts a process beside the one that runs, if one does: `shifter agent`
    /// with more words and variables. Nothing is waited for.
    pub fn begin(&mut self, words: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        self.starts += 1;
        if self.settings.confined {
            let mut prepare = self.lab.host.command_with_sys(self.settings.binary()?);
            run(prepare.args(["prepare", "--config"]).arg(self.config()))?;
        }
        let mut before = self.wrapper();
        before.push(self.settings.binary()?.into());
        let mut command = self.lab.host.command_with_sys(&before[0]);
        command.args(&before[1..]);
        command
            .args(["agent", "--config"])
            .arg(self.config())
            .args(words)
            .env("SHIFTER_BPFFS", self.lab.bpffs())
            .env("PATH", self.path()?)
            .env("RUST_LOG", env::var("RUST_LOG").unwrap_or("info".into()))
            .envs(self.settings.environment.iter().cloned())
            .envs(environment.iter().copied());
        let log = self.lab.dir().join(format!("agent-{}.log", self.starts));
        Process::start(command, log)
    }

    /// `shifter agent --replace`: waits until the new process serves and the
    /// old one has ended by itself.
    pub fn replace(&mut self) -> Result<()> {
        let mut new = self.begin(&["--replace"], &[])?;
        new.wait_for("serving took_ms", start_limit())?;
        let old = self.process.replace(new);
        if let Some(mut old) = old {
            match old.wait(Duration::from_secs(10)) {
                Some(status) if status.success() => {}
                ended => bail!("the old agent ended with {ended:?}:\n{}", old.output()),
            }
        }
        Ok(())
    }

    /// From now on this process is the agent; the one before is given.
    pub fn follow(&mut self, process: Process) -> Option<Process> {
        self.process.replace(process)
    }

    /// As [`Agent::restart`], with one more variable for this start only.
    pub fn restart_with(&mut self, name: &'static str, value: &str) -> Result<()> {
        self.settings.environment.push((name, value.to_owned()));
        let started = self.restart();
        self.settings.environment.pop();
        started
    }

    /// Waits for the process to end by itself; the signal that ended it.
    pub fn wait_for_signal(&mut self, limit: Duration) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        self.process.as_mut()?.wait(limit)?.signal()
    }

    /// Directory of its store.
    pub fn state_dir(&self) -> PathBuf {
        self.lab.dir().join("state")
    }

    /// What stands before the binary and becomes it.
    fn wrapper(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if self.settings.confined {
            words.push("setpriv".into());
            words.extend(CONFINED.map(OsString::from));
        }
        if let Some(file) = &self.settings.traced {
            // -D: the agent, not strace, is the process that is started.
            words.extend(["strace", "-D", "-f", "-qq", "-o"].map(OsString::from));
            words.push(file.into());
        }
        words
    }

    /// Programs of the lab come before those of the system.
    fn path(&self) -> Result<OsString> {
        let system = env::var_os("PATH").unwrap_or_default();
        let paths = env::split_paths(&system);
        let own = std::iter::once(self.lab.programs());
        Ok(env::join_paths(own.chain(paths))?)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()
            {
                bail!("the agent ended with {status}:\n{}", process.output());
            }
            if self.cli(&["status"])?.status.success() {
                return Ok(());
            }
            if start.elapsed() > start_limit() {
                bail!(
                    "the agent is not ready after {:?}:\n{}",
                    start_limit(),
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Process id, of the last start.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let Some(process) = &mut self.process {
            process.stop(Duration::from_secs(10));
        }
    }

    /// Sends a signal, such as SIGSTOP.
    pub fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// What the agent has logged since its last start.
    pub fn log(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// The command line, inside the host's namespace.
    pub fn cli_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.lab.host.command(binary()?);
        command
            .args(args)
            .env("SHIFTER_ENDPOINT", self.endpoint())
            .env("SHIFTER_BPFFS", self.lab.bpffs())
            .env("SHIFTER_CONFIG", self.config())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the command line; any exit code.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        self.cli_command(args)?
            .output()
            .with_context(|| format!("run shifter {}", args.join(" ")))
    }

    /// Runs the command line, which must end with 0; its standard output.
    pub fn done(&self, args: &[&str]) -> Result<String> {
        let output = self.cli(args)?;
        if !output.status.success() {
            bail!(
                "shifter {} ended with {}\n{}{}\nthe agent's log:\n{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                self.log()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Agent::done`] with `-o json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let text = self.done(&all)?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Writes a services file and its path.
    pub fn services_file(&self, text: &str) -> Result<PathBuf> {
        let path = self.lab.dir().join("services.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// `shifter apply -f`.
    pub fn apply(&self, services: &[Service]) -> Result<()> {
        let path = self.services_file(&to_toml(services))?;
        self.done(&["apply", "-f", path.to_str().context("a UTF-8 path")?])
            .map(drop)
    }

    /// `shifter shift SERVICE --green WEIGHT`.
    pub fn shift(&self, service: &str, green: &str) -> Result<()> {
        self.done(&["shift", service, "--green", green]).map(drop)
    }

    /// One service as `get services NAME -o json` shows it.
    pub fn service(&self, name: &str) -> Result<Value> {
        let all = self.json(&["get", "services", name])?;
        find_service(&all, name)
            .cloned()
            .with_context(|| format!("no service {name} in {all}"))
    }

    /// Flows that live on `[blue, green]` now.
    pub fn carried(&self, service: &str) -> Result<[u64; 2]> {
        let service = self.service(service)?;
        let carried = &service["weights"]["carried"];
        Ok([number(&carried["blue"]), number(&carried["green"])])
    }

    /// Flows chosen by weight so far for `[blue, green]`.
    pub fn new_flows(&self, service: &str) -> Result<[u64; 2]> {
        let service = self.service(service)?;
        Ok(["blue_counters", "green_counters"].map(|pool| number(&service[pool]["new_flows"])))
    }

    /// Flows of a service that were taken over, or forwarded without an entry.
    pub fn flows_without_entry(&self, service: &str) -> Result<u64> {
        let service = self.service(service)?;
        let of = |pool: &str| {
            let counters = &service[pool];
            number(&counters["adopted_flows"]) + number(&counters["unpinned_flows"])
        };
        Ok(of("blue_counters") + of("green_counters"))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.stop();
        // The lab's BPF file system goes with the lab; this shows that detach works too.
        let _ = self.cli(&["detach", "--force"]);
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}---", self.log());
        }
    }
}

/// XDP_TX over a veth wakes its peer only where that has an XDP program too
/// (`veth_xdp_flush` in drivers/net/veth.c), which a wire does not need.
fn far_end(lab: &Lab, settings: &Settings) -> Result<Option<Blocker>> {
    match lab.switch() {
        Some((switch, port)) if settings.hook == "xdp" => Blocker::attach(switch, port).map(Some),
        _ => Ok(None),
    }
}

/// The built binary: `SHIFTER_BIN`, or beside the test's own.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SHIFTER_BIN").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    sibling("shifter")
}

/// A binary in the target directory that the running one is in.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find the running binary")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not built beside {}: run `cargo build -p shifter -p shifter-tests`",
                own.display()
            )
        })
}

fn config_text(lab: &Lab, settings: &Settings) -> String {
    let named = match settings.interfaces.as_slice() {
        [] => lab.interfaces(),
        some => some,
    };
    let interfaces: Vec<String> = named.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        "[agent]\ninterfaces = [{}]\nhook = \"{}\"\nflow_capacity = {}\nsettle = {}\n\
         state_dir = \"{}\"\nbpffs = \"{}\"\n{}\n[api]\nunix = \"{}\"\n[metrics]\nlisten = \"{METRICS}\"\n",
        interfaces.join(", "),
        settings.hook,
        settings.flow_capacity,
        settings.settle,
        lab.dir().join("state").display(),
        lab.bpffs().display(),
        settings.more,
        lab.dir().join("shifter.sock").display(),
    )
}

/// Where the agent's metrics are, inside the host's namespace.
pub const METRICS: &str = "127.0.0.1:9464";

/// A service by name, whether the answer is one service, a list, or an object
/// that holds the list.
fn find_service<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let is_it = |v: &Value| v["spec"]["name"] == name || v["name"] == name;
    if is_it(value) {
        return Some(value);
    }
    let list = value.as_array().or_else(|| value["services"].as_array())?;
    list.iter().find(|v| is_it(v))
}

/// A number that JSON may carry as text (64-bit ones in protobuf's mapping do);
/// 0 if absent.
pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or(0)
}
