//! Loads the programs over maps that are pinned, or pins new ones.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapInfo},
};
use shifter_common::{
    abi::{self, flow::SET_ENTRIES, ring::RING_LANES, signals},
    known::KNOWN_WORDS,
};

use super::DatapathError;

/// The eBPF object, aligned as the ELF reader needs it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shifter"));

/// A map that outlives the agent.
pub struct MapShape {
    pub name: &'static str,
    pub entries: u32,
    pub(super) key: u32,
    pub(super) value: u32,
}

/// Maps with a value for each CPU.
pub(super) const PER_CPU: [&str; 7] = [
    "POOL_COUNTERS",
    "SIGNALS",
    "HISTOGRAMS",
    "SPLIT_ERRORS",
    "BACKEND_COUNTERS",
    "VERDICTS",
    "EVICTED",
];
/// The one map that takes memory as it fills.
pub(super) const COHORTS: &str = "COHORTS";
/// What the kernel keeps beside each element of a hash map, about.
const HASH_ELEMENT: u64 = 64;

impl MapShape {
    /// Kernel memory that it takes when it is made, about.
    pub fn bytes(&self, cpus: u64) -> u64 {
        if self.name == COHORTS {
            return 0;
        }
        let values = match PER_CPU.contains(&self.name) {
            true => cpus,
            false => 1,
        };
        let beside = if self.key == 4 {
            0
        } else {
            HASH_ELEMENT + u64::from(self.key)
        };
        u64::from(self.entries) * (u64::from(self.value).next_multiple_of(8) * values + beside)
    }
}

const fn array<T>(name: &'static str, entries: u32) -> MapShape {
    MapShape {
        name,
        entries,
        key: 4,
        value: size_of::<T>() as u32,
    }
}

/// A table that is the one value of its map.
const fn table<T>(name: &'static str, elements: u32) -> MapShape {
    MapShape {
        name,
        entries: 1,
        key: 4,
        value: elements * size_of::<T>() as u32,
    }
}

/// Programs that a packet can be left to.
const fn programs(name: &'static str, entries: u32) -> MapShape {
    MapShape {
        name,
        entries,
        key: 4,
        value: 4,
    }
}

/// See docs/maps.md.
pub(super) const OLD_XDP: &str = "OLD_XDP";
/// See docs/maps.md.
pub(super) const OLD_TC: &str = "OLD_TC";

/// CPUs that the kernel keeps values of per-CPU maps for. Without their number it would
/// have no such maps.
pub fn possible_cpus() -> u64 {
    aya::util::nr_cpus().unwrap_or(1) as u64
}

/// Number of sets for a capacity: twice as many entries as flows, a power of two.
pub fn flow_sets(capacity: u32) -> u32 {
    (2 * capacity)
        .div_ceil(SET_ENTRIES as u32)
        .next_power_of_two()
        .max(2)
}

/// Sets whose flows have times.
pub fn timed_sets(capacity: u32) -> u32 {
    flow_sets(capacity).min(signals::TIMED_SETS)
}

/// Every pinned map with the shape that this agent works with.
pub fn shapes(flow_capacity: u32) -> Vec<MapShape> {
    let key = size_of::<abi::AddressKey>() as u32;
    vec![
        array::<abi::Config>("CONFIG", 1),
        table::<u64>("KNOWN", KNOWN_WORDS as u32),
        MapShape {
            name: "VIPS",
            entries: 2 * abi::MAX_SERVICES,
            key,
            value: 4,
        },
        MapShape {
            name: "BACKEND_IDS",
            entries: abi::MAX_BACKEND_IDS,
            key,
            value: 4,
        },
        table::<abi::Backend>("BACKENDS", abi::MAX_BACKEND_IDS),
        table::<u64>("SERVICE_HEAD", abi::MAX_SERVICES),
        table::<abi::ServiceBody>("SERVICE_BODY", abi::MAX_SERVICE_BODIES),
        array::<u64>("RINGS", abi::MAX_RING_SLOTS / RING_LANES),
        table::<abi::NextHop>("NEXT_HOPS", abi::MAX_NEXT_HOPS),
        MapShape {
            name: "NEXT_HOP_IDS",
            entries: abi::MAX_NEXT_HOPS,
            key: size_of::<abi::NextHopKey>() as u32,
            value: 4,
        },
        MapShape {
            name: COHORTS,
            entries: abi::cohort::MAX_COHORT_ELEMENTS,
            key: 4 + size_of::<abi::CohortAddress>() as u32,
            value: size_of::<abi::CohortRule>() as u32,
        },
        array::<abi::flow::FlowSet>("FLOWS", flow_sets(flow_capacity)),
        array::<abi::FirstFlow>("FIRST_FLOW", abi::MAX_SERVICES),
        array::<signals::TimesSet>("FLOW_TIMES", timed_sets(flow_capacity)),
        array::<abi::BreakerRecord>("BREAKERS", abi::MAX_SERVICES),
        array::<signals::SignalCounts>("SIGNALS", 2 * abi::MAX_SERVICES),
        array::<signals::HistogramCounts>(
            "HISTOGRAMS",
            2 * signals::HISTOGRAM_SERVICES * signals::HISTOGRAMS,
        ),
        array::<abi::PoolCounters>("POOL_COUNTERS", 2 * abi::MAX_SERVICES),
        array::<u64>("SPLIT_ERRORS", abi::MAX_SERVICES),
        array::<abi::BackendCounters>("BACKEND_COUNTERS", abi::MAX_BACKEND_IDS),
        array::<u64>("VERDICTS", abi::stats::HOOKS * abi::stats::REASONS),
        array::<u64>("EVICTED", abi::stats::STATES),
        programs(OLD_XDP, abi::miss::XDP_MISSES),
        programs(OLD_TC, abi::miss::TC_MISSES),
    ]
}

