//! Records of services, backends and next hops, and counters, into maps of
//! another layout. Ids stay the same, because flows name them.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{MapInfo, MapType};
use shifter_common::abi::BreakerRecord;

use super::{
    counts::{BREAKERS, SUMS, trip_alone},
    open_map,
};
use crate::datapath::{
    DatapathError,
    load::{MapShape, OLD_TC, OLD_XDP, failed, shapes},
    memory::MappedArray,
    pinned::bpf,
};

const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_NEXT_KEY: libc::c_int = 4;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
/// What is copied otherwise, or not at all.
const APART: [&str; 3] = ["CONFIG", OLD_XDP, OLD_TC];

/// Whether every record of the maps in `from` has a place in this version's.
///
/// # Errors
/// Names the first that has none.
pub fn check(from: &Path) -> Result<(), DatapathError> {
    for shape in shared() {
        if !from.join(shape.name).exists() {
            continue;
        }
        let info = info(from, &shape)?;
        let is = (info.key_size(), info.value_size());
        if is != (shape.key, shape.value) || info.max_entries() > shape.entries {
            return Err(DatapathError::Refused(format!(
                "flows cannot move over: the pinned map {} has key, value and entries {:?}, and this version knows no way from there to {:?}; start the version that made it, or give up its flows with `shifter detach --force`",
                from.join(shape.name).display(),
                (is.0, is.1, info.max_entries()),
                (shape.key, shape.value, shape.entries)
            )));
        }
    }
    Ok(())
}

/// Copies all but what the programs count, which is added in the end.
pub fn copy(from: &Path, to: &Path) -> Result<(), DatapathError> {
    for shape in shared().filter(|shape| !SUMS.contains(&shape.name)) {
        if from.join(shape.name).exists() {
            copy_map(from, to, &shape).map_err(|error| {
                let what = format!("copying {} into {}", shape.name, to.display());
                failed(what, error, "")
            })?;
        }
    }
    Ok(())
}

/// All but those, and but what has an element for each place of the table of flows.
fn shared() -> impl Iterator<Item = MapShape> {
    let all = shapes(1).into_iter().zip(shapes(1 << 20));
    all.filter(|(small, large)| small.entries == large.entries)
        .map(|(shape, _)| shape)
        .filter(|shape| !APART.contains(&shape.name))
}

fn info(directory: &Path, shape: &MapShape) -> Result<MapInfo, DatapathError> {
    let path = directory.join(shape.name);
    MapInfo::from_pin(&path).map_err(|error| {
        failed(
            format!("reading the pinned map {}", path.display()),
            error,
            "",
        )
    })
}

fn copy_map(from: &Path, to: &Path, shape: &MapShape) -> io::Result<()> {
    let info = MapInfo::from_pin(from.join(shape.name)).map_err(io::Error::other)?;
    let kind = info.map_type().map_err(io::Error::other)?;
    let (from, to) = (
        open_map(&from.join(shape.name))?,
        open_map(&to.join(shape.name))?,
    );
    match kind {
        MapType::Array if shape.name == BREAKERS => copy_trips(&from, &to, &info),
        MapType::Array if info.map_flags() & MMAPABLE != 0 => copy_array(&from, &to, &info),
        MapType::Array => copy_values(&from, &to, &info, 1),
        MapType::PerCpuArray => copy_values(&from, &to, &info, possible_cpus()?),
        _ => copy_keys(&from, &to, &info),
    }
}

/// What has tripped, without what breakers count.
fn copy_trips(from: &OwnedFd, to: &OwnedFd, info: &MapInfo) -> io::Result<()> {
    let from = MappedArray::<BreakerRecord>::new(from, info.max_entries())?;
    let to = MappedArray::<BreakerRecord>::new(to, info.max_entries())?;
    for id in 0..from.count() {
        let tripped = trip_alone(&from.read(id));
        if tripped != BreakerRecord::default() {
            to.write(id, tripped);
        }
    }
    Ok(())
}

/// Through memory; nobody writes either meanwhile.
fn copy_array(from: &OwnedFd, to: &OwnedFd, info: &MapInfo) -> io::Result<()> {
    let words = info.max_entries() as usize * (info.value_size() as usize).next_multiple_of(8) / 8;
    let words = u32::try_from(words).map_err(io::Error::other)?;
    let from = MappedArray::<u64>::new(from, words)?;
    let to = MappedArray::<u64>::new(to, words)?;
    for word in 0..words {
        let value = from.read(word);
        if value != to.read(word) {
            to.write(word, value);
        }
    }
    Ok(())
}

/// Element by element, each with so many values.
pub(super) fn copy_values(
    from: &OwnedFd,
    to: &OwnedFd,
    info: &MapInfo,
    each: usize,
) -> io::Result<()> {
    let mut values = vec![0u64; (info.value_size() as usize).div_ceil(8) * each];
    for index in 0..info.max_entries() {
        lookup(from, (&raw const index).cast(), &mut values)?;
        if values.iter().any(|value| *value != 0) {
            update(to, (&raw const index).cast(), &values)?;
        }
    }
    Ok(())
}

fn copy_keys(from: &OwnedFd, to: &OwnedFd, info: &MapInfo) -> io::Result<()> {
    let mut key = vec![0u8; info.key_size() as usize];
    let mut next = key.clone();
    let mut value = vec![0u64; (info.value_size() as usize).div_ceil(8)];
    let mut before = 0;
    loop {
        let attr = [fd_of(from), before, next.as_mut_ptr() as u64, 0];
        match bpf(MAP_NEXT_KEY, attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        key.copy_from_slice(&next);
        before = key.as_ptr() as u64;
        lookup(from, key.as_ptr(), &mut value)?;
        update(to, key.as_ptr(), &value)?;
    }
}

pub(super) fn lookup(map: &OwnedFd, key: *const u8, value: &mut [u64]) -> io::Result<()> {
    let attr = [fd_of(map), key as u64, value.as_mut_ptr() as u64, 0];
    bpf(MAP_LOOKUP, attr).map(drop)
}

pub(super) fn update(map: &OwnedFd, key: *const u8, value: &[u64]) -> io::Result<()> {
    let attr = [fd_of(map), key as u64, value.as_ptr() as u64, 0];
    bpf(MAP_UPDATE, attr).map(drop)
}

fn fd_of(map: &OwnedFd) -> u64 {
    map.as_raw_fd() as u64
}

/// CPUs that the kernel keeps values of per-CPU maps for.
pub(super) fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(what, error)| io::Error::other(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_what_belongs_to_places_of_the_table_are_no_records() {
        let names: Vec<_> = shared().map(|shape| shape.name).collect();
        for name in ["CONFIG", "FLOWS", OLD_XDP, OLD_TC] {
            assert!(!names.contains(&name), "{name}");
        }
        for name in ["VIPS", "BACKENDS", "SERVICE_BODY", "RINGS", "POOL_COUNTERS"] {
            assert!(names.contains(&name), "{name}");
        }
    }
}
