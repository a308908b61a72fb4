//! What the agent may do: no more than it needs, and what it lacks is said.
//!
//! CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON carry everything that packets need
//! (docs/service.md). What they do not carry is little, and never in silence.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use crate::{model::config::AgentConfig, store::STORE_FILE};

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_KILL: u32 = 5;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Those that are kept where they are given. The last three: sockets in
/// containers, their namespaces, and rules of the old iptables.
const KEPT: [(u32, &str); 6] = [
    (CAP_BPF, "CAP_BPF"),
    (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    (CAP_PERFMON, "CAP_PERFMON"),
    (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CAP_SYS_PTRACE, "CAP_SYS_PTRACE"),
    (CAP_NET_RAW, "CAP_NET_RAW"),
];

/// Tables of the old iptables, one a line; read by root only.
const OLD_TABLES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Gives up what this agent never needs, and with it what its children could
/// get. A thread has capabilities of its own: to be called before the second one.
pub fn drop_what_is_not_needed(config: &AgentConfig) {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let (permitted, bounding) = (set(&status, "CapPrm:"), set(&status, "CapBnd:"));
    let (Some(permitted), Some(bounding)) = (permitted, bounding) else {
        return;
    };
    let wanted = wanted(config);
    let mask = wanted
        .iter()
        .fold(0, |mask, (number, _)| mask | 1 << number);
    // Under the unit there is nothing to give up, and capset(2) is not allowed.
    if permitted & !mask == 0 {
        return;
    }
    let kept = permitted & mask;
    // Without this one the bounding set stays, and children of root get what is in it.
    let may_bound = permitted >> CAP_SETPCAP & 1 == 1;
    let give_up = if may_bound { bounding & !mask } else { 0 };
    match reduce(kept, give_up) {
        Ok(()) => {
            let names: Vec<&str> = wanted
                .iter()
                .filter(|(number, _)| kept >> number & 1 == 1)
                .map(|(_, name)| *name)
                .collect();
            tracing::info!(kept = names.join(" "), "capabilities reduced");
        }
        Err(error) => {
            tracing::warn!(%error, "giving up capabilities that are not needed failed; the agent goes on with them");
        }
    }
}

/// Whether this process has a capability, by its number.
fn has(number: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    set(&status, "CapEff:").is_some_and(|set| set >> number & 1 == 1)
}

/// Whether this process may become another user.
pub fn may_change_user() -> bool {
    has(CAP_SETUID) && has(CAP_SETGID)
}

/// What a runner of programs needs: to become another user, and to end what runs as
/// one. It gives up all else, for itself and for its children.
pub fn keep_for_runner() -> io::Result<()> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let all = |key| set(&status, key).unwrap_or(0);
    let mask = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_KILL;
    let give_up = match has(CAP_SETPCAP) {
        true => all("CapBnd:") & !mask,
        false => 0,
    };
    reduce(all("CapPrm:") & mask, give_up)
}

/// What this configuration needs at most.
fn wanted(config: &AgentConfig) -> Vec<(u32, &'static str)> {
    let mut wanted = KEPT.to_vec();
    if config
        .metrics
        .is_some_and(|listen| (1..1024).contains(&listen.port()))
    {
        wanted.push((CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"));
    }
    // Root without this is an owner like any other.
    let store = config.state_dir.join(STORE_FILE);
    // Of the socket its directory: one that is left over is this user's, and a new one is made.
    let unix = config.unix.parent().unwrap_or(Path::new("/"));
    let paths = [&*store, &*config.state_dir, unix, &*config.bpffs];
    if !paths.into_iter().all(is_own) {
        wanted.push((CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"));
    }
    wanted
}

/// Whether a path, or what it would be made in, is this user's.
fn is_own(path: &Path) -> bool {
    // SAFETY: it cannot fail and touches no memory.
    let own = unsafe { libc::geteuid() };
    let found = path.ancestors().find_map(|path| fs::metadata(path).ok());
    found.is_none_or(|found| found.uid() == own)
}

/// Leaves this thread, those that it starts, and its children with `kept`.
fn reduce(kept: u64, give_up: u64) -> io::Result<()> {
    // First: it needs CAP_SETPCAP.
    for number in (0..64).filter(|number| give_up >> number & 1 == 1) {
        // SAFETY: takes numbers, concerns the calling thread.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    /// `struct __user_cap_header_struct` and its data, version 3 (linux/capability.h).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [kept as u32, (kept >> 32) as u32].map(|half| Data {
        effective: half,
        permitted: half,
        inheritable: 0,
    });
    // SAFETY: both are as the kernel reads them, and live over the call.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Warns of everything that a missing privilege takes away on this host.
pub fn say_what_is_missing() {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    // What cannot be read is taken for all.
    let effective = set(&status, "CapEff:").unwrap_or(u64::MAX);
    let has_old_tables = OLD_TABLES
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty()));
    for lack in lacks(effective, has_old_tables) {
        tracing::warn!("{lack}");
    }
}

/// A set of capabilities in /proc/PID/status.
fn set(status: &str, key: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn lacks(effective: u64, has_old_tables: bool) -> Vec<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut lacks = Vec::new();
    if !has(CAP_SYS_ADMIN) {
        lacks.push(
            "without CAP_SYS_ADMIN: sockets in containers are not looked at, so a flow to one that ended without a packet counts until its time is over; and programs that others attach from now on are not named until `shifter prepare` runs (docs/service.md has the drop-in that gives it)",
        );
    }
    if has_old_tables && !has(CAP_NET_RAW) {
        lacks.push(
            "without CAP_NET_RAW: this host has rules of the old iptables, which cannot be read, so a DNAT in front of a VIP is taken for granted: use iptables-nft, or give CAP_NET_RAW by a drop-in (docs/service.md)",
        );
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    const UNIT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

    #[test]
    fn what_a_missing_privilege_takes_away_is_named_and_nothing_else() {
        assert!(lacks(u64::MAX, true).is_empty());
        assert_eq!(lacks(UNIT, false).len(), 1);
        assert!(lacks(UNIT, false)[0].contains("CAP_SYS_ADMIN"));
        let both = lacks(UNIT, true);
        assert!(both[1].contains("CAP_NET_RAW"), "{both:?}");
        assert!(lacks(UNIT | 1 << 13 | 1 << 21, true).is_empty());
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\tx\nCapEff:\t000000c000001000\n";
        assert_eq!(set(status, "CapEff:"), Some(UNIT));
        assert_eq!(set(status, "CapBnd:"), None);
    }

    #[test]
    fn more_is_kept_only_where_the_configuration_needs_it() {
        let names = |config: &AgentConfig| -> Vec<&str> {
            wanted(config).into_iter().map(|(_, name)| name).collect()
        };
        let directory = std::env::temp_dir().join(format!("shifter-caps-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut config = AgentConfig {
            state_dir: directory.join("state"),
            unix: directory.join("shifter.sock"),
            bpffs: directory.clone(),
            ..AgentConfig::default()
        };
        assert_eq!(names(&config), KEPT.map(|(_, name)| name));
        config.metrics = Some(([127, 0, 0, 1], 80).into());
        assert_eq!(names(&config)[6..], ["CAP_NET_BIND_SERVICE"]);
        config.metrics = None;
        // Root may give it away; another user's home would do as well.
        if std::os::unix::fs::chown(&directory, Some(65534), None).is_ok() {
            assert_eq!(names(&config)[6..], ["CAP_DAC_OVERRIDE"]);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
