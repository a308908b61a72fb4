//! The cases: what is sent, in which state of the table, and what must be counted.

use super::frames::{Kind, Role};

/// One case of a kind of flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// A SYN, or the first datagram, that inserts.
    Open,
    /// The ACK that proves.
    Proof,
    /// An ACK without an entry.
    Adopt,
    /// Of an established flow, from the client.
    Forward,
    /// Of an established flow, from the backend.
    Reply,
    /// Neither port is known.
    NotOurs,
    /// One port is known, the address is not.
    PortKnown,
}

impl Case {
    /// In the order in which a load goes through them.
    pub const ALL: [Self; 7] = [
        Self::Adopt,
        Self::Open,
        Self::Proof,
        Self::Forward,
        Self::Reply,
        Self::NotOurs,
        Self::PortKnown,
    ];

    /// Whether flows of the kind have it.
    pub fn is_of(self, kind: Kind) -> bool {
        let tcp_only = matches!(self, Self::Proof | Self::Adopt);
        !(kind.is_udp && tcp_only)
    }

    /// Its full name, by which it is filtered.
    pub fn name(self, kind: Kind) -> String {
        let case = match self {
            Self::Open if kind.is_udp => "first",
            Self::Open => "syn",
            Self::Proof => "proof",
            Self::Adopt => "adopt",
            Self::Forward => "forward",
            Self::Reply => "reply",
            Self::NotOurs => "not-ours",
            Self::PortKnown => "port-known",
        };
        format!("{}-{case}", kind.name())
    }

    /// Whether its packets change the table, so that each pass needs it as it was.
    pub fn changes(self) -> bool {
        matches!(self, Self::Open | Self::Proof | Self::Adopt)
    }

    /// What is sent.
    pub fn role(self) -> Role {
        match self {
            Self::Open => Role::Open,
            Self::Proof | Self::Adopt | Self::Forward => Role::Data,
            Self::Reply => Role::Reply,
            Self::NotOurs => Role::NotOurs,
            Self::PortKnown => Role::PortKnown,
        }
    }

    /// The verdict that every packet must get.
    pub fn verdict(self) -> &'static str {
        match self {
            Self::Open | Self::Proof | Self::Adopt | Self::Forward => "forward_redirect",
            Self::Reply => "reply_redirect",
            Self::NotOurs => "not_ours",
            Self::PortKnown => "no_flow",
        }
    }
}
