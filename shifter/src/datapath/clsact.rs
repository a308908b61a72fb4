//! Our filters in the clsact qdisc, as the kernel tells of them by netlink:
//! nothing pins them, so the kernel is asked whether they are there.

use std::io;

use aya::programs::{TcAttachType, tc::TcHandle};

use crate::network::netlink::{ACK, DUMP, Query, Request, attributes, text, u32_at};

const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `struct tcmsg` of linux/rtnetlink.h.
const TCMSG_LEN: usize = 20;
/// TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS (linux/pkt_sched.h).
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
/// Attributes of a filter, and of cls_bpf in its options (linux/pkt_cls.h).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// ETH_P_ALL in network order.
const ALL_PROTOCOLS: u16 = 3u16.to_be();

/// A filter, or (without a handle) the chain of those of one priority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    pub priority: u16,
    pub handle: TcHandle,
    /// In network order.
    protocol: u16,
    /// "bpf", "u32", ...
    kind: String,
    /// Of the program; empty without one.
    pub name: String,
    /// The program; 0 without one.
    pub program: u32,
}

const fn parent(at: TcAttachType) -> u32 {
    match at {
        TcAttachType::Ingress => PARENT_INGRESS,
        TcAttachType::Egress => PARENT_EGRESS,
        TcAttachType::Custom(parent) => parent,
    }
}

/// All filters of one direction; none without clsact, or without the interface.
pub fn list(ifindex: u32, at: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut body = [0; TCMSG_LEN];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[12..16].copy_from_slice(&parent(at).to_ne_bytes());
    let mut found = Vec::new();
    let request = Request::new(RTM_GETTFILTER, DUMP, &body);
    Query::open(libc::NETLINK_ROUTE as isize)?.ask(&request, |kind, payload| {
        if kind == RTM_NEWTFILTER {
            found.extend(parse(payload));
        }
    })?;
    Ok(found)
}

/// The first priority that a program can be added at: one holds filters of one
/// kind and protocol only.
pub fn free_priority(filters: &[Filter]) -> u16 {
    let holds = |filter: &Filter| filter.kind == "bpf" && filter.protocol == ALL_PROTOCOLS;
    let is_taken = |priority: u16| {
        let mut others = filters.iter().filter(|filter| !holds(filter));
        others.any(|filter| filter.priority == priority)
    };
    (1..u16::MAX)
        .find(|priority| !is_taken(*priority))
        .unwrap_or(1)
}

/// Takes the filters with a program of this name out that are ours by its id;
/// those of others stay. Returns how many there were.
pub fn remove(
    ifindex: u32,
    at: TcAttachType,
    name: &str,
    is_ours: impl Fn(u32) -> bool,
) -> io::Result<usize> {
    let mut removed = 0;
    for filter in list(ifindex, at)? {
        if filter.name != name || !is_ours(filter.program) {
            continue;
        }
        let mut body = [0; TCMSG_LEN];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        body[8..12].copy_from_slice(&u32::from(filter.handle).to_ne_bytes());
        body[12..16].copy_from_slice(&parent(at).to_ne_bytes());
        let info = u32::from(filter.priority) << 16 | u32::from(filter.protocol);
        body[16..20].copy_from_slice(&info.to_ne_bytes());
        let request = Request::new(RTM_DELTFILTER, ACK, &body);
        match Query::open(libc::NETLINK_ROUTE as isize)?.ask(&request, |_, _| {}) {
            Ok(()) => removed += 1,
            // Gone since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// The filter that a message tells of.
fn parse(payload: &[u8]) -> Option<Filter> {
    let info = u32_at(payload, 16)?;
    let mut filter = Filter {
        priority: (info >> 16) as u16,
        handle: u32_at(payload, 8)?.into(),
        protocol: info as u16,
        kind: String::new(),
        name: String::new(),
        program: 0,
    };
    for (kind, value) in attributes(payload.get(TCMSG_LEN..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_OPTIONS if filter.kind == "bpf" => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text(value),
                        TCA_BPF_ID => filter.program = u32_at(value, 0)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel dumps a filter of cls_bpf.
    fn message(kind: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = [0; TCMSG_LEN];
        body[8..12].copy_from_slice(&3u32.to_ne_bytes());
        let info = 7u32 << 16 | u32::from(ALL_PROTOCOLS);
        body[16..20].copy_from_slice(&info.to_ne_bytes());
        let options = Request::new(0, 0, &[])
            .with(TCA_BPF_NAME, name)
            .with(TCA_BPF_ID, &41u32.to_ne_bytes());
        let filter = Request::new(0, 0, &body)
            .with(TCA_KIND, kind)
            .with(TCA_OPTIONS, options.payload());
        filter.payload().to_vec()
    }

    #[test]
    fn a_filter_is_known_by_the_name_of_its_program() {
        let ours = parse(&message(b"bpf\0", b"shifter_egress\0")).unwrap();
        assert_eq!(ours.name, "shifter_egress");
        assert_eq!((ours.priority, ours.program), (7, 41));
        assert_eq!(ours.handle, TcHandle::new(0, 3));
        let other = parse(&message(b"u32\0", b"shifter_egress\0")).unwrap();
        assert_eq!((other.name.as_str(), other.program), ("", 0));
    }

    #[test]
    fn a_message_that_is_cut_off_names_no_program() {
        let whole = message(b"bpf\0", b"shifter_egress\0");
        for length in 0..whole.len() - 9 {
            let named = parse(&whole[..length]).map_or(String::new(), |filter| filter.name);
            assert_eq!(named, "", "{length}");
        }
    }

    #[test]
    fn a_priority_that_holds_another_kind_is_stepped_over() {
        let at = |priority, kind: &[u8]| Filter {
            priority,
            ..parse(&message(kind, b"x\0")).unwrap()
        };
        assert_eq!(free_priority(&[]), 1);
        assert_eq!(free_priority(&[at(1, b"bpf\0")]), 1);
        assert_eq!(free_priority(&[at(1, b"u32\0"), at(2, b"flower\0")]), 3);
        let ip_only = Filter {
            protocol: 0x0800u16.to_be(),
            ..at(1, b"bpf\0")
        };
        assert_eq!(free_priority(&[ip_only]), 2);
    }
}
