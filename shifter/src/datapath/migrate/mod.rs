//! From the pins of another layout, or of another table size, to this agent's,
//! while packets go on.
//!
//! New maps are made beside those that are there. The new programs find nothing
//! in their table at first, and leave such a packet to the program before, by a
//! tail call: so nothing changes when they are attached, whatever comes in
//! between. Then the agent copies the flows, and what was copied is the new
//! programs' own. Last, the programs before are asked no more: first about new
//! connections, then about other packets of clients, at the very end about
//! replies, with a grace period and a pass over the old table after each.

mod counts;
mod flows;
mod mark;
mod programs;
mod records;

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use aya::maps::MapInfo;
use shifter_common::abi::{
    ABI_VERSION, Config,
    flow::{FlowSet, SET_ENTRIES},
    miss::*,
    old::layout_of,
    signals::HISTOGRAMS,
};

use super::{
    DatapathError, NamedIds,
    attach::Ingress,
    load::{Pins, failed, flow_sets},
    memory::{MappedArray, grace_period},
    pinned::bpf,
};
use crate::fault;
use counts::{Counts, InForce, Times};
use flows::{NewTable, OldTable, Passed};
use mark::Mark;
pub use programs::pin_running;

const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;

/// What a start finds.
pub enum Ground {
    /// Maps of this layout and size, or none.
    Own,
    /// Others, whose flows move over.
    Other(Box<Migration>),
}

/// Flows on their way from one set of maps to another.
pub struct Migration {
    pins: Pins,
    old: OldTable,
    old_config: Config,
    /// What it is from, in words.
    from: String,
    /// Programs were attached over the new maps, by this start or an earlier one.
    begun: bool,
    /// No earlier one has.
    is_first: bool,
    programs: [Option<OwnedFd>; 3],
}

/// Version of the layout of the maps in a directory; `None` without any.
fn version_of(maps: &Path) -> Option<u32> {
    let config = open_map(&maps.join("CONFIG")).ok()?;
    let version = MappedArray::<u32>::new(&config, 1).ok()?.read(0);
    (version != 0).then_some(version)
}

/// Whether the pinned maps are another version's.
pub fn is_other_version(pins: &Pins) -> bool {
    version_of(&pins.maps()).is_some_and(|version| version != ABI_VERSION)
}

/// Whether a start makes a table of flows that is not there.
pub fn makes_table(pins: &Pins, flow_capacity: u32) -> bool {
    let fits = |maps: PathBuf| is_own(&maps, flow_capacity);
    !fits(pins.maps()) && !fits(pins.next())
}

fn flows_of(maps: &Path) -> Option<MapInfo> {
    MapInfo::from_pin(maps.join("FLOWS")).ok()
}

fn is_own(maps: &Path, flow_capacity: u32) -> bool {
    flows_of(maps).is_some_and(|flows| {
        flows.max_entries() == flow_sets(flow_capacity)
            && flows.value_size() == size_of::<FlowSet>() as u32
    }) && version_of(maps) == Some(ABI_VERSION)
}

