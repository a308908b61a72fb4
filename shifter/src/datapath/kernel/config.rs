//! The one record of settings that packets read.

use std::io::Read as _;

use shifter_common::abi::{
    self, Config,
    config::{TIMEOUTS, XDP_INTERFACES},
};

use super::KernelDatapath;
use crate::datapath::{DatapathError, load::failed, memory::MappedArray};

impl KernelDatapath {
    /// Tells packets which interfaces XDP can redirect into: those with our XDP
    /// program in force, at most `XDP_INTERFACES`.
    pub fn allow_xdp_into(&self, interfaces: impl IntoIterator<Item = u32>) {
        let mut named = [0; XDP_INTERFACES];
        for (place, ifindex) in named.iter_mut().zip(interfaces) {
            *place = ifindex;
        }
        let config = self.config.at(0);
        // SAFETY: within the mapping; a packet sees each word old or new.
        unsafe { std::ptr::write_volatile(&raw mut (*config).xdp_interfaces, named) };
    }

    /// Makes every flow look its next hop up once more.
    pub fn raise_route_generation(&self) {
        let config = self.config.at(0);
        // SAFETY: within the mapping; one aligned word, written only here under no race:
        // a lost increment still changes the number.
        unsafe {
            let word = &raw mut (*config).route_generation;
            std::ptr::write_volatile(word, std::ptr::read_volatile(word).wrapping_add(1));
        }
    }
}

/// Writes the settings of a new installation, or of one whose flows move here
/// (`inherited`), or checks those that are there. Returns one in how many flows was
/// watched, where that is another number now.
pub(super) fn prepare_config(
    config: &MappedArray<Config>,
    sets: u32,
    watch_mask: u32,
    timeouts: &[u32; TIMEOUTS],
    inherited: Option<Config>,
) -> Result<Option<u32>, DatapathError> {
    let old = config.read(0);
    if old.abi_version != 0 && old.abi_version != abi::ABI_VERSION {
        return Err(DatapathError::Refused(format!(
            "the pinned maps have layout version {}, this agent works with {}: start the version that made them, or give up its flows with `shifter detach --force`",
            old.abi_version,
            abi::ABI_VERSION
        )));
    }
    if old.abi_version == abi::ABI_VERSION {
        let record = config.at(0);
        // SAFETY: within the mapping; single words.
        unsafe {
            std::ptr::write_volatile(&raw mut (*record).timeouts, *timeouts);
            std::ptr::write_volatile(&raw mut (*record).watch_mask, watch_mask);
        }
        return Ok((old.watch_mask != watch_mask).then(|| old.watch_mask.wrapping_add(1).max(1)));
    }
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| failed("reading /dev/urandom", error, ""))?;
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| random[at + i]));
    let fresh = Config {
        abi_version: 0,
        set_mask: sets - 1,
        route_generation: 1,
        watch_mask,
        table_key: [word(0), word(8)],
        timeouts: *timeouts,
        tag: std::array::from_fn(|i| random[16 + i]),
        xdp_interfaces: [0; XDP_INTERFACES],
    };
    // Of the same installation, and each flow looks its way up once more.
    let fresh = match inherited {
        Some(before) => Config {
            route_generation: before.route_generation.wrapping_add(1),
            tag: before.tag,
            xdp_interfaces: before.xdp_interfaces,
            ..fresh
        },
        None => fresh,
    };
    // Packets take the record for real once the version is there: last.
    config.write(0, fresh);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    config.write(
        0,
        Config {
            abi_version: abi::ABI_VERSION,
            ..fresh
        },
    );
    Ok(None)
}
