//! Kernel, privileges and file systems.

use std::{fs, path::Path};

use super::Finding;
use crate::{
    datapath::memory::{NO_BARRIER, has_grace_period},
    network::sysctl,
};

const BPFFS: &str = "/sys/fs/bpf";
const BTF: &str = "/sys/kernel/btf/vmlinux";
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Oldest kernel that is tested, and the first with tcx.
const OLDEST: (u32, u32) = (6, 1);
const TCX: (u32, u32) = (6, 6);

/// Looks at the machine itself.
pub(super) fn check(findings: &mut Vec<Finding>) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    findings.push(kernel(release.trim()));
    findings.push(match Path::new(BTF).exists() {
        true => Finding::ok(format!("the kernel carries type information ({BTF})")),
        false => Finding::error(
            format!("the kernel carries no type information: {BTF} is missing"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions build it",
        ),
    });
    findings.push(bpffs(
        &fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
    ));
    findings.push(capabilities(
        &fs::read_to_string("/proc/thread-self/status").unwrap_or_default(),
    ));
    findings.push(barrier(has_grace_period()));
    // The file is there in the first network namespace only.
    match sysctl("net.core.bpf_jit_enable").as_deref() {
        Some("0") => findings.push(Finding::warning(
            "the BPF compiler is off: every packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )),
        Some(_) => findings.push(Finding::ok("the BPF compiler is on")),
        None => {}
    }
}

/// What is written anew is used again only after a grace period.
fn barrier(is_there: bool) -> Finding {
    match is_there {
        true => Finding::ok("membarrier waits for readers: what writes replace is used again"),
        false => Finding::warning(
            NO_BARRIER,
            "take nohz_full= off the kernel's command line (cat /proc/cmdline), and boot",
        ),
    }
}

/// `(major, minor)` of a release such as "6.1.0-18-amd64".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    match version(release) {
        None => Finding::warning(
            format!("the kernel's version {release:?} cannot be read"),
            "6.1 or newer is needed; see uname -r",
        ),
        Some(found) if found < OLDEST => Finding::error(
            format!("kernel {release} is too old"),
            "boot kernel 6.1 or newer",
        ),
        Some(found) if found < TCX => Finding::ok(format!(
            "kernel {release}: tc programs hang in clsact (tcx comes with 6.6)"
        )),
        Some(_) => Finding::ok(format!("kernel {release}: tc programs hang in tcx")),
    }
}

fn bpffs(mounts: &str) -> Finding {
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    });
    match mounted {
        true => Finding::ok(format!("bpffs is mounted at {BPFFS}")),
        false => Finding::error(
            format!("bpffs is not mounted at {BPFFS}: nothing can outlive the agent"),
            format!("mount -t bpf bpf {BPFFS}"),
        ),
    }
}

/// Reads CapEff of /proc/PID/status.
fn capabilities(status: &str) -> Finding {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    let missing: Vec<&str> = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|(capability, _)| {
        let by_admin = *capability != CAP_NET_ADMIN && has(CAP_SYS_ADMIN);
        !has(*capability) && !by_admin
    })
    .map(|(_, name)| name)
    .collect();
    match missing.is_empty() {
        true => Finding::ok("capabilities to load and attach programs are there"),
        false => Finding::error(
            format!(
                "{} missing: programs cannot be loaded or attached",
                missing.join(", ")
            ),
            "run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON in the unit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_kernel_without_a_grace_period_is_warned_of_with_what_follows() {
        assert_eq!(barrier(true).level, Level::Ok);
        let refused = barrier(false);
        assert_eq!(refused.level, Level::Warning);
        for part in ["membarrier", "nohz_full", "writes are refused"] {
            assert!(refused.what.contains(part), "{}", refused.what);
        }
    }

    #[test]
    fn kernels_older_than_the_oldest_tested_are_an_error() {
        assert_eq!(kernel("5.15.0-91-generic").level, Level::Error);
        assert_eq!(kernel("6.0.19").level, Level::Error);
        let clsact = kernel("6.1.0-18-cloud-amd64");
        assert_eq!(clsact.level, Level::Ok);
        assert!(clsact.what.contains("clsact"));
        assert!(kernel("6.18.44").what.contains("in tcx"));
        assert!(kernel("10.0.1").what.contains("in tcx"));
        assert_eq!(kernel("linux").level, Level::Warning);
    }

    #[test]
    fn bpffs_counts_only_where_it_is_looked_for() {
        let elsewhere = "bpf /run/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n";
        let missing = bpffs(elsewhere);
        assert_eq!(missing.level, Level::Error);
        assert_eq!(
            missing.remedy.as_deref(),
            Some("mount -t bpf bpf /sys/fs/bpf")
        );
        assert_eq!(
            bpffs("none /sys/fs/bpf bpf rw,mode=700 0 0\n").level,
            Level::Ok
        );
    }

    #[test]
    fn missing_capabilities_are_named() {
        let status = |bits: u64| format!("Name:\tx\nCapEff:\t{bits:016x}\nCapBnd:\t0\n");
        assert_eq!(capabilities(&status(u64::MAX >> 23)).level, Level::Ok);
        assert_eq!(
            capabilities(&status(1 << 12 | 1 << 38 | 1 << 39)).level,
            Level::Ok
        );
        assert_eq!(capabilities(&status(1 << 12 | 1 << 21)).level, Level::Ok);
        let found = capabilities(&status(1 << 21));
        assert_eq!(found.level, Level::Error);
        assert!(
            found.what.starts_with("CAP_NET_ADMIN missing"),
            "{}",
            found.what
        );
        assert!(
            capabilities(&status(1 << 12))
                .what
                .contains("CAP_BPF, CAP_PERFMON")
        );
        assert_eq!(capabilities("").level, Level::Error);
    }
}
