//! The flow table taken back to an earlier state between passes that change it.

use shifter::datapath::memory::MappedArray;
use shifter_common::abi::flow::{
    FlowEntry, FlowSet, SET_ENTRIES, control_state, is_live, is_proven,
};

/// The table as memory.
pub struct Table {
    sets: MappedArray<FlowSet>,
}

/// Entries that were live at one moment, and where.
pub struct Snapshot {
    entries: Vec<(u32, usize, FlowEntry)>,
}

impl Snapshot {
    /// Number of entries.
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}

impl Table {
    pub fn new(sets: MappedArray<FlowSet>) -> Self {
        Self { sets }
    }

    /// As it was created.
    pub fn clear(&self) {
        // SAFETY: zeroes are valid entries, and no packet is on its way.
        let empty: FlowSet = unsafe { std::mem::zeroed() };
        for set in 0..self.sets.count() {
            self.sets.write(set, empty);
        }
    }

    /// The live entries.
    pub fn snapshot(&self) -> Snapshot {
        let mut entries = Vec::new();
        for set in 0..self.sets.count() {
            for place in 0..SET_ENTRIES {
                // SAFETY: within the set; every bit pattern is a valid entry.
                let entry = unsafe { std::ptr::read_volatile(self.entry(set, place)) };
                if is_live(control_state(entry.control)) {
                    entries.push((set, place, entry));
                }
            }
        }
        Snapshot { entries }
    }

    /// Puts entries back as they were.
    pub fn restore(&self, snapshot: &Snapshot) {
        for (set, place, entry) in &snapshot.entries {
            // SAFETY: within the set, and no packet is on its way.
            unsafe { std::ptr::write_volatile(self.entry(*set, *place), *entry) };
        }
    }

    /// Frees the places of a snapshot; what they mark for others stays.
    pub fn free(&self, snapshot: &Snapshot) {
        for (set, place, _) in &snapshot.entries {
            // SAFETY: as above; a control word of 0 is a free entry.
            unsafe {
                std::ptr::write_volatile(&raw mut (*self.entry(*set, *place)).control, 0);
            }
        }
    }

    /// How many of the places of a snapshot hold a proven flow now.
    pub fn proven(&self, snapshot: &Snapshot) -> usize {
        let is_proven = |(set, place, _): &&(u32, usize, FlowEntry)| {
            // SAFETY: as above.
            let entry = unsafe { std::ptr::read_volatile(self.entry(*set, *place)) };
            is_proven(control_state(entry.control))
        };
        snapshot.entries.iter().filter(is_proven).count()
    }

    fn entry(&self, set: u32, place: usize) -> *mut FlowEntry {
        // SAFETY: `place` is below SET_ENTRIES.
        unsafe { self.sets.at(set).cast::<FlowEntry>().add(place) }
    }
}
