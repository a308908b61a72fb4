//! packaging/shifter.service by systemd's own judgement, and by ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use shifter_tests::{agent::binary, command::run, need};

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
