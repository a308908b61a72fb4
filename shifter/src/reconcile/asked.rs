//! What the host says of the services of a request, asked before the core is locked.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use super::{HostFacts, backends::Answer};
use crate::model::{Protocol, ServiceSpec, Vip};

/// One answer for each address and VIP, however many services name it.
pub struct Asked {
    addresses: HashMap<(SocketAddr, Protocol), Answer>,
    translated: HashMap<Vip, bool>,
    /// Why the packet filter is not known whole.
    pub filter_problem: Option<String>,
}

impl Asked {
    /// Asks the host; may take seconds where nft is slow.
    pub fn of(specs: &[ServiceSpec], facts: &dyn HostFacts) -> Self {
        let vips: BTreeSet<Vip> = specs.iter().map(|spec| spec.vip).collect();
        let addresses: BTreeSet<(SocketAddr, Protocol)> = specs
            .iter()
            .flat_map(|spec| {
                let pools = spec.blue_pool.iter().chain(&spec.green_pool);
                let addrs = pools.map(|backend| backend.addr);
                addrs
                    .chain([spec.vip.addr])
                    .map(|addr| (addr, spec.vip.protocol))
            })
            .collect();
        let ask = |(addr, protocol)| ((addr, protocol), Answer::ask(addr, protocol, facts));
        Self {
            addresses: addresses.into_iter().map(ask).collect(),
            translated: vips
                .into_iter()
                .map(|vip| (vip, facts.vip_is_translated(&vip)))
                .collect(),
            filter_problem: facts.filter_problem(false),
        }
    }

    /// What was said of an address.
    pub fn answer(&self, addr: SocketAddr, protocol: Protocol) -> Answer {
        let answer = self.addresses.get(&(addr, protocol));
        answer
            .cloned()
            .unwrap_or_else(|| Answer::unknown(addr, protocol))
    }

    /// Whether DNAT stands in front of the VIP; yes where that is not known.
    pub fn is_translated(&self, vip: &Vip) -> bool {
        self.translated.get(vip).copied().unwrap_or(true)
    }
}
