//! Pins that are not as an agent left them: taken away in part, or somebody
//! else's under our names. Looked at before anything is loaded.
//!
//! A map whose pin is gone lives on in the programs that run, and is pinned
//! again from there (CAP_SYS_ADMIN). Where none runs, what can be made anew is.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::Path,
};

use aya::{
    maps::{Map, MapData, MapInfo, MapType},
    programs::{ProgramInfo, loaded_programs},
};

use super::{
    DatapathError,
    attach::Place,
    inspect::identity_of,
    load::{COHORTS, OLD_TC, OLD_XDP, PER_CPU, Pins, failed, map_fd, shapes},
    memory::MappedArray,
    migrate,
    off::would_cut,
    plural,
};

/// Maps that a start fills from what the others hold, or that begin at zero.
const REMADE: [&str; 15] = [
    "VIPS",
    COHORTS,
    "KNOWN",
    "FIRST_FLOW",
    "FLOW_TIMES",
    "BREAKERS",
    "SIGNALS",
    "HISTOGRAMS",
    "POOL_COUNTERS",
    "SPLIT_ERRORS",
    "BACKEND_COUNTERS",
    "VERDICTS",
    "EVICTED",
    OLD_XDP,
    OLD_TC,
];
/// Maps with zeros only until the first start is through.
const FILLED: [&str; 4] = ["CONFIG", "SERVICE_HEAD", "BACKENDS", "FLOWS"];
const HASHES: [&str; 3] = ["VIPS", "BACKEND_IDS", "NEXT_HOP_IDS"];
/// The kernel keeps so many characters of a map's name.
const NAME_CHARS: usize = 15;

/// Beside the store: the tag of the installation over these pins, by which its
/// programs are known when all pins are gone.
const NOTE: &str = "shifter.db.installation";

/// Notes the tag of this installation in the state directory.
pub fn note_installation(state_dir: &Path, tag: &str) {
    let path = state_dir.join(NOTE);
    if noted(state_dir).as_deref() == Some(tag) {
        return;
    }
    if let Err(error) = fs::write(&path, tag) {
        tracing::warn!(%error, path = %path.display(), "noting the installation failed: if all pins are lost, filters in clsact will not be known as its own");
    }
}

fn noted(state_dir: &Path) -> Option<String> {
    let tag = fs::read_to_string(state_dir.join(NOTE)).ok()?;
    (!tag.is_empty()).then_some(tag)
}

/// Looks at the pins of maps, pins again what running programs hold, and
/// returns what there is to say. Refuses what is not a map of ours, and pins
/// of which too much is gone.
pub fn mend_pins(pins: &Pins, state_dir: &Path) -> Result<Vec<String>, DatapathError> {
    let mut notes = strangers(pins);
    refuse_editions(pins)?;
    if migrate::is_other_version(pins) {
        // Its maps are another list. They are taken over whole, or not at all.
        return Ok(Vec::new());
    }
    let maps = pins.maps();
    let names: Vec<&str> = shapes(1).iter().map(|shape| shape.name).collect();
    let (mut present, mut missing) = (BTreeMap::new(), Vec::new());
    for name in names {
        match pinned_id(&maps, name)? {
            Some(id) => drop(present.insert(name, id)),
            None => missing.push(name),
        }
    }
    if missing.is_empty() {
        return Ok(notes);
    }
    let (found, lost) = find(missing, &held(&present, state_dir));
    let mut needed = lost.clone();
    needed.retain(|name| !REMADE.contains(name));
    match (needed.is_empty(), present.is_empty()) {
        (true, _) => {}
        // All or nothing: they belong together.
        (false, true) => return Ok(notes),
        // A first start that was cut off leaves some of its maps, all empty.
        (false, false) if is_filled(&maps, &present) => return Err(refusal(pins, &needed)),
        (false, false) => {}
    }
    for (name, map) in found {
        pin_again(&maps.join(name), &map)?;
        notes.push(format!(
            "the pin of {name} was gone; the map is the one of the programs that run, and is pinned again"
        ));
    }
    if !lost.is_empty() {
        notes.push(format!(
            "{} of {} pinned maps were not there and are made anew: {}",
            lost.len(),
            lost.len() + present.len(),
            lost.join(", ")
        ));
    }
    Ok(notes)
}

/// What programs of this installation hold, known by the maps that are still
/// pinned, or by the tag where none is: filters in clsact need no pins.
fn held(present: &BTreeMap<&str, u32>, state_dir: &Path) -> BTreeMap<String, u32> {
    let ids: BTreeSet<u32> = present.values().copied().collect();
    match noted(state_dir) {
        Some(tag) if ids.is_empty() => {
            held_by_programs(|info, _| identity_of(info).installation == tag)
        }
        _ => held_by_programs(|_, maps| maps.iter().any(|id| ids.contains(id))),
    }
}

/// Maps that are held, and names of those that are not.
fn find<'n>(
    missing: Vec<&'n str>,
    held: &BTreeMap<String, u32>,
) -> (Vec<(&'n str, MapData)>, Vec<&'n str>) {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    for name in missing {
        match held.get(cut(name)).map(|id| MapData::from_id(*id)) {
            Some(Ok(map)) => found.push((name, map)),
            _ => lost.push(name),
        }
    }
    (found, lost)
}

/// Maps in numbered directories are another version's, which this one cannot take over.
fn refuse_editions(pins: &Pins) -> Result<(), DatapathError> {
    let entries = fs::read_dir(pins.maps()).into_iter().flatten().flatten();
    match entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(is_number))
    {
        None => Ok(()),
        Some(path) => Err(DatapathError::Refused(format!(
            "{} holds maps of another version of shifter: start that version, or give up its flows with `shifter detach --force`",
            path.display()
        ))),
    }
}

