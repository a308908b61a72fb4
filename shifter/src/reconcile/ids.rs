//! Service ids: free, in use, and those that flows may still name.

use std::collections::BTreeSet;

use shifter_common::abi::MAX_SERVICES;

use crate::datapath::{DatapathError, ServiceId};

/// See the module.
#[derive(Default)]
pub struct ServiceIds {
    free: BTreeSet<ServiceId>,
    next: ServiceId,
    pub retired: BTreeSet<ServiceId>,
}

impl ServiceIds {
    pub fn adopt(&mut self, id: ServiceId) {
        self.free.extend(self.next..id);
        self.next = self.next.max(id + 1);
        self.free.remove(&id);
    }

    /// Whether an id is in use or retired.
    pub fn is_taken(&self, id: ServiceId) -> bool {
        id < self.next && !self.free.contains(&id)
    }

    pub fn take(&mut self) -> Result<ServiceId, DatapathError> {
        if let Some(id) = self.free.pop_first() {
            return Ok(id);
        }
        if u32::from(self.next) < MAX_SERVICES {
            self.next += 1;
            return Ok(self.next - 1);
        }
        Err(Self::full())
    }

    /// Refuses more than are left.
    pub fn check_limit(&self, more: usize) -> Result<(), DatapathError> {
        let left = self.free.len() + (MAX_SERVICES as usize - usize::from(self.next));
        if more <= left {
            Ok(())
        } else {
            Err(Self::full())
        }
    }

    fn full() -> DatapathError {
        DatapathError::Full {
            what: "services",
            limit: u64::from(MAX_SERVICES),
            remedy: "delete one that is no longer used (a deleted one counts until its flows have ended)",
        }
    }

    pub fn release(&mut self, id: ServiceId) {
        self.retired.remove(&id);
        self.free.insert(id);
    }
}
