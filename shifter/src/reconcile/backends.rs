//! Backends of the host: one id per (address, port, protocol), shared by services.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use shifter_common::abi::{MAX_BACKEND_IDS, MAX_BACKENDS};

use super::HostFacts;
use crate::{
    datapath::{BackendId, BackendImage, Datapath, DatapathError, Placement, ServiceId},
    model::{BackendSpec, BackendState, Protocol},
};

/// One backend id in use.
pub struct Slot {
    pub addr: SocketAddr,
    pub protocol: Protocol,
    pub placement: Placement,
    /// What stands in the way, as last asked.
    pub warnings: Vec<String>,
    /// Services that have it in a pool.
    pub users: HashMap<ServiceId, Use>,
    /// The service whose VIP it is.
    pub vip_of: Option<ServiceId>,
    /// Another number each time that a service names it; 0: none has.
    pub named: u64,
    /// What the kernel holds, as far as this process wrote it.
    programmed: Option<BackendImage>,
    /// The id was given out anew: what its last owner counted is still there.
    fresh: bool,
}

/// What a backend is to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    pub maint: bool,
    /// Its rings leave it out for being down.
    pub down: bool,
}

impl Slot {
    fn image(&self) -> BackendImage {
        // A backend that some service still offers stays in use; one that no
        // pool names any more is treated as in maint until its flows are gone.
        let used = !self.users.is_empty();
        let maint =
            self.vip_of.is_none() && !used || used && self.users.values().all(|user| user.maint);
        let closed = |user: &Use| user.maint || user.down;
        let down = used && !maint && self.users.values().all(closed);
        BackendImage {
            addr: self.addr,
            protocol: self.protocol,
            placement: self.placement,
            maint,
            down,
        }
    }

    pub fn in_use(&self) -> bool {
        self.vip_of.is_some() || !self.users.is_empty()
    }

    /// Whether its sockets can be looked up from here.
    pub fn is_local(&self) -> bool {
        matches!(
            self.placement,
            Placement::Host | Placement::Kernel { netns: Some(_) }
        )
    }
}

/// What the host says of an address.
#[derive(Clone, Debug)]
pub struct Answer {
    addr: SocketAddr,
    protocol: Protocol,
    placement: Placement,
    pub warnings: Vec<String>,
}

impl Answer {
    /// Asks the host: some µs, or ms where a packet filter has to be read.
    pub fn ask(addr: SocketAddr, protocol: Protocol, facts: &dyn HostFacts) -> Self {
        Self {
            addr,
            protocol,
            placement: facts.placement(addr),
            warnings: facts.backend_warnings(addr, protocol),
        }
    }

