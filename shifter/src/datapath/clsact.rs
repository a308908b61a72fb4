//! Our filters in the clsact qdisc, as the kernel tells of them by netlink:
//! nothing pins them, so the kernel is asked whether they are there.

use std::io;

use aya::programs::{TcAttachType, tc::TcHandle};

use crate::network::netlink::{DUMP, Query, Request, attributes, text, u32_at};

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `struct tcmsg` of linux/rtnetlink.h.
const TCMSG_LEN: usize = 20;
/// TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS (linux/pkt_sched.h).
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
/// Attributes of a filter, and of cls_bpf in its options (linux/pkt_cls.h).
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// Where a filter hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filter {
    pub priority: u16,
    pub handle: TcHandle,
}

/// The filter with a program of this name; `None` without one, or without clsact.
pub fn find(ifindex: u32, at: TcAttachType, name: &str) -> io::Result<Option<Filter>> {
    let parent = match at {
        TcAttachType::Ingress => PARENT_INGRESS,
        TcAttachType::Egress => PARENT_EGRESS,
        TcAttachType::Custom(parent) => parent,
    };
    let mut body = [0; TCMSG_LEN];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    let mut found = None;
    Query::open(libc::NETLINK_ROUTE as isize)?.ask(
        &Request::new(RTM_GETTFILTER, DUMP, &body),
        |kind, payload| {
            if kind == RTM_NEWTFILTER {
                found = found.or_else(|| named(payload, name));
            }
        },
    )?;
    Ok(found)
}

/// The filter that a message tells of, if its program has this name.
fn named(payload: &[u8], name: &str) -> Option<Filter> {
    let options = attributes(payload.get(TCMSG_LEN..)?).find(|(kind, _)| *kind == TCA_OPTIONS)?;
    let (_, value) = attributes(options.1).find(|(kind, _)| *kind == TCA_BPF_NAME)?;
    (text(value) == name).then_some(Filter {
        handle: u32_at(payload, 8)?.into(),
        priority: (u32_at(payload, 16)? >> 16) as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel dumps a filter of cls_bpf.
    fn message(name: &[u8]) -> Vec<u8> {
        let mut body = [0; TCMSG_LEN];
        body[8..12].copy_from_slice(&3u32.to_ne_bytes());
        body[16..20].copy_from_slice(&(7u32 << 16).to_ne_bytes());
        let options = Request::new(0, 0, &[]).with(TCA_BPF_NAME, name);
        let filter = Request::new(0, 0, &body)
            .with(1, b"bpf\0")
            .with(TCA_OPTIONS, options.payload());
        filter.payload().to_vec()
    }

    #[test]
    fn a_filter_is_known_by_the_name_of_its_program() {
        let ours = named(&message(b"shifter_egress\0"), "shifter_egress").unwrap();
        assert_eq!(ours.priority, 7);
        assert_eq!(ours.handle, TcHandle::new(0, 3));
        assert_eq!(
            named(&message(b"cil_from_netdev\0"), "shifter_egress"),
            None
        );
    }

    #[test]
    fn a_message_that_is_cut_off_names_no_filter() {
        let whole = message(b"shifter_egress\0");
        for length in 0..whole.len() - 1 {
            assert_eq!(named(&whole[..length], "shifter_egress"), None, "{length}");
        }
    }
}
