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
    attach::detach,
    flows::{FlowTable, is_long_idle, now_tick},
    load::{Pins, failed, map_fd},
    memory::MappedArray,
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
    let entries = data
        .info()
        .map_err(|error| failed(open(), error, remedy))?
        .max_entries();
    let map = Map::Array(data);
    MappedArray::new(map_fd(&map)?, entries).map_err(|error| failed(open(), error, remedy))
}

/// Counts what a detach would cut.
pub fn would_cut(pins: &Pins) -> Result<Cut, DatapathError> {
    if !pins.maps().join("FLOWS").exists() {
        return Ok(Cut::default());
    }
    let flows = FlowTable::new(pinned::<FlowSet>(pins, "FLOWS")?);
    let heads = pinned::<u64>(pins, "SERVICE_HEAD")?;
    let bodies = pinned::<ServiceBody>(pins, "SERVICE_BODY")?;
    let vip_backend = |service: u16| {
        let (slot, _) = head_parts(heads.read(u32::from(service)));
        (slot != 0 && slot < bodies.count()).then(|| bodies.read(slot).vip_backend)
    };
    let mut cut = Cut::default();
    let now = now_tick();
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
    let cut = match would_cut(&pins) {
        Ok(cut) => cut,
        Err(_) if force => Cut::default(),
        Err(error) => return Err(error),
    };
    if cut != Cut::default() && !force {
        return Err(DatapathError::Refused(format!(
            "{} flows on green and {} on blue are on backends other than the VIP and would be cut{}: `shifter rollback` and wait until they have ended, or go ahead with --force",
            cut.green,
            cut.blue,
            super::idle_note(cut.idle)
        )));
    }
    let programs = match only {
        None => detach(&pins, &interfaces(), None)?,
        Some(name) => detach(&pins, &[name.to_owned()], Some(index_of(name)?))?,
    };
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

/// Names of all interfaces of this network namespace, which /sys may not show.
fn interfaces() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: the list ends with a null name and is freed once, after the last use.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return names;
        }
        let mut at = list;
        while !(*at).if_name.is_null() {
            let name = std::ffi::CStr::from_ptr((*at).if_name);
            names.extend(name.to_str().map(str::to_owned));
            at = at.add(1);
        }
        libc::if_freenameindex(list);
    }
    names
}

fn index_of(name: &str) -> Result<u32, DatapathError> {
    let known = || interfaces().join(", ");
    let missing = || {
        DatapathError::Refused(format!(
            "there is no interface {name:?}; there are {}",
            known()
        ))
    };
    let name = std::ffi::CString::new(name).map_err(|_| missing())?;
    // SAFETY: a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}
