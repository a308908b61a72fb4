//! Counters, per CPU but for [`FirstFlow`].

use core::mem::size_of;

/// Per service and pool; index `2 * service + pool`. 72 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolCounters {
    /// Flows chosen by weight and pinned.
    pub new_flows: u64,
    /// Flows taken over, not chosen.
    pub adopted_flows: u64,
    /// New flows forwarded without an entry.
    pub unpinned_flows: u64,
    /// Packets from clients.
    pub forward_packets: u64,
    /// Their bytes at layer 3.
    pub forward_bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Their bytes at layer 3.
    pub reply_bytes: u64,
    /// Flows forced by a cohort.
    pub cohort_flows: u64,
    /// Fragments to the VIP, passed untouched (counted for blue).
    pub fragments: u64,
}

/// Per backend id. 40 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendCounters {
    /// Flows that were pinned to it.
    pub flows: u64,
    /// Packets to it.
    pub forward_packets: u64,
    /// Their bytes at layer 3.
    pub forward_bytes: u64,
    /// Packets from it.
    pub reply_packets: u64,
    /// Their bytes at layer 3.
    pub reply_bytes: u64,
}

/// The first flow chosen under a generation; index service id. 16 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FirstFlow {
    /// CLOCK_MONOTONIC in ns, written before `generation`.
    pub at_ns: u64,
    /// Generation, 0 when none was chosen yet.
    pub generation: u64,
}

const _: () = assert!(size_of::<PoolCounters>() == 72);
const _: () = assert!(size_of::<BackendCounters>() == 40);
const _: () = assert!(size_of::<FirstFlow>() == 16);

/// Hooks, as the high part of a verdict counter's index.
pub const HOOK_XDP: u32 = 0;
/// tc ingress.
pub const HOOK_TC: u32 = 1;
/// tc egress.
pub const HOOK_EGRESS: u32 = 2;
/// Number of hooks.
pub const HOOKS: u32 = 3;
/// Reasons per hook.
pub const REASONS: u32 = 64;

/// Elements of the counters of flows that gave way, by `STATE_*`.
pub const STATES: u32 = 16;

/// Why a packet ended as it did. Numbers are never reused; new ones are appended.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Neither port belongs to a VIP or backend.
    NotOurs = 0,
    /// A port is known, but no service and no flow matches.
    NoFlow = 1,
    /// Not IP, or cut short, or malformed: passed untouched.
    Unparsed = 2,
    /// Fragment to a VIP: passed untouched.
    Fragment = 3,
    /// Client to backend, rewritten and redirected.
    ForwardRedirect = 4,
    /// Client to backend, rewritten and handed to the kernel.
    ForwardKernel = 5,
    /// Client to the VIP itself, untouched.
    ForwardVip = 6,
    /// Backend to client, rewritten and redirected.
    ReplyRedirect = 7,
    /// Backend to client, rewritten at egress.
    ReplyEgress = 8,
    /// Backend to client, left to the kernel and to egress.
    ReplyKernel = 9,
    /// The VIP itself to a client, untouched.
    ReplyVip = 10,
    /// ICMP error translated towards the backend.
    IcmpForward = 11,
    /// ICMP error translated towards the client.
    IcmpReply = 12,
    /// Too long for the next hop: handed to the kernel.
    TooBig = 13,
    /// Forwarded by choice without an entry (claim in progress, RST).
    Unpinned = 14,
    /// DROP: no room for a flow, and the live pool is not the VIP.
    TableFull = 15,
    /// DROP: the client's port is taken on the flow's backend, and no other of the pool was found free for it.
    TupleClash = 16,
    /// DROP: neither pool has a backend.
    NoBackend = 17,
    /// DROP: the packet could not be rewritten.
    RewriteFailed = 18,
    /// No room, passed untouched to the VIP.
    TableFullVip = 19,
    /// The service's record named another service: passed untouched.
    BadBody = 20,
    /// TTL or hop limit used up: handed to the kernel.
    TtlExpired = 21,
    /// A backend of the flow is not in use any more: passed untouched.
    GoneBackend = 22,
}

/// Verdict numbers and names, in order; the label of metrics and the word of docs.
pub const VERDICTS: [(Verdict, &str); 23] = [
    (Verdict::NotOurs, "not_ours"),
    (Verdict::NoFlow, "no_flow"),
    (Verdict::Unparsed, "unparsed"),
    (Verdict::Fragment, "fragment"),
    (Verdict::ForwardRedirect, "forward_redirect"),
    (Verdict::ForwardKernel, "forward_kernel"),
    (Verdict::ForwardVip, "forward_vip"),
    (Verdict::ReplyRedirect, "reply_redirect"),
    (Verdict::ReplyEgress, "reply_egress"),
    (Verdict::ReplyKernel, "reply_kernel"),
    (Verdict::ReplyVip, "reply_vip"),
    (Verdict::IcmpForward, "icmp_forward"),
    (Verdict::IcmpReply, "icmp_reply"),
    (Verdict::TooBig, "too_big"),
    (Verdict::Unpinned, "unpinned"),
    (Verdict::TableFull, "table_full"),
    (Verdict::TupleClash, "tuple_clash"),
    (Verdict::NoBackend, "no_backend"),
    (Verdict::RewriteFailed, "rewrite_failed"),
    (Verdict::TableFullVip, "table_full_vip"),
    (Verdict::BadBody, "bad_body"),
    (Verdict::TtlExpired, "ttl_expired"),
    (Verdict::GoneBackend, "gone_backend"),
];

const _: () = {
    let mut i = 0;
    while i < VERDICTS.len() {
        assert!(VERDICTS[i].0 as usize == i);
        i += 1;
    }
};