/// Looks at what is pinned. Changes nothing but what a start left that had not
/// attached yet.
///
/// # Errors
/// When its flows cannot move to this layout and size; then all stays as it is.
pub fn look(pins: &Pins, flow_capacity: u32) -> Result<Ground, DatapathError> {
    let mark = Mark::read(pins);
    let Some(version) = version_of(&pins.maps()) else {
        return Ok(Ground::Own);
    };
    let Some(flows) = flows_of(&pins.maps()) else {
        if version == ABI_VERSION {
            return Ok(Ground::Own);
        }
        return Err(DatapathError::Refused(format!(
            "the pinned maps have layout {version}, this agent works with {ABI_VERSION}, and the pin of their table of flows is gone, so its flows cannot move: start the version that made them, which may find it, or give them up with `shifter detach --force`"
        )));
    };
    if is_own(&pins.maps(), flow_capacity) {
        return match mark {
            // Its own maps have taken the place of the old ones already.
            Some(Mark::Moved(id)) if id == flows.id() => Ok(Ground::Own),
            Some(Mark::Moved(_)) => Err(unfinished(pins)),
            Some(Mark::Moving(records)) if records == mark::records(pins)? => Err(unfinished(pins)),
            _ => Ok(Ground::Own),
        };
    }
    let capacity = u64::from(flows.max_entries()) * SET_ENTRIES as u64 / 2;
    let from = format!("layout {version} with room for {capacity} flows");
    let Some(layout) = layout_of(version).filter(|_| version <= ABI_VERSION) else {
        let why = if version > ABI_VERSION {
            "flows move from an older version of shifter to a newer one only"
        } else {
            "that is too old: an agent of a version between the two takes over from it first"
        };
        return Err(DatapathError::Refused(format!(
            "the pinned maps have {from}, and this agent works with layout {ABI_VERSION}: {why}; start the version that made them, or give up its flows with `shifter detach --force`"
        )));
    };
    let fits = flows.value_size() as usize == size_of::<FlowSet>()
        && layout.size * SET_ENTRIES == size_of::<FlowSet>();
    if !fits {
        return Err(DatapathError::Refused(format!(
            "the pinned table of flows has sets of {} bytes, and layout {version} has {}: something else made it; `shifter detach --force` gives up its flows",
            flows.value_size(),
            size_of::<FlowSet>()
        )));
    }
    records::check(&pins.maps())?;
    let begun = is_begun(pins, flow_capacity, mark)?;
    let programs = match begun {
        // They are noted in the new maps.
        true => [None, None, None],
        false => programs::of(pins)?,
    };
    let map = |name: &str| {
        let path = pins.maps().join(name);
        open_map(&path).map_err(|error| failed(format!("opening {}", path.display()), error, ""))
    };
    let mapped = |error| {
        failed(
            "mapping the table of flows that is there",
            error,
            "memory or RLIMIT_AS is short",
        )
    };
    let old = OldTable {
        sets: MappedArray::new(map("FLOWS")?, flows.max_entries()).map_err(mapped)?,
        layout,
        version,
    };
    let old_config = MappedArray::<Config>::new(map("CONFIG")?, 1)
        .map_err(mapped)?
        .read(0);
    let migration = Migration {
        pins: pins.clone(),
        old,
        old_config,
        from,
        begun,
        is_first: !begun,
        programs,
    };
    migration.refuse_little_room(flow_capacity)?;
    Ok(Ground::Other(Box::new(migration)))
}

/// Whether to go on where an earlier start was killed. What one left that had
/// not attached yet is taken away.
fn is_begun(pins: &Pins, flow_capacity: u32, mark: Option<Mark>) -> Result<bool, DatapathError> {
    let is_same = match mark {
        None => false,
        Some(Mark::Moved(id)) => flows_of(&pins.next()).is_some_and(|flows| flows.id() == id),
        // Otherwise an older version ran since, and its programs are the ones that run.
        Some(Mark::Attaching(records) | Mark::Moving(records)) => records == mark::records(pins)?,
    };
    if is_same && is_own(&pins.next(), flow_capacity) {
        return Ok(true);
    }
    if is_same && pins.next().exists() {
        return Err(unfinished(pins));
    }
    remove_next(pins)?;
    Ok(false)
}

fn unfinished(pins: &Pins) -> DatapathError {
    let next = pins.next();
    let capacity = flows_of(&next).map_or(0, |flows| {
        u64::from(flows.max_entries()) * SET_ENTRIES as u64 / 2
    });
    DatapathError::Refused(format!(
        "an agent was ended while flows moved to layout {} with room for {capacity} flows, and both tables hold some now: start that version with flow_capacity = {capacity} once, which ends it without losing one; packets go on meanwhile",
        version_of(&next).unwrap_or(0)
    ))
}

/// What is left of maps that flows have come from, or have never gone to.
fn remove_next(pins: &Pins) -> Result<(), DatapathError> {
    Mark::clear(pins)?;
    match fs::remove_dir_all(pins.next()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let what = format!("removing {}", pins.next().display());
            Err(failed(what, error, "bpffs must be writable"))
        }
        _ => Ok(()),
    }
}

/// Once all programs are in force that have their maps in [`Pins::maps`]: pins
/// them, and removes what an earlier start left.
pub fn settle(
    pins: &Pins,
    programs: [(super::attach::Place, OwnedFd); 3],
) -> Result<(), DatapathError> {
    for (place, program) in programs {
        programs::pin(&pins.maps(), place, &program)?;
    }
    remove_next(pins)
}