/// A failed call of the kernel with what would mend it.
pub fn failed(
    operation: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    remedy: &str,
) -> DatapathError {
    let source = source.into();
    let mut text = source.to_string();
    let mut cause = source.source();
    while let Some(next) = cause {
        let line = next.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = next.source();
    }
    let remedy = if remedy.is_empty() {
        String::new()
    } else {
        format!("; {remedy}")
    };
    DatapathError::Kernel {
        operation: operation.into(),
        source: io::Error::other(text),
        remedy,
    }
}

/// Where maps and links of an installation are pinned.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Under a mounted bpffs.
    pub fn new(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join("shifter"),
        }
    }
    /// Directory of maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }
    /// Directory of the maps of another layout or size, while flows move there;
    /// afterwards for a moment that of those that they came from.
    pub fn next(&self) -> PathBuf {
        self.root.join("next")
    }
    /// Directory of links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes sure that this is the only agent over these pins; the lock ends
    /// with the process. A second one is told who holds it.
    pub fn lock(&self) -> Result<fs::File, DatapathError> {
        self.create()?;
        let directory = fs::File::open(&self.root)
            .map_err(|error| failed(format!("opening {}", self.root.display()), error, ""))?;
        // SAFETY: takes a descriptor that is open.
        let taken =
            unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) != 0 };
        if taken {
            let holder = holder_of(&directory).map_or_else(
                || "another process".to_owned(),
                |pid| format!("process {pid}"),
            );
            return Err(DatapathError::Refused(format!(
                "{holder} is the agent of this host already (it holds {}): take over from it with `shifter agent --replace`, or stop it first",
                self.root.display()
            )));
        }
        Ok(directory)
    }

    /// Whether an agent runs over these pins.
    pub fn is_locked(&self) -> bool {
        self.root.exists() && self.lock().is_err()
    }

    /// Directory of marks: a directory for each interface index that
    /// `shifter detach` was called for, or `all`.
    fn detached(&self) -> PathBuf {
        self.root.join("detached")
    }

    /// The mark of one interface, or of all.
    fn mark(&self, ifindex: Option<u32>) -> PathBuf {
        let name = ifindex.map_or_else(|| "all".to_owned(), |index| index.to_string());
        self.detached().join(name)
    }

    /// Notes for a running agent that the operator wants the programs off.
    /// Returns whether that was not noted before.
    pub fn mark_detached(&self, ifindex: Option<u32>) -> Result<bool, DatapathError> {
        let path = self.mark(ifindex);
        let is_new = !path.exists();
        fs::create_dir_all(&path)
            .map_err(|error| failed(format!("creating {}", path.display()), error, ""))?;
        Ok(is_new)
    }

    /// Takes such a note back.
    pub fn unmark_detached(&self, ifindex: Option<u32>) -> Result<(), DatapathError> {
        let path = self.mark(ifindex);
        fs::remove_dir(&path)
            .map_err(|error| failed(format!("removing {}", path.display()), error, ""))
    }

    /// Whether the operator wants the programs off an interface.
    pub fn is_detached(&self, ifindex: u32) -> bool {
        let marks = self.detached();
        marks.join("all").exists() || marks.join(ifindex.to_string()).exists()
    }

    /// Forgets these marks: an agent that starts follows its configuration.
    pub fn clear_detached(&self) -> Result<(), DatapathError> {
        let marks = self.detached();
        match fs::remove_dir_all(&marks) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(format!("removing {}", marks.display()), error, ""))
            }
            _ => Ok(()),
        }
    }

    /// Forgets everything: the maps too, and with them all flows.
    pub fn remove(&self) -> Result<(), DatapathError> {
        if self.root.exists() {
            fs::remove_dir_all(&self.root)
                .map_err(|error| failed(format!("removing {}", self.root.display()), error, ""))?;
        }
        Ok(())
    }

    /// Makes the directories, on a BPF file system that somebody else has mounted.
    pub fn create(&self) -> Result<(), DatapathError> {
        let parent = self.root.parent().unwrap_or(Path::new("/"));
        if !is_bpffs(parent) {
            return Err(DatapathError::Refused(format!(
                "{} is no BPF file system, where maps and links outlive the agent: mount -t bpf bpf {}",
                parent.display(),
                parent.display()
            )));
        }
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory).map_err(|error| {
                failed(
                    format!("creating {}", directory.display()),
                    error,
                    "the agent needs root",
                )
            })?;
        }
        Ok(())
    }
}

