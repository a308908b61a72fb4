//! The programs that run: pinned beside their maps, and asked by those of
//! another layout while flows move over.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use shifter_common::abi::miss::*;

use super::{OBJ_GET, OBJ_PIN, path_text};
use crate::datapath::{
    DatapathError,
    attach::{Ingress, Place},
    clsact,
    inspect::{pinned_tag, stranger},
    load::{OLD_TC, OLD_XDP, Pins, failed},
    pinned::{bpf, pinned},
};

const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROG_GET_FD_BY_ID: libc::c_int = 13;

/// Pins programs beside their maps, over what is pinned there.
pub fn pin(maps: &Path, place: Place, program: &OwnedFd) -> Result<(), DatapathError> {
    let path = maps.join(place.program());
    let fresh = maps.join(format!("{}-new", place.program()));
    let _ = fs::remove_file(&fresh);
    let name = path_text(&fresh);
    let pinned = name
        .and_then(|name| {
            let program = program.as_raw_fd() as u64;
            bpf(OBJ_PIN, [name.as_ptr() as u64, program]).map(drop)
        })
        .and_then(|()| fs::rename(&fresh, &path));
    pinned.map_err(|error| {
        let what = format!("pinning {} at {}", place.program(), path.display());
        failed(what, error, "bpffs must be writable")
    })
}

/// What is pinned at a path.
fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = path_text(path)?;
    let fd = bpf(OBJ_GET, [name.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The program of an installation that runs somewhere, by its id.
fn running(pins: &Pins, place: Place) -> Option<u32> {
    let links = fs::read_dir(pins.links()).into_iter().flatten().flatten();
    let by_link = links
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.split_once('-'))
                .is_some_and(|(index, _)| {
                    index
                        .parse()
                        .is_ok_and(|index| path.ends_with(place.pin_name(index)))
                })
        })
        .find_map(|path| {
            let info = pinned(&path)?.info().ok()?;
            Some(info.program_id()).filter(|id| *id != 0)
        });
    if by_link.is_some() || place == Place::Xdp {
        return by_link;
    }
    let own = pinned_tag(pins);
    interfaces().into_iter().find_map(|ifindex| {
        let filters = clsact::list(ifindex, place.tc()).ok()?;
        let is_it = |filter: &&clsact::Filter| {
            filter.name == place.program() && stranger(filter.program, own.as_deref()).is_none()
        };
        filters.iter().find(is_it).map(|filter| filter.program)
    })
}

/// Indices of all interfaces here.
fn interfaces() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: the list ends with an element of index 0, and is freed once.
    unsafe {
        let first = libc::if_nameindex();
        let mut next = first;
        while !next.is_null() && (*next).if_index != 0 {
            found.push((*next).if_index);
            next = next.add(1);
        }
        if !first.is_null() {
            libc::if_freenameindex(first);
        }
    }
    found
}

/// The programs over `maps`, in the order of [`Place::ALL`]: as an agent has
/// pinned them, or by what runs (CAP_SYS_ADMIN). None where none runs.
pub fn of(pins: &Pins) -> Result<[Option<OwnedFd>; 3], DatapathError> {
    let mut found = [None, None, None];
    for (place, found) in Place::ALL.into_iter().zip(&mut found) {
        let path = pins.maps().join(place.program());
        if let Ok(program) = open_pin(&path) {
            *found = Some(program);
            continue;
        }
        let Some(id) = running(pins, place) else {
            continue;
        };
        let program = bpf(PROG_GET_FD_BY_ID, [u64::from(id), 0]).map_err(|error| {
            failed(
                format!("opening {} (program {id}), which runs here", place.program()),
                error,
                "`shifter prepare`, run by root with all capabilities, pins it for an agent with fewer",
            )
        })?;
        // SAFETY: the descriptor was just made and has no other owner.
        *found = Some(unsafe { OwnedFd::from_raw_fd(program) });
    }
    Ok(found)
}

/// Pins what runs over these pins where an agent has not; returns how many.
pub fn pin_running(pins: &Pins) -> Result<usize, DatapathError> {
    let mut count = 0;
    for (place, program) in Place::ALL.into_iter().zip(of(pins)?) {
        if let Some(program) = program
            && !pins.maps().join(place.program()).exists()
        {
            pin(&pins.maps(), place, &program)?;
            count += 1;
        }
    }
    Ok(count)
}

/// `OLD_XDP` and `OLD_TC` of a directory of maps.
pub struct Asked {
    xdp: OwnedFd,
    tc: OwnedFd,
}

impl Asked {
    pub fn open(maps: &Path) -> Result<Self, DatapathError> {
        let open = |name: &str| {
            let path = maps.join(name);
            open_pin(&path)
                .map_err(|error| failed(format!("opening {}", path.display()), error, ""))
        };
        Ok(Self {
            xdp: open(OLD_XDP)?,
            tc: open(OLD_TC)?,
        })
    }

    /// From now on packets without an entry are left to these programs.
    pub fn set(&self, programs: &[Option<OwnedFd>; 3]) -> Result<(), DatapathError> {
        let [xdp, ingress, egress] = programs;
        for miss in [MISS_OPENING, MISS_CLIENT, MISS_REPLY] {
            set(&self.xdp, miss, xdp.as_ref())?;
            set(&self.tc, miss, ingress.as_ref())?;
        }
        set(&self.tc, MISS_EGRESS, egress.as_ref())
    }

    /// Packets of a kind are left to nobody from now on.
    pub fn clear(&self, miss: u32) {
        for (map, elements) in [(&self.xdp, XDP_MISSES), (&self.tc, TC_MISSES)] {
            if miss < elements {
                // It may be empty already.
                let _ = bpf(MAP_DELETE, [fd_of(map), (&raw const miss) as u64, 0, 0]);
            }
        }
    }

    /// Whether packets of a kind are left to anybody.
    pub fn is_asked(&self, miss: u32) -> bool {
        has(&self.xdp, miss) || has(&self.tc, miss)
    }

    /// Whether the program before can be asked at a hook, or none has to be any more.
    pub fn can_ask(&self, hook: Ingress) -> bool {
        let map = match hook {
            Ingress::Xdp => &self.xdp,
            Ingress::Tc => &self.tc,
        };
        has(map, MISS_REPLY) || !has(&self.tc, MISS_EGRESS)
    }
}

fn has(map: &OwnedFd, miss: u32) -> bool {
    let mut value = 0u32;
    let attr = [
        fd_of(map),
        (&raw const miss) as u64,
        (&raw mut value) as u64,
        0,
    ];
    bpf(MAP_LOOKUP, attr).is_ok()
}

fn fd_of(map: &OwnedFd) -> u64 {
    map.as_fd().as_raw_fd() as u64
}

fn set(map: &OwnedFd, miss: u32, program: Option<&OwnedFd>) -> Result<(), DatapathError> {
    let Some(program) = program else {
        return Ok(());
    };
    let value = program.as_raw_fd();
    let attr = [
        fd_of(map),
        (&raw const miss) as u64,
        (&raw const value) as u64,
        0,
    ];
    bpf(MAP_UPDATE, attr).map(drop).map_err(|error| {
        failed(
            "noting the programs before as those to be asked",
            error,
            "they and these must be of kinds that the kernel lets call each other",
        )
    })
}
