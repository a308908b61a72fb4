//! What the kernel says is attached to an interface, whatever was meant to be:
//! the XDP slot by netlink, tcx by BPF_PROG_QUERY, clsact by its filters.

use std::io;

use aya::{
    maps::{Map, MapData, MapInfo},
    programs::{ProgramError, ProgramInfo, TcAttachType, loaded_programs},
};
use shifter_common::abi::Config;

use super::{
    attach::Place,
    clsact,
    load::{Pins, map_fd},
    memory::MappedArray,
    noted,
};
use crate::network::netlink::{self, Query, Request, attributes, u32_at};

/// `BPF_PROG_QUERY` and the attach types of the kernel's `uapi/linux/bpf.h`.
const PROG_QUERY: libc::c_int = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// More programs than the kernel takes on one hook (BPF_MPROG_MAX).
const MOST_PROGRAMS: usize = 64;

/// Attributes of a link (linux/if_link.h).
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

/// Ids of programs on an interface, in the order in which packets meet them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attached {
    /// Kinds of place and program: "xdp", "tcx" or "clsact".
    pub ingress: Vec<(&'static str, u32)>,
    pub egress: Vec<(&'static str, u32)>,
}

/// Asks for everything on an interface.
///
/// # Errors
/// When the kernel does not answer; then nothing is known.
pub fn attached(ifindex: u32) -> io::Result<Attached> {
    let mut ingress = Vec::new();
    if let Some(id) = xdp(ifindex)? {
        ingress.push(("xdp", id));
    }
    ingress.extend(tc(ifindex, Place::TcIngress)?);
    Ok(Attached {
        ingress,
        egress: tc(ifindex, Place::TcEgress)?,
    })
}

fn tc(ifindex: u32, place: Place) -> io::Result<Vec<(&'static str, u32)>> {
    let mut found: Vec<_> = tcx(ifindex, place)?
        .into_iter()
        .map(|id| ("tcx", id))
        .collect();
    let filters = clsact::list(ifindex, place.tc())?;
    let programs = filters.iter().filter(|filter| filter.program != 0);
    found.extend(programs.map(|filter| ("clsact", filter.program)));
    Ok(found)
}

/// The program in the XDP slot.
fn xdp(ifindex: u32) -> io::Result<Option<u32>> {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let mut found = None;
    let request = Request::new(netlink::RTM_GETLINK, 0, &body);
    Query::open(libc::NETLINK_ROUTE as isize)?.ask(&request, |kind, payload| {
        if kind == netlink::RTM_NEWLINK {
            found = xdp_of(payload);
        }
    })?;
    Ok(found)
}

/// Reads IFLA_XDP out of RTM_NEWLINK.
fn xdp_of(payload: &[u8]) -> Option<u32> {
    let (_, xdp) = attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_XDP)?;
    attributes(xdp)
        .filter(|(kind, _)| (IFLA_XDP_PROG_ID..=IFLA_XDP_HW_PROG_ID).contains(kind))
        .find_map(|(_, value)| u32_at(value, 0).filter(|id| *id != 0))
}

/// `union bpf_attr` as BPF_PROG_QUERY reads it.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Programs in tcx (kernel 6.6); none on an older one.
fn tcx(ifindex: u32, place: Place) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut attr = QueryAttr {
        interface: ifindex,
        attach_type: match place.tc() {
            TcAttachType::Egress => TCX_EGRESS,
            _ => TCX_INGRESS,
        },
        program_ids: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `ids` is valid for `count` numbers, and `attr` is laid out as
    // the kernel reads it; what is not named is zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut attr,
            size_of::<QueryAttr>(),
        )
    };
    if result == 0 {
        let count = (attr.count as usize).min(MOST_PROGRAMS);
        return Ok(ids[..count].to_vec());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Nothing was ever attached there, or the kernel has no tcx.
        Some(libc::ENOENT | libc::EINVAL | libc::E2BIG) => Ok(Vec::new()),
        _ => Err(error),
    }
}

/// A program as the kernel tells of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramIdentity {
    pub name: String,
    /// Hash of its instructions, as `bpftool prog` shows it.
    pub tag: String,
    /// Tag of the shifter installation whose maps it uses; empty: not shifter's.
    pub installation: String,
}