fn is_number(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.parse::<u32>().is_ok())
}

fn cut(name: &str) -> &str {
    &name[..name.len().min(NAME_CHARS)]
}

/// Names beside our pins; they stay.
fn strangers(pins: &Pins) -> Vec<String> {
    let mut maps: BTreeSet<String> = shapes(1).iter().map(|s| s.name.to_owned()).collect();
    maps.extend(Place::ALL.map(|place| place.program().to_owned()));
    let is_link = |name: &str| {
        let parts = name.split_once('-');
        parts.is_some_and(|(index, place)| {
            index.parse::<u32>().is_ok() && matches!(place, "xdp" | "ingress" | "egress")
        })
    };
    let mut notes = Vec::new();
    for directory in [pins.maps(), pins.links()] {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            let is_ours = if directory == pins.links() {
                is_link(&name)
            } else {
                maps.contains(&name)
            };
            if !is_ours {
                notes.push(format!(
                    "{} is no pin of this version of shifter: it is left alone, and goes with `shifter detach`",
                    directory.join(&name).display()
                ));
            }
        }
    }
    notes
}

/// Id of the map that is pinned under a name, if one is.
fn pinned_id(maps: &Path, name: &str) -> Result<Option<u32>, DatapathError> {
    let path = maps.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let remedy = "it is not shifter's: take it away (`rm`), and start the agent again; nothing that runs depends on it";
    let info = MapInfo::from_pin(&path).map_err(|error| {
        let what = format!("reading {} as a pinned map", path.display());
        failed(what, error, remedy)
    })?;
    let is = info.map_type().ok();
    if is == Some(kind_of(name)) {
        return Ok(Some(info.id()));
    }
    Err(DatapathError::Refused(format!(
        "{} is a map of another kind ({is:?}, and shifter's is {:?}): {remedy}",
        path.display(),
        kind_of(name)
    )))
}

fn kind_of(name: &str) -> MapType {
    if HASHES.contains(&name) {
        MapType::Hash
    } else if name == COHORTS {
        MapType::LpmTrie
    } else if PER_CPU.contains(&name) {
        MapType::PerCpuArray
    } else if [OLD_XDP, OLD_TC].contains(&name) {
        MapType::ProgramArray
    } else {
        MapType::Array
    }
}

/// Maps, by their name in the kernel, of those programs of shifter that are of
/// this installation, given its maps. Empty where the kernel does not say.
fn held_by_programs(is_own: impl Fn(&ProgramInfo, &[u32]) -> bool) -> BTreeMap<String, u32> {
    let is_shifter = |info: &ProgramInfo| {
        let name = info.name_as_str();
        name.is_some_and(|name| name.starts_with("shifter_"))
    };
    loaded_programs()
        .flatten()
        .filter(is_shifter)
        .filter_map(|info| {
            let maps = info.map_ids().ok()??;
            is_own(&info, &maps).then_some(maps)
        })
        .flatten()
        .filter_map(|id| {
            let info = MapInfo::from_id(id).ok()?;
            Some((info.name_as_str()?.to_owned(), id))
        })
        .collect()
}

fn pin_again(path: &Path, map: &MapData) -> Result<(), DatapathError> {
    map.pin(path).map_err(|error| {
        let what = format!("pinning a map again at {}", path.display());
        failed(what, error, "bpffs must be writable")
    })
}

/// Whether an agent has filled these maps: then they belong together.
fn is_filled(maps: &Path, present: &BTreeMap<&str, u32>) -> bool {
    FILLED
        .iter()
        .filter(|name| present.contains_key(*name))
        .any(|name| has_content(&maps.join(name)).unwrap_or(true))
}

fn has_content(path: &Path) -> Option<bool> {
    let data = MapData::from_pin(path).ok()?;
    let info = data.info().ok()?;
    let bytes = u64::from(info.max_entries()) * u64::from(info.value_size()).next_multiple_of(8);
    let words = u32::try_from(bytes / 8).ok()?;
    let map = Map::Array(data);
    let mapped = MappedArray::<u64>::new(map_fd(&map).ok()?, words).ok()?;
    Some((0..words).any(|word| mapped.read(word) != 0))
}

fn refusal(pins: &Pins, needed: &[&str]) -> DatapathError {
    let flows = match would_cut(pins, None) {
        Ok(cut) => format!(
            "{} on green and {} on blue",
            plural(cut.green, "flow"),
            cut.blue
        ),
        Err(_) => "flows that cannot be counted".to_owned(),
    };
    DatapathError::Refused(format!(
        "the pins of {} are gone from {}, and no program that this process may ask holds these maps: `shifter prepare`, run by root with all capabilities, pins them again if one does. If none does, the other maps are of no use without them: `shifter detach --force` gives them up, with {flows}, and after a start connections of backends on this host are found by their sockets and others go to the live pool",
        needed.join(", "),
        pins.maps().display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_told_apart_is_a_map_of_ours() {
        let names: Vec<&str> = shapes(1).iter().map(|shape| shape.name).collect();
        let told = REMADE.iter().chain(&FILLED).chain(&HASHES).chain(&PER_CPU);
        for name in told {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn names_are_told_apart_as_the_kernel_cuts_them() {
        let names: BTreeSet<&str> = shapes(1).iter().map(|shape| cut(shape.name)).collect();
        assert_eq!(names.len(), shapes(1).len());
    }
}
