//! Where the fields of a flow's entry lie in each layout, for an agent that
//! takes over from the table of another version.

use core::mem::{offset_of, size_of};

use super::{ABI_VERSION, flow::*};

/// Offsets in bytes of the fields of an entry, and its size. Their widths and
/// meaning, states and flags are those of [`FlowEntry`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowLayout {
    pub size: usize,
    pub control: usize,
    pub client: usize,
    pub client_port: usize,
    pub flags: usize,
    pub service: usize,
    pub backend: usize,
    pub generation: usize,
    pub last_seen: usize,
    pub created: usize,
    pub seq_a: usize,
    pub seq_b: usize,
    pub high: usize,
}

/// The layout of this version.
pub const OWN: FlowLayout = FlowLayout {
    size: size_of::<FlowEntry>(),
    control: offset_of!(FlowEntry, control),
    client: offset_of!(FlowEntry, client),
    client_port: offset_of!(FlowEntry, client_port),
    flags: offset_of!(FlowEntry, flags),
    service: offset_of!(FlowEntry, service),
    backend: offset_of!(FlowEntry, backend),
    generation: offset_of!(FlowEntry, generation),
    last_seen: offset_of!(FlowEntry, last_seen),
    created: offset_of!(FlowEntry, created),
    seq_a: offset_of!(FlowEntry, seq_a),
    seq_b: offset_of!(FlowEntry, seq_b),
    high: offset_of!(FlowEntry, high),
};

/// That of versions 3 to 5, which differ in flags, in other maps, and in where an entry
/// lies.
pub const V3: FlowLayout = FlowLayout {
    size: 64,
    control: 0,
    client: 8,
    client_port: 24,
    flags: 26,
    service: 28,
    backend: 30,
    generation: 36,
    last_seen: 40,
    created: 44,
    seq_a: 48,
    seq_b: 52,
    high: 56,
};

/// The layout of a version that flows can be taken over from.
pub const fn layout_of(version: u32) -> Option<FlowLayout> {
    if version == ABI_VERSION {
        return Some(OWN);
    }
    match version {
        3..=5 => Some(V3),
        _ => None,
    }
}

/// An entry of a layout as one of this version. Next hop and marks of the place
/// are left out: they are the place's own, or found anew.
///
/// # Panics
/// When `bytes` is shorter than the layout's entry.
pub fn read_entry(layout: &FlowLayout, bytes: &[u8]) -> FlowEntry {
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let mut client = [0; 16];
    client.copy_from_slice(&bytes[layout.client..layout.client + 16]);
    FlowEntry {
        control: u64_at(layout.control),
        client,
        client_port: [bytes[layout.client_port], bytes[layout.client_port + 1]],
        flags: u16_at(layout.flags),
        service: u16_at(layout.service),
        backend: u16_at(layout.backend),
        next_hop: 0,
        route_generation: 0,
        generation: u32_at(layout.generation),
        last_seen: u32_at(layout.last_seen),
        created: u32_at(layout.created),
        seq_a: u32_at(layout.seq_a),
        seq_b: u32_at(layout.seq_b),
        high: u32_at(layout.high),
        home: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_from_every_layout() {
        for (version, layout) in [(3, V3), (4, V3), (ABI_VERSION, OWN)] {
            assert_eq!(layout_of(version), Some(layout));
            let mut bytes = [0u8; 64];
            bytes[layout.control..][..8].copy_from_slice(&0x0102_0304_0506_0708u64.to_ne_bytes());
            bytes[layout.client..][..16].copy_from_slice(&[7; 16]);
            bytes[layout.client_port..][..2].copy_from_slice(&[1, 2]);
            for (at, value) in [
                (layout.flags, 11u16),
                (layout.service, 12),
                (layout.backend, 13),
            ] {
                bytes[at..][..2].copy_from_slice(&value.to_ne_bytes());
            }
            for (at, value) in [
                (layout.generation, 21u32),
                (layout.last_seen, 0x8000_0016),
                (layout.created, 23),
                (layout.seq_a, 24),
                (layout.seq_b, 25),
                (layout.high, 26),
            ] {
                bytes[at..][..4].copy_from_slice(&value.to_ne_bytes());
            }
            let entry = read_entry(&layout, &bytes);
            assert_eq!(entry.control, 0x0102_0304_0506_0708);
            assert_eq!((entry.client, entry.client_port), ([7; 16], [1, 2]));
            assert_eq!((entry.flags, entry.service, entry.backend), (11, 12, 13));
            assert_eq!((entry.generation, entry.last_seen), (21, 0x8000_0016));
            assert_eq!((entry.created, entry.seq_a), (23, 24));
            assert_eq!((entry.seq_b, entry.high, entry.home), (25, 26, 0));
        }
    }

    #[test]
    fn an_unknown_version_has_no_layout() {
        assert_eq!(layout_of(2), None);
        assert_eq!(layout_of(ABI_VERSION + 1), None);
    }
}
