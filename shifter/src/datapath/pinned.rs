//! Links that are pinned, one file each: `IFINDEX-PLACE`. And taking off, with
//! what clsact holds, which nothing pins.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::programs::links::{FdLink, PinnedLink};

use super::{
    DatapathError,
    attach::{Ingress, Place},
    clsact,
    inspect::{pinned_tag, stranger},
    load::{Pins, failed},
};

/// The link behind a pin; `None` where there is none.
pub(super) fn pinned(path: &Path) -> Option<FdLink> {
    if !path.exists() {
        return None;
    }
    PinnedLink::from_pin(path).ok().map(FdLink::from)
}

pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), DatapathError> {
    link.pin(path).map(drop).map_err(|error| {
        failed(
            format!("pinning a link at {}", path.display()),
            error,
            "bpffs must be writable",
        )
    })
}

/// Takes the program off, whoever else holds the link, and the pin with it.
pub(super) fn unpin(path: &Path) -> Result<(), DatapathError> {
    if let Err(error) = detach_link(path) {
        // The link of an interface that is gone cannot be detached any more.
        tracing::debug!(%error, path = %path.display(), "detaching a link failed");
    }
    fs::remove_file(path)
        .map_err(|error| failed(format!("removing the pin {}", path.display()), error, ""))
}

/// BPF_LINK_DETACH, kernel 5.9.
fn detach_link(path: &Path) -> io::Result<()> {
    const OBJ_GET: libc::c_int = 7;
    const LINK_DETACH: libc::c_int = 34;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let link = bpf(OBJ_GET, [path.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just made and has no other owner.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(LINK_DETACH, [link.as_raw_fd() as u64, 0]).map(drop)
}

/// bpf(2) with the first words of its attributes.
pub(super) fn bpf<const N: usize>(command: libc::c_int, attr: [u64; N]) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its size and names only what lives over the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(&attr)) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}

/// An interface that pinned links name.
pub struct PinnedInterface {
    pub ifindex: u32,
    pub ingress: Option<Ingress>,
    pub egress: bool,
}

/// What is pinned, by interface.
pub fn pinned_interfaces(pins: &Pins) -> Vec<PinnedInterface> {
    let mut interfaces: Vec<PinnedInterface> = Vec::new();
    let Ok(entries) = fs::read_dir(pins.links()) else {
        return interfaces;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((index, suffix)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        let Ok(ifindex) = index.parse() else { continue };
        let position = match interfaces.iter().position(|i| i.ifindex == ifindex) {
            Some(position) => position,
            None => {
                interfaces.push(PinnedInterface {
                    ifindex,
                    ingress: None,
                    egress: false,
                });
                interfaces.len() - 1
            }
        };
        let interface = &mut interfaces[position];
        match suffix {
            "xdp" => interface.ingress = Some(Ingress::Xdp),
            "ingress" => interface.ingress = Some(Ingress::Tc),
            "egress" => interface.egress = true,
            _ => {}
        }
    }
    interfaces
}

/// Whether anything of ours may be on an interface; what is not known may be.
pub(super) fn has_programs(pins: &Pins, ifindex: u32) -> bool {
    let is_pinned = |place: &Place| pins.links().join(place.pin_name(ifindex)).exists();
    let own = pinned_tag(pins);
    let has_filter = |place: &Place| {
        clsact::list(ifindex, place.tc()).map_or(true, |filters| {
            filters.iter().any(|filter| {
                filter.name == place.program() && stranger(filter.program, own.as_deref()).is_none()
            })
        })
    };
    Place::ALL
        .iter()
        .any(|place| is_pinned(place) || has_filter(place))
}

/// Takes programs off the interfaces `indices`: ingress from all of them, then
/// egress. Returns how many were on.
pub fn detach(pins: &Pins, indices: &[u32]) -> Result<usize, DatapathError> {
    let mut removed = 0;
    for place in Place::ALL {
        for ifindex in indices {
            let path = pins.links().join(place.pin_name(*ifindex));
            if path.exists() {
                unpin(&path)?;
                removed += 1;
            }
        }
        for ifindex in indices {
            removed += take_filter_off(pins, *ifindex, place)?;
        }
    }
    Ok(removed)
}

/// Takes our filters out of clsact of an interface; returns how many there were.
/// One of another installation, which bears the same name, stays.
pub(super) fn take_filter_off(
    pins: &Pins,
    ifindex: u32,
    place: Place,
) -> Result<usize, DatapathError> {
    if place == Place::Xdp {
        return Ok(0);
    }
    let own = pinned_tag(pins);
    let is_ours = |program| stranger(program, own.as_deref()).is_none();
    clsact::remove(ifindex, place.tc(), place.program(), is_ours).map_err(|error| {
        failed(
            format!(
                "taking {} out of clsact of interface {ifindex}",
                place.program()
            ),
            error,
            "run as root; `tc filter show` tells what is there",
        )
    })
}