    /// For an address that the host was not asked for.
    pub fn unknown(addr: SocketAddr, protocol: Protocol) -> Self {
        Self {
            addr,
            protocol,
            placement: Placement::Kernel { netns: None },
            warnings: Vec::new(),
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Backends {
    slots: HashMap<BackendId, Slot>,
    ids: HashMap<(SocketAddr, Protocol), BackendId>,
    free: BTreeSet<BackendId>,
    next: BackendId,
    /// Slots that no service names; freed when no flow names them either.
    idle: BTreeSet<BackendId>,
    /// Times that a service named its backends.
    named: u64,
}

impl Backends {
    pub fn get(&self, id: BackendId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub fn id(&self, addr: SocketAddr, protocol: Protocol) -> Option<BackendId> {
        self.ids.get(&(addr, protocol)).copied()
    }

    pub fn ids(&self) -> Vec<BackendId> {
        self.slots.keys().copied().collect()
    }

    /// Backends that no service names, each with [`Slot::named`].
    pub fn idle(&self) -> Vec<(BackendId, u64)> {
        let named = |id| self.slots.get(id).map(|slot| (*id, slot.named));
        self.idle.iter().filter_map(named).collect()
    }

    /// Takes over an id that the kernel holds.
    pub fn adopt(&mut self, id: BackendId, answer: Answer) {
        for unused in self.next.max(1)..id {
            self.free.insert(unused);
        }
        self.next = self.next.max(id + 1);
        self.free.remove(&id);
        self.insert(id, answer, false);
    }

    fn insert(&mut self, id: BackendId, answer: Answer, fresh: bool) {
        let Answer {
            addr,
            protocol,
            placement,
            warnings,
        } = answer;
        let slot = Slot {
            addr,
            protocol,
            placement,
            warnings,
            users: HashMap::new(),
            vip_of: None,
            named: 0,
            programmed: None,
            fresh,
        };
        self.slots.insert(id, slot);
        self.ids.insert((addr, protocol), id);
        self.idle.insert(id);
    }

    /// The id of an address, a new one if it has none. It is idle until a
    /// service names it, so that nothing has to be undone when a write fails.
    pub fn acquire(&mut self, answer: Answer) -> Result<BackendId, DatapathError> {
        if let Some(id) = self.id(answer.addr, answer.protocol) {
            return Ok(id);
        }
        let id = match self.free.pop_first() {
            Some(id) => id,
            None if u32::from(self.next.max(1)) < MAX_BACKEND_IDS => {
                self.next = self.next.max(1) + 1;
                self.next - 1
            }
            None => {
                return Err(DatapathError::Full {
                    what: "backend ids (backends, VIPs, and removed backends that still carry flows)",
                    limit: u64::from(MAX_BACKEND_IDS),
                    remedy: "take out backends that are no longer used",
                });
            }
        };
        self.insert(id, answer, true);
        Ok(id)
    }

    /// Backends that pools name.
    pub fn check_limit(&self, more: usize) -> Result<(), DatapathError> {
        let used = self.slots.len() - self.idle.len();
        // VIPs count for MAX_BACKEND_IDS only; telling them apart needs a pass,
        // which is made when it could matter.
        if used + more <= MAX_BACKENDS as usize {
            return Ok(());
        }
        let named = self.slots.values().filter(|s| !s.users.is_empty()).count();
        if named + more <= MAX_BACKENDS as usize {
            return Ok(());
        }
        Err(DatapathError::Full {
            what: "backends",
            limit: u64::from(MAX_BACKENDS),
            remedy: "take out backends that are no longer used, or use several hosts",
        })
    }

    /// Notes which backends a service names now.
    pub fn name(
        &mut self,
        service: ServiceId,
        vip: BackendId,
        pools: [(&[BackendId], &[BackendSpec]); 2],
        down: &BTreeSet<SocketAddr>,
    ) {
        self.named += 1;
        if let Some(slot) = self.slots.get_mut(&vip) {
            slot.vip_of = Some(service);
            slot.named = self.named;
            self.idle.remove(&vip);
        }
        for (ids, specs) in pools {
            for (id, spec) in ids.iter().zip(specs) {
                if let Some(slot) = self.slots.get_mut(id) {
                    let user = Use {
                        maint: spec.state == BackendState::Maint,
                        down: down.contains(&spec.addr),
                    };
                    slot.users.insert(service, user);
                    slot.named = self.named;
                    self.idle.remove(id);
                }
            }
        }
    }

    /// Notes that a service names them no more.
    pub fn unname<'a>(&mut self, service: ServiceId, ids: impl IntoIterator<Item = &'a BackendId>) {
        for id in ids {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.users.remove(&service);
                if slot.vip_of == Some(service) {
                    slot.vip_of = None;
                }
                if !slot.in_use() {
                    self.idle.insert(*id);
                }
            }
        }
    }

    /// Writes the record to the kernel if it differs from what was written last.
    pub fn sync(&mut self, id: BackendId, datapath: &dyn Datapath) -> Result<(), DatapathError> {
        let Some(slot) = self.slots.get_mut(&id) else {
            return Ok(());
        };
        let image = slot.image();
        if slot.fresh {
            datapath.reset_backend_counters(id)?;
            slot.fresh = false;
        }
        if slot.programmed != Some(image) {
            datapath.put_backend(id, &image)?;
            slot.programmed = Some(image);
        }
        Ok(())
    }

    /// Notes what the host answered for an address; true if the placement is
    /// another. The id may have gone to another address since it was asked.
    pub fn note(&mut self, id: BackendId, answer: Answer) -> bool {
        let asked = (answer.addr, answer.protocol);
        let Some(slot) = self.slots.get_mut(&id) else {
            return false;
        };
        if (slot.addr, slot.protocol) != asked {
            return false;
        }
        slot.warnings = answer.warnings;
        std::mem::replace(&mut slot.placement, answer.placement) != answer.placement
    }

    /// Forgets an idle backend that the kernel has forgotten.
    pub fn release(&mut self, id: BackendId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.ids.remove(&(slot.addr, slot.protocol));
            self.idle.remove(&id);
            self.free.insert(id);
        }
    }
}
