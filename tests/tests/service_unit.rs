//! packaging/shifter.service by systemd's own judgement, and by ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings, binary},
    command::{eventually, run},
    mover::Service,
    need,
    topology::{Family, Lab, Placement},
    traffic::server,
};

/// The most exposure that `systemd-analyze security` may find, in tenths. What
/// is left: it is root, loads BPF, changes the network, and answers on sockets.
const MOST_EXPOSURE: &str = "--threshold=22";

fn packaged() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/shifter.service");
    fs::read_to_string(path).unwrap()
}

/// The unit with the built binary in place of the installed one; removed when dropped.
struct Unit(PathBuf);

impl Unit {
    fn write() -> Self {
        let directory = std::env::temp_dir().join(format!("shifter-unit-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let own = binary().unwrap();
        let text = packaged().replace("/usr/bin/shifter", own.to_str().unwrap());
        fs::write(directory.join("shifter.service"), text).unwrap();
        Self(directory)
    }
    fn path(&self) -> PathBuf {
        self.0.join("shifter.service")
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Nothing is left to do about a failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Values of a key, in order.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_finds_little_exposed() {
    need!("systemd-analyze");
    let unit = Unit::write();
    let verified = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(unit.path()))
    .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(!said.contains("shifter.service"), "{said}");
    let judged = run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", MOST_EXPOSURE])
        .arg(unit.path()))
    .unwrap();
    let said = String::from_utf8_lossy(&judged.stdout);
    assert!(said.contains("Overall exposure level"), "{said}");
}

#[test]
fn the_unit_keeps_what_the_design_asks_of_it() {
    let text = packaged();
    for (key, wanted) in [
        ("Type", "notify"),
        ("Restart", "always"),
        ("CapabilityBoundingSet", "CAP_BPF CAP_NET_ADMIN CAP_PERFMON"),
        ("ExecStartPre", "+/usr/bin/shifter prepare"),
        ("ExecStart", "/usr/bin/shifter agent"),
        ("StateDirectory", "shifter"),
        ("RuntimeDirectory", "shifter"),
        // The datapath goes on while it tries again, so it never gives up.
        ("StartLimitIntervalSec", "0"),
    ] {
        assert_eq!(values(&text, key), [wanted], "{key}");
    }
    let after = values(&text, "After").join(" ");
    assert!(after.split(' ').any(|unit| unit == "sys-fs-bpf.mount"));
    // Ordered after it, and never the one who mounts it.
    for key in ["Requires", "RequiresMountsFor", "BindsTo", "ExecStartPre"] {
        let all = values(&text, key).join(" ");
        assert!(
            !all.contains("mount") && !all.contains("/sys/fs/bpf"),
            "{key}={all}"
        );
    }
    assert!(values(&text, "AmbientCapabilities").is_empty());
    assert!(values(&text, "WatchdogSec").len() == 1);
}

/// The sets that systemd knows, with what they name.
fn sets() -> BTreeMap<String, Vec<String>> {
    let output = run(Command::new("systemd-analyze").args(["--no-pager", "syscall-filter"]));
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let word = line.trim().to_owned();
        if line.starts_with('@') {
            name = word;
        } else if !word.starts_with('#') {
            sets.entry(name.clone()).or_default().push(word);
        }
    }
    assert!(sets.len() > 10, "{text}");
    sets
}

/// The system calls that the words of a filter name.
fn calls_of(words: &str, sets: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let mut left: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    while let Some(word) = left.pop() {
        match word.starts_with('@') {
            true => left.extend(sets[&word].iter().cloned()),
            false => {
                calls.insert(word);
            }
        }
    }
    calls
}

/// What the unit's lines allow, one after the other (systemd.exec(5)).
fn allowed() -> BTreeSet<String> {
    let sets = sets();
    let mut allowed = calls_of("@default", &sets);
    for line in values(&packaged(), "SystemCallFilter") {
        match line.strip_prefix('~') {
            Some(words) => {
                let denied = calls_of(words, &sets);
                allowed.retain(|call| !denied.contains(call));
            }
            None => allowed.extend(calls_of(line, &sets)),
        }
    }
    allowed
}

/// Names of calls in what `strace -f -o` writes: `PID name(...`.
fn made(trace: &str) -> BTreeSet<String> {
    trace
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect()
}

#[test]
fn every_system_call_of_the_agent_is_one_that_the_unit_allows() {
    need!("systemd-analyze", "strace", "setpriv");
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let trace = lab.dir().join("trace");
    let mut settings = Settings::hook("tc").confined();
    settings.traced = Some(trace.clone());
    let mut agent = Agent::start(&lab, settings).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4).with_green("50%");
    agent.apply(&[service]).unwrap();
    agent.shift("tcp4", "100%").unwrap();
    agent.done(&["rollback", "tcp4"]).unwrap();
    // Past a sweep, a look at the neighbours and one at the packet filter.
    std::thread::sleep(Duration::from_secs(7));
    agent.stop();
    let read = || fs::read_to_string(&trace).unwrap_or_default();
    let ended = eventually(Duration::from_secs(5), || read().contains("exit_group"));
    assert!(ended, "no trace in {}", trace.display());
    let made = made(&read());
    assert!(made.contains("bpf") && made.contains("execve"), "{made:?}");
    let allowed = allowed();
    let denied: Vec<_> = made.difference(&allowed).collect();
    assert!(denied.is_empty(), "the unit denies {denied:?}");
}