impl Migration {
    /// Where the new maps are pinned; made if they are not there.
    pub fn maps(&self) -> Result<PathBuf, DatapathError> {
        let next = self.pins.next();
        fs::create_dir_all(&next).map_err(|error| {
            failed(
                format!("creating {}", next.display()),
                error,
                "the agent needs root",
            )
        })?;
        Ok(next)
    }

    /// The table must hold what is there, with a margin: at capacity one flow in
    /// 100,000 finds no place, and one that does not keeps a migration from its end.
    fn refuse_little_room(&self, flow_capacity: u32) -> Result<(), DatapathError> {
        let mut live = 0u64;
        self.old.for_each(|_| live += 1);
        let needed = live + live.div_ceil(15);
        if needed <= u64::from(flow_capacity) {
            return Ok(());
        }
        Err(DatapathError::Refused(format!(
            "{live} flows are in the table that is there, and flow_capacity = {flow_capacity} has no room for them: set {needed} or more, or wait until flows have ended"
        )))
    }

    /// Fills the new maps with all but flows; returns the settings to go on with.
    pub fn fill(&self) -> Result<Option<Config>, DatapathError> {
        if self.begun {
            return Ok(None);
        }
        tracing::info!(from = %self.from, "flows move over to this agent's layout and size");
        records::copy(&self.pins.maps(), &self.pins.next())?;
        fault::point("migrate-filled");
        Ok(Some(self.old_config))
    }

    /// Ids that flows name which have not moved yet.
    pub fn named_ids(&self, named: &mut NamedIds) {
        self.old.for_each(|flow| {
            named.services.insert(flow.service);
            named.backends.insert(flow.backend);
        });
    }

    /// Before the first of the new programs is attached.
    pub fn begin(&mut self) -> Result<(), DatapathError> {
        if self.begun {
            return Ok(());
        }
        programs::Asked::open(&self.pins.next())?.set(&self.programs)?;
        Mark::Attaching(mark::records(&self.pins)?).write(&self.pins)?;
        self.begun = true;
        fault::point("migrate-begun");
        Ok(())
    }

    /// Whether the new program of a hook has one to ask, where any program ran.
    pub fn can_attach(&self, hook: Ingress) -> bool {
        let anything_ran = self.begun || self.programs.iter().any(Option::is_some);
        let can_ask = |asked: programs::Asked| asked.can_ask(hook);
        !anything_ran || programs::Asked::open(&self.pins.next()).is_ok_and(can_ask)
    }

    /// Nothing was attached by this start, and nothing of it is left. Says so.
    pub fn give_up(&self, why: &DatapathError) -> DatapathError {
        if !self.begun
            && let Err(error) = remove_next(&self.pins)
        {
            tracing::warn!(%error, "removing the new maps failed; the next start does");
        }
        DatapathError::Refused(format!(
            "flows cannot move over from {}: {why}; programs and table that are there go on as they were",
            self.from
        ))
    }

    /// Once all programs are in force: moves the flows, and ends the old table. Says
    /// what it did.
    ///
    /// # Errors
    /// When a proven flow has no place in the new table, or the kernel has no
    /// grace period: then both tables are in use, and the next start goes on.
    pub fn finish(
        self,
        sets: &MappedArray<FlowSet>,
        config: Config,
        programs: [(super::attach::Place, OwnedFd); 3],
        in_force: InForce,
    ) -> Result<String, DatapathError> {
        let begun = Instant::now();
        let pins = &self.pins;
        let times = Times::open(&pins.next());
        let table = NewTable {
            sets,
            config,
            forget_times: &|set, position| times.forget(set, position),
        };
        let mut moved = 0;
        if !matches!(Mark::read(pins), Some(Mark::Moved(_))) {
            moved = self.move_flows(&table, in_force)?;
            let id = flows_of(&pins.next()).map_or(0, |flows| flows.id());
            Mark::Moved(id).write(pins)?;
        }
        fault::point("migrate-moved");
        for (place, program) in programs {
            programs::pin(&pins.next(), place, &program)?;
        }
        exchange(&pins.maps(), &pins.next())?;
        fault::point("migrate-exchanged");
        remove_next(pins)?;
        let took_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(from = %self.from, flows = moved, took_ms, "flows have moved; the table before is gone");
        Ok(format!(
            "{moved} flows moved over from {} in {took_ms} ms",
            self.from
        ))
    }