/// A kernel tag as `bpftool` writes it.
pub fn show_tag(tag: u64) -> String {
    format!("{tag:016x}")
}

impl ProgramIdentity {
    /// Nobody has told who it is.
    fn is_unknown(&self) -> bool {
        self.tag.is_empty()
    }

    /// Its name, or why there is none.
    pub fn shown_name(&self) -> String {
        if self.is_unknown() {
            return "a program that is not named without CAP_SYS_ADMIN (`shifter prepare` names it)"
                .to_owned();
        }
        match self.name.as_str() {
            "" => "a program without a name".to_owned(),
            name => name.to_owned(),
        }
    }
}

/// Asks who a program is; walks over all that are loaded, so for strangers only.
/// Where the kernel does not say, for lack of CAP_SYS_ADMIN, what was noted counts.
pub fn identify(id: u32) -> ProgramIdentity {
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id);
    match program {
        Some(info) => identity_of(&info),
        None => noted::find(id).unwrap_or_default(),
    }
}

/// Who a program is.
pub(super) fn identity_of(info: &ProgramInfo) -> ProgramIdentity {
    let name = info.name_as_str().unwrap_or_default().to_owned();
    let is_shifter = name.starts_with("shifter_");
    ProgramIdentity {
        tag: show_tag(info.tag()),
        installation: is_shifter
            .then(|| installation(info))
            .flatten()
            .unwrap_or_default(),
        name,
    }
}

/// The tag in the map `CONFIG` that a program uses.
fn installation(program: &ProgramInfo) -> Option<String> {
    let ids = program.map_ids().ok()??;
    let config = ids.into_iter().find(|id| {
        MapInfo::from_id(*id).is_ok_and(|map| {
            map.name_as_str() == Some("CONFIG") && map.value_size() == size_of::<Config>() as u32
        })
    })?;
    let map = Map::Array(MapData::from_id(config).ok()?);
    let mapped = MappedArray::<Config>::new(map_fd(&map).ok()?, 1).ok()?;
    Some(installation_tag(&mapped.read(0)))
}

/// Tag of the installation over these pins; `None` before its maps are there.
pub fn pinned_tag(pins: &Pins) -> Option<String> {
    let map = Map::Array(MapData::from_pin(pins.maps().join("CONFIG")).ok()?);
    let mapped = MappedArray::<Config>::new(map_fd(&map).ok()?, 1).ok()?;
    Some(installation_tag(&mapped.read(0)))
}

/// The tag of the installation that a program belongs to, if it is known not
/// to be `own`; without one of its own, an installation owns no program. What
/// the kernel does not name for lack of CAP_SYS_ADMIN is taken for a stranger's.
pub fn stranger(program: u32, own: Option<&str>) -> Option<String> {
    let found = identify(program);
    if found.is_unknown() && may_not_ask() {
        return Some("not told without CAP_SYS_ADMIN: `shifter prepare` notes it".to_owned());
    }
    (!found.installation.is_empty() && own != Some(found.installation.as_str()))
        .then_some(found.installation)
}

/// Whether the kernel names no program to this process.
fn may_not_ask() -> bool {
    let first = loaded_programs().next();
    first.is_some_and(|first| first.is_err_and(|error| is_denied(&error)))
}

/// Whether a privilege was missing.
pub(super) fn is_denied(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EPERM))
}

/// How an installation is shown.
pub fn installation_tag(config: &Config) -> String {
    let shown = config.tag.iter().take(4);
    shown.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_in_the_slot_is_read_out_of_a_link() {
        let link = |xdp: Request| {
            let message = Request::new(0, 0, &[0; 16])
                .with(3, b"eth0\0")
                .with(IFLA_XDP, xdp.payload());
            message.payload().to_vec()
        };
        let free = link(Request::new(0, 0, &[]).with(2, &[0]));
        assert_eq!(xdp_of(&free), None);
        let native = link(
            Request::new(0, 0, &[])
                .with(2, &[1])
                .with(5, &42u32.to_ne_bytes()),
        );
        assert_eq!(xdp_of(&native), Some(42));
        for length in 0..native.len() {
            let _ = xdp_of(&native[..length]);
        }
    }

    #[test]
    fn a_tag_reads_as_bpftool_writes_it() {
        let bytes = [0x0f, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(show_tag(u64::from_be_bytes(bytes)), "0f01020304050607");
    }
}
