//! Rings: regions of one array of backend ids.

use core::mem::size_of;

/// Backend ids in one array element: an element of the map is a `u64` of four.
pub const RING_LANES: u32 = 4;

/// Slots of one pool's Maglev ring. `slots` 0: the pool has no backend for new flows.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingRegion {
    /// First slot; a multiple of [`RING_LANES`].
    pub offset: u32,
    /// Number of slots.
    pub slots: u32,
}

const _: () = assert!(size_of::<RingRegion>() == 8);