/// Process that holds the flock of a file, by /proc/locks.
fn holder_of(file: &fs::File) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 4242 00:1b:13 0 EOF"
        let words: Vec<_> = line.split_whitespace().collect();
        let is_it = words.get(1) == Some(&"FLOCK")
            && words
                .get(5)
                .is_some_and(|file| file.rsplit(':').next() == Some(&inode));
        is_it.then(|| words.get(4)?.parse().ok()).flatten()
    })
}

/// Whether a path lies on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: an all-zero statfs is valid, the path is a C string.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &mut stat) == 0 && stat.f_type as i64 == BPF_FS_MAGIC
    }
}

/// Loads the object over a directory of maps; pinned maps of the right shape are
/// used, missing ones made and pinned. Maps of another shape refuse the start and
/// stay as they are.
pub fn load(maps: &Path, flow_capacity: u32) -> Result<Ebpf, DatapathError> {
    let shapes = shapes(flow_capacity);
    for shape in &shapes {
        check_pin(&maps.join(shape.name), shape)?;
    }
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("FLOWS", flow_sets(flow_capacity));
    loader.map_max_entries("FLOW_TIMES", timed_sets(flow_capacity));
    for shape in &shapes {
        loader.map_pin_path(shape.name, maps.join(shape.name));
    }
    loader.load(OBJECT).map_err(|error| {
        failed(
            "loading the eBPF object",
            error,
            "the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root), kernel 6.1 or later, and memory for its maps: `shifter doctor` tells what is missing",
        )
    })
}

fn check_pin(path: &Path, shape: &MapShape) -> Result<(), DatapathError> {
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(path).map_err(|error| {
        failed(
            format!("reading the pinned map {}", path.display()),
            error,
            "it was left by something else: `shifter detach --force` removes all pins and cuts flows on other backends than the VIP",
        )
    })?;
    let is = (info.key_size(), info.value_size(), info.max_entries());
    let wanted = (shape.key, shape.value, shape.entries);
    if is == wanted {
        return Ok(());
    }
    let why = if shape.name == "FLOWS" && (is.0, is.1) == (wanted.0, wanted.1) {
        let has = u64::from(is.2) * SET_ENTRIES as u64 / 2;
        format!("it was made for flow_capacity = {has}: set that again")
    } else {
        "it belongs to another version of shifter: start that version".to_owned()
    };
    Err(DatapathError::Refused(format!(
        "the pinned map {} has key, value and entries {is:?}, and this agent works with {wanted:?}; {why}, or give up its flows with `shifter detach --force`",
        path.display()
    )))
}

/// File descriptor of a map, whatever its kind.
pub fn map_fd(map: &Map) -> Result<std::os::fd::BorrowedFd<'_>, DatapathError> {
    let data = match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::LpmTrie(data) => data,
        _ => {
            return Err(DatapathError::Refused(
                "the eBPF object holds a map of an unknown kind".into(),
            ));
        }
    };
    Ok(data.fd().as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_new_once_and_can_be_taken_back() {
        let directory = std::env::temp_dir().join(format!("shifter-mark-{}", std::process::id()));
        let pins = Pins::new(&directory);
        assert!(pins.mark_detached(Some(7)).unwrap());
        assert!(!pins.mark_detached(Some(7)).unwrap());
        assert!(pins.is_detached(7) && !pins.is_detached(8));
        pins.unmark_detached(Some(7)).unwrap();
        assert!(!pins.is_detached(7));
        assert!(pins.mark_detached(None).unwrap());
        assert!(pins.is_detached(7));
        fs::remove_dir_all(directory).unwrap();
    }
}
