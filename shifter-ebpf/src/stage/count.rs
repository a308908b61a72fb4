//! Packets and bytes, by pool and by backend.

use crate::{
    maps::{BACKEND_COUNTERS, POOL_COUNTERS},
    stage::track::From,
};

/// Counts a packet of `length` bytes at layer 3.
#[inline(always)]
pub fn packet(service: u32, pool: usize, backend: u16, from: From, length: u32) {
    let bytes = u64::from(length);
    let pool = POOL_COUNTERS.get_ptr_mut(service * 2 + pool as u32);
    let backend = BACKEND_COUNTERS.get_ptr_mut(u32::from(backend));
    macro_rules! add {
        ($counters:expr, $packets:ident, $bytes:ident) => {
            if let Some(counters) = $counters {
                // SAFETY: per CPU, and programs of one CPU do not interleave.
                unsafe {
                    (*counters).$packets += 1;
                    (*counters).$bytes += bytes;
                }
            }
        };
    }
    match from {
        From::Client => {
            add!(pool, forward_packets, forward_bytes);
            add!(backend, forward_packets, forward_bytes);
        }
        From::Backend => {
            add!(pool, reply_packets, reply_bytes);
            add!(backend, reply_packets, reply_bytes);
        }
    }
}
