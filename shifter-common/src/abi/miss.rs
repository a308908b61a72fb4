//! Which packets without an entry the programs before are asked about, while
//! flows move over from their table: indices of `OLD_XDP` and `OLD_TC`.

/// A TCP segment that opens a connection.
pub const MISS_OPENING: u32 = 0;
/// Any other packet from a client.
pub const MISS_CLIENT: u32 = 1;
/// A packet from a backend, at ingress.
pub const MISS_REPLY: u32 = 2;
/// A packet from a backend, at egress: of `OLD_TC` only.
pub const MISS_EGRESS: u32 = 3;

/// Elements of `OLD_XDP`.
pub const XDP_MISSES: u32 = 3;
/// Elements of `OLD_TC`.
pub const TC_MISSES: u32 = 4;