    fn move_flows(&self, table: &NewTable, in_force: InForce) -> Result<u64, DatapathError> {
        let (maps, next) = (self.pins.maps(), self.pins.next());
        let counts = self.counts(&maps, &next, table.config.watch_mask);
        let asked = programs::Asked::open(&self.pins.next())?;
        let records = match Mark::read(&self.pins) {
            Some(Mark::Attaching(records) | Mark::Moving(records)) => records,
            _ => mark::records(&self.pins)?,
        };
        Mark::Moving(records).write(&self.pins)?;
        fault::point("migrate-moving");
        if !self.is_first {
            let mended = table.mend();
            tracing::debug!(mended, "entries that an agent left which was killed");
        }
        let mut moved = self.pass(table)?;
        fault::point("migrate-copied");
        for (misses, point) in [
            (&[MISS_OPENING][..], "migrate-opening"),
            (&[MISS_CLIENT], "migrate-client"),
            (&[MISS_REPLY, MISS_EGRESS], "migrate-replies"),
        ] {
            // Who is still in a program before has no part in what follows.
            self.wait()?;
            moved += self.pass(table)?;
            counts.carry_trips(in_force)?;
            if misses.contains(&MISS_OPENING) && asked.is_asked(MISS_OPENING) {
                counts.carry_split_errors()?;
            }
            misses.iter().for_each(|miss| asked.clear(*miss));
            fault::point(point);
        }
        self.wait()?;
        moved += self.pass(table)?;
        counts.add(in_force)?;
        Ok(moved)
    }

    fn counts<'a>(&self, from: &'a Path, to: &'a Path, watch_mask: u32) -> Counts<'a> {
        let one_in = |mask: u32| mask.wrapping_add(1).max(1);
        Counts {
            from,
            to,
            watched: (one_in(self.old_config.watch_mask), one_in(watch_mask)),
        }
    }

    /// An id names another service from now on: what the maps before count of it is
    /// not to be added.
    pub fn forget_service(&self, id: u32) -> Result<(), DatapathError> {
        let (maps, next) = (self.pins.maps(), self.pins.next());
        let counts = self.counts(&maps, &next, 0);
        counts.forget(counts::BREAKERS, id)?;
        for pool in 2 * id..2 * id + 2 {
            counts.forget("POOL_COUNTERS", pool)?;
            counts.forget("SIGNALS", pool)?;
            for kind in 0..HISTOGRAMS {
                counts.forget("HISTOGRAMS", pool * HISTOGRAMS + kind)?;
            }
        }
        Ok(())
    }

    /// The same for a backend.
    pub fn forget_backend(&self, id: u32) -> Result<(), DatapathError> {
        let (maps, next) = (self.pins.maps(), self.pins.next());
        self.counts(&maps, &next, 0).forget("BACKEND_COUNTERS", id)
    }

    fn pass(&self, table: &NewTable) -> Result<u64, DatapathError> {
        let passed: Passed = table.take_in(&self.old);
        tracing::debug!(?passed, "a pass over the table before");
        if passed.without_place == 0 {
            return Ok(passed.placed);
        }
        Err(DatapathError::Refused(format!(
            "{} proven flows of the table before find no place in the new one: start this agent again, with the same flow_capacity, when some flows have ended; until then both tables are in use, and no flow is lost",
            passed.without_place
        )))
    }

    fn wait(&self) -> Result<(), DatapathError> {
        grace_period().map_err(|error| {
            failed(
                "waiting for packets under way (membarrier)",
                error,
                "both tables stay in use: boot without nohz_full, and start the agent again",
            )
        })
    }
}

/// Two directories of bpffs change their names, at once (kernel 5.16).
fn exchange(one: &Path, other: &Path) -> Result<(), DatapathError> {
    let swap = || {
        let (one, other) = (path_text(one)?, path_text(other)?);
        // musl has no function of this name.
        // SAFETY: both are C strings that live over the call.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                one.as_ptr(),
                libc::AT_FDCWD,
                other.as_ptr(),
                libc::RENAME_EXCHANGE,
            )
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    swap().map_err(|error| {
        let what = format!("exchanging {} and {}", one.display(), other.display());
        failed(
            what,
            error,
            "bpffs must be writable; the next start tries it again",
        )
    })
}

fn path_text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A pinned map.
fn open_map(path: &Path) -> io::Result<OwnedFd> {
    let path = path_text(path)?;
    let fd = bpf(OBJ_GET, [path.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
