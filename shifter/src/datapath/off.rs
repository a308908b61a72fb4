//! The off switch: takes programs off, agent or not, and says what it would cut.

use std::path::Path;

use aya::maps::{Map, MapData};
use shifter_common::abi::{
    ServiceBody,
    flow::{FLOW_GREEN, FlowSet},
    service::head_parts,
};

use super::{
    DatapathError,
    flows::{FlowTable, is_long_idle, now_tick},
    idle_note,
    load::{Pins, failed, map_fd},
    memory::MappedArray,
    pinned::{detach, has_programs, pinned_interfaces},
    plural,
};

/// Flows that end when the programs go: those on backends other than the VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    pub blue: u64,
    pub green: u64,
    /// Those of both without a packet for `LONG_IDLE_S`.
    pub idle: u64,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Detached {
    /// Programs taken off.
    pub programs: usize,
    /// The maps are gone as well.
    pub maps: bool,
    pub cut: Cut,
}

fn pinned<T: Copy>(pins: &Pins, name: &str) -> Result<MappedArray<T>, DatapathError> {
    let path = pins.maps().join(name);
    let remedy = "--force takes everything off without looking";
    let open = || format!("opening the pinned map {}", path.display());
    let data = MapData::from_pin(&path).map_err(|error| failed(open(), error, remedy))?;
    let info = data.info().map_err(|error| failed(open(), error, remedy))?;
    // One value may be a whole table.
    let bytes = u64::from(info.max_entries()) * u64::from(info.value_size());
    let entries = (bytes / size_of::<T>() as u64) as u32;
    let map = Map::Array(data);
    MappedArray::new(map_fd(&map)?, entries).map_err(|error| failed(open(), error, remedy))
}

/// Counts what a detach would cut: of one interface, or of all.
///
/// No record says by which interface a flow's packets come in: the next hop
/// towards its client may leave by another, as may its backend's. So each flow
/// on a backend other than the VIP counts for every interface that has a
/// program of this installation.
pub fn would_cut(pins: &Pins, only: Option<u32>) -> Result<Cut, DatapathError> {
    let is_bare = only.is_some_and(|ifindex| !has_programs(pins, ifindex));
    if is_bare || !pins.maps().join("FLOWS").exists() {
        return Ok(Cut::default());
    }
    let flows = FlowTable::new(pinned::<FlowSet>(pins, "FLOWS")?);
    let heads = pinned::<u64>(pins, "SERVICE_HEAD")?;
    let bodies = pinned::<ServiceBody>(pins, "SERVICE_BODY")?;
    let vip_backend = |service: u16| {
        let (slot, _) = head_parts(heads.read(u32::from(service)));
        (slot != 0 && slot < bodies.count()).then(|| bodies.read(slot).vip_backend)
    };
    let now = now_tick();
    let mut cut = Cut::default();
    flows.for_each_open(|flow| {
        if vip_backend(flow.service) != Some(flow.backend) {
            *if flow.flags & FLOW_GREEN != 0 {
                &mut cut.green
            } else {
                &mut cut.blue
            } += 1;
            cut.idle += u64::from(is_long_idle(flow, now));
        }
    });
    Ok(cut)
}

/// Takes the programs off one interface or all: ingress first, then egress.
/// Refuses while flows would be cut, unless forced. Without an agent the maps
/// of a whole detach go too.
pub fn detach_interfaces(
    bpffs: &Path,
    only: Option<&str>,
    force: bool,
) -> Result<Detached, DatapathError> {
    let pins = Pins::new(bpffs);
    if !pins.root().exists() {
        return Err(DatapathError::Refused(format!(
            "nothing of shifter is pinned under {}: name another BPF file system with --bpffs if it is mounted elsewhere",
            bpffs.display()
        )));
    }
    let name = only;
    let only = only.map(index_of).transpose()?;
    let cut = match would_cut(&pins, only) {
        Ok(cut) => cut,
        Err(_) if force => Cut::default(),
        Err(error) => return Err(error),
    };
    if cut != Cut::default() && !force {
        return Err(DatapathError::Refused(refusal(&cut, name)));
    }
    let indices = match only {
        Some(ifindex) => vec![ifindex],
        None => {
            let pinned = pinned_interfaces(&pins).into_iter().map(|i| i.ifindex);
            let all = interfaces().into_iter().map(|(ifindex, _)| ifindex);
            let set: std::collections::BTreeSet<u32> = pinned.chain(all).collect();
            set.into_iter().collect()
        }
    };
    // Before anything goes: an agent puts back what somebody else took off.
    let is_new = pins.mark_detached(only)?;
    let programs = detach(&pins, &indices).inspect_err(|_| {
        // What could not be taken off is the agent's again.
        if is_new && let Err(error) = pins.unmark_detached(only) {
            tracing::warn!(%error, "taking back the mark of a detach that failed");
        }
    })?;
    let maps = only.is_none() && !pins.is_locked();
    if maps {
        pins.remove()?;
    }
    Ok(Detached {
        programs,
        maps,
        cut,
    })
}

/// Why a detach does not go ahead: of the interface `name`, or of all.
fn refusal(cut: &Cut, name: Option<&str>) -> String {
    let flows = format!(
        "{} on green and {} on blue {} on backends other than the VIP",
        plural(cut.green, "flow"),
        cut.blue,
        if cut.blue + cut.green == 1 {
            "is"
        } else {
            "are"
        },
    );
    let what = match name {
        Some(name) => format!(
            ", and which of them come in at {name} cannot be told: those that do would be cut"
        ),
        None => " and would be cut".to_owned(),
    };
    format!(
        "{flows}{what}{}: `shifter rollback` and wait until they have ended, or go ahead with --force",
        idle_note(cut.idle)
    )
}

/// Interfaces of this network namespace, which /sys may not show: index and name.
fn interfaces() -> Vec<(u32, String)> {
    let mut found = Vec::new();
    // SAFETY: the list ends with a null name and is freed once, after the last use.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return found;
        }
        let mut at = list;
        while !(*at).if_name.is_null() {
            let name = std::ffi::CStr::from_ptr((*at).if_name);
            found.push(((*at).if_index, name.to_string_lossy().into_owned()));
            at = at.add(1);
        }
        libc::if_freenameindex(list);
    }
    found
}

fn index_of(name: &str) -> Result<u32, DatapathError> {
    let all = interfaces();
    let found = all.iter().find(|(_, known)| known == name);
    found.map(|(ifindex, _)| *ifindex).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|(_, name)| name.as_str()).collect();
        DatapathError::Refused(format!(
            "there is no interface {name:?}; there are {}",
            known.join(", ")
        ))
    })
}
