//! What the agent needs of the host's limits, checked before anything is made.
//!
//! Memory of maps counts for the cgroup of the process that makes them, not
//! for RLIMIT_MEMLOCK (kernel 5.11).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::datapath::{
    load::{Pins, possible_cpus, shapes},
    migrate::makes_table,
};

/// Open files that an agent needs: maps, links, connections of its clients.
const FILES: u64 = 256;
/// What has to be left beside the maps, for the agent itself.
const BESIDE: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Raises the limit of open files as far as this process may.
///
/// # Errors
/// When it is too low for an agent.
pub fn raise_files() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for what the kernel writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Ok(());
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        // SAFETY: `raised` is valid for what the kernel reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            limit = raised;
        }
    }
    refuse_few_files(limit.rlim_cur)
}

fn refuse_few_files(limit: u64) -> Result<()> {
    if limit < FILES {
        bail!(
            "this process may open {limit} files, and the agent needs {FILES}: raise the limit (LimitNOFILE= in the unit, `ulimit -n {FILES}` in a shell)"
        );
    }
    Ok(())
}

/// Refuses to make maps that the host has no memory for. Those that are there
/// have theirs.
///
/// # Errors
/// One that names what is short, and what would mend it.
pub fn check_memory(pins: &Pins, flow_capacity: u32) -> Result<()> {
    if !makes_table(pins, flow_capacity) {
        return Ok(());
    }
    // The kernel keeps a value for each CPU that there can be, whichever of them this
    // process may use.
    let cpus = possible_cpus();
    let needed: u64 = shapes(flow_capacity)
        .iter()
        .map(|shape| shape.bytes(cpus))
        .sum();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    refuse_little_memory(
        needed,
        flow_capacity,
        available(&meminfo),
        cgroup_leaves(&own, Path::new(CGROUPS)),
    )
}

fn refuse_little_memory(
    needed: u64,
    flow_capacity: u32,
    available: Option<u64>,
    cgroup: Option<(PathBuf, u64)>,
) -> Result<()> {
    let wanted = needed + BESIDE;
    let maps = format!(
        "the maps of flow_capacity = {flow_capacity} take {} MiB, and the agent {} MiB",
        needed / MIB,
        BESIDE / MIB
    );
    if let Some(available) = available.filter(|available| *available < wanted) {
        bail!(
            "{maps}, but this host has only {} MiB of memory available: set a smaller flow_capacity (128 bytes a flow) in shifter.toml, or free memory",
            available / MIB
        );
    }
    if let Some((cgroup, left)) = cgroup.filter(|(_, left)| *left < wanted) {
        bail!(
            "{maps}, but the cgroup {} leaves only {} MiB (memory.max): raise it (MemoryMax= in the unit), or set a smaller flow_capacity (128 bytes a flow) in shifter.toml",
            cgroup.display(),
            left / MIB
        );
    }
    Ok(())
}

/// MemAvailable of /proc/meminfo, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Bytes of files in the cache, by memory.stat of a cgroup.
fn cached(stat: &str) -> u64 {
    let of = |name: &str| -> Option<u64> {
        let line = stat.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    of("active_file ").unwrap_or(0) + of("inactive_file ").unwrap_or(0)
}

/// The cgroup (version 2) above this process that leaves the least, and how
/// many bytes; `None` where none has a limit.
fn cgroup_leaves(own: &str, root: &Path) -> Option<(PathBuf, u64)> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut least = None;
    for cgroup in Path::new(path.trim_start_matches('/')).ancestors() {
        let directory = root.join(cgroup);
        let number = |file: &str| -> Option<u64> {
            let text = fs::read_to_string(directory.join(file)).ok()?;
            text.trim().parse().ok()
        };
        // "max" is no number.
        let Some(limit) = number("memory.max") else {
            continue;
        };
        // Files in the cache count as well, and give way.
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let used = number("memory.current").unwrap_or(0);
        let left = limit.saturating_sub(used.saturating_sub(cached(&stat)));
        if least.as_ref().is_none_or(|(_, least)| left < *least) {
            least = Some((Path::new("/").join(cgroup), left));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_files_are_refused_with_what_mends_it() {
        assert!(refuse_few_files(1024).is_ok());
        let refused = refuse_few_files(64).unwrap_err().to_string();
        for part in ["64 files", "needs 256", "LimitNOFILE=", "ulimit -n 256"] {
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn too_little_memory_is_refused_with_what_mends_it() {
        let needed = 200 * MIB;
        let flows = 1 << 20;
        assert!(refuse_little_memory(needed, flows, None, None).is_ok());
        assert!(refuse_little_memory(needed, flows, Some(264 * MIB), None).is_ok());
        let host = refuse_little_memory(needed, flows, Some(263 * MIB), None);
        let host = host.unwrap_err().to_string();
        for part in ["1048576 take 200 MiB", "only 263 MiB", "flow_capacity"] {
            assert!(host.contains(part), "{host}");
        }
        let cgroup = Some((PathBuf::from("/system.slice/shifter.service"), 100 * MIB));
        let cgroup = refuse_little_memory(needed, flows, Some(4_096 * MIB), cgroup);
        let cgroup = cgroup.unwrap_err().to_string();
        for part in [
            "/system.slice/shifter.service",
            "only 100 MiB",
            "MemoryMax=",
        ] {
            assert!(cgroup.contains(part), "{cgroup}");
        }
    }

    #[test]
    fn the_default_table_is_counted_whole() {
        let bytes: u64 = shapes(1 << 20).iter().map(|shape| shape.bytes(2)).sum();
        assert!(bytes > 128 * MIB && bytes < 256 * MIB, "{bytes}");
    }

    #[test]
    fn files_in_the_cache_give_way() {
        assert_eq!(cached("anon 7\ninactive_file 300\nactive_file 50\n"), 350);
        assert_eq!(cached(""), 0);
    }

    #[test]
    fn what_is_available_is_read_in_bytes() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available(text), Some(2 * MIB));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_cgroup_that_leaves_the_least_counts() {
        let root = std::env::temp_dir().join(format!("shifter-cgroup-{}", std::process::id()));
        let unit = root.join("system.slice/shifter.service");
        fs::create_dir_all(&unit).unwrap();
        let own = "1:name=systemd:/x\n0::/system.slice/shifter.service\n";
        assert_eq!(cgroup_leaves(own, &root), None);
        fs::write(unit.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("system.slice/memory.max"), "1000\n").unwrap();
        fs::write(root.join("system.slice/memory.current"), "400\n").unwrap();
        let slice = PathBuf::from("/system.slice");
        assert_eq!(cgroup_leaves(own, &root), Some((slice, 600)));
        fs::write(unit.join("memory.max"), "500\n").unwrap();
        let (least, left) = cgroup_leaves(own, &root).unwrap();
        assert!(least.ends_with("shifter.service") && left == 500);
        fs::remove_dir_all(root).unwrap();
    }
}
