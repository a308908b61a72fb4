//! Programs on the configured interfaces, as those come and go.

use std::sync::Arc;

use anyhow::{Result, bail};

use crate::{
    datapath::{
        Datapath as _, DatapathError,
        attach::{Egress, Ingress, PinnedInterface, ingress_in_force, pinned_interfaces},
        kernel::KernelDatapath,
        load::Pins,
    },
    doctor::{Hook, choose_hook},
    model::config::{HookChoice, HookEgress},
    network::{Link, LinkEvent, Network},
};

/// What keeps the programs attached.
pub struct Hooks {
    datapath: Arc<KernelDatapath>,
    network: Arc<Network>,
    pins: Pins,
    asked: Hook,
}

/// As the datapath names it. tcx needs kernel 6.6; where it is missing, clsact does the same.
pub fn egress_of(asked: HookEgress) -> Egress {
    match asked {
        HookEgress::Clsact => Egress::Clsact,
        HookEgress::Tcx => Egress::Tcx,
        HookEgress::Auto if crate::datapath::attach::has_tcx() => Egress::Tcx,
        HookEgress::Auto => Egress::Clsact,
    }
}

impl Hooks {
    pub fn new(
        datapath: Arc<KernelDatapath>,
        network: Arc<Network>,
        pins: Pins,
        asked: HookChoice,
    ) -> Self {
        let asked = match asked {
            HookChoice::Auto => Hook::Auto,
            HookChoice::Xdp => Hook::Xdp,
            HookChoice::Tc => Hook::Tc,
        };
        Self {
            datapath,
            network,
            pins,
            asked,
        }
    }

    /// On a new installation every configured interface must be there; on one
    /// that runs, a missing one is waited for.
    pub fn check_interfaces(&self) -> Result<()> {
        let missing: Vec<_> = self
            .network
            .attached()
            .iter()
            .filter(|name| self.network.link(name).is_none())
            .collect();
        let Some(first) = missing.first() else {
            return Ok(());
        };
        if pinned_interfaces(&self.pins).is_empty() {
            let known: Vec<_> = self
                .network
                .links()
                .into_iter()
                .map(|link| link.name)
                .collect();
            bail!(
                "there is no interface {first:?}; there are {}: name those that clients are behind in [agent] interfaces",
                known.join(", ")
            );
        }
        for name in missing {
            tracing::warn!(interface = %name, "is not there; it is attached when it appears");
        }
        Ok(())
    }

    /// Egress on all interfaces, then ingress. Returns whether any ingress was
    /// not attached before, so that flows may have begun unseen.
    pub fn attach_all(&self) -> Result<bool, DatapathError> {
        let links: Vec<Link> = self
            .network
            .attached()
            .iter()
            .filter_map(|name| self.network.link(name))
            .collect();
        if let Some(link) = links
            .iter()
            .find(|link| link.mac.is_none() && !link.loopback)
        {
            return Err(DatapathError::Refused(format!(
                "interface {} has no Ethernet header, and packets without one are not understood: name the Ethernet interfaces that clients are behind",
                link.name
            )));
        }
        let before = pinned_interfaces(&self.pins);
        self.warn_of_others(&before, &links);
        let fresh: Vec<&Link> = links
            .iter()
            .filter(|link| !before.iter().any(|pinned| pinned.ifindex == link.index))
            .filter(|link| matches!(ingress_in_force(&self.pins, link.index), Ok(None)))
            .collect();
        let attached = self.attach_links(&links);
        if attached.is_err() {
            // Nothing stays of a start that failed: ingress goes before egress.
            for link in fresh {
                self.datapath.take_off(&link.name, link.index)?;
            }
        }
        attached
    }

    fn attach_links(&self, links: &[Link]) -> Result<bool, DatapathError> {
        for link in links {
            self.datapath.attach_egress(&link.name, link.index)?;
        }
        let mut had_gap = false;
        for link in links {
            had_gap |= self.attach_ingress(link)?;
        }
        Ok(had_gap)
    }

    /// Programs go on where an interface was taken out of the configuration.
    fn warn_of_others(&self, pinned: &[PinnedInterface], links: &[Link]) {
        for pinned in pinned {
            let known = self
                .network
                .links()
                .into_iter()
                .find(|l| l.index == pinned.ifindex);
            match known {
                Some(link) if !links.iter().any(|l| l.index == link.index) => tracing::warn!(
                    interface = %link.name,
                    "is not in [agent] interfaces but has programs of shifter, which go on as they are: `shifter detach {}` takes them off",
                    link.name
                ),
                _ => {}
            }
        }
    }

    fn attach_ingress(&self, link: &Link) -> Result<bool, DatapathError> {
        let pinned = ingress_in_force(&self.pins, link.index).unwrap_or_else(|error| {
            tracing::warn!(%error, interface = %link.name, "asking for its filters failed");
            None
        });
        let mut link = link.clone();
        if pinned == Some(Ingress::Xdp) {
            // The program in the slot is ours.
            link.xdp = None;
        }
        let (hook, mut why) = choose_hook(&link, self.asked);
        let name = &link.name;
        if hook == Hook::Xdp {
            match self
                .datapath
                .attach_ingress(name, link.index, Ingress::Xdp, &why)
            {
                Ok(()) => return Ok(self.attached(&link, "xdp", &why, pinned)),
                Err(error) if self.asked == Hook::Auto => {
                    why = format!("its driver would not take native XDP ({error})");
                }
                Err(error) => return Err(error),
            }
        }
        self.datapath
            .attach_ingress(name, link.index, Ingress::Tc, &why)?;
        Ok(self.attached(&link, "tc", &why, pinned))
    }

    fn attached(&self, link: &Link, hook: &str, why: &str, before: Option<Ingress>) -> bool {
        self.datapath.interface_up(&link.name, link.running);
        tracing::info!(interface = %link.name, hook, why, "attached");
        before.is_none()
    }

    /// Follows one change of an interface; returns whether services shall settle anew.
    pub fn follow(&self, event: &LinkEvent) -> bool {
        let result = match event {
            LinkEvent::Appeared { name, .. } => match self.network.link(name) {
                Some(link) => self
                    .datapath
                    .attach_egress(&link.name, link.index)
                    .and_then(|()| self.attach_ingress(&link)),
                None => Ok(false),
            },
            LinkEvent::Vanished { name, ifindex } => {
                tracing::warn!(interface = %name, "is gone; it is attached again when it comes back");
                self.datapath.interface_gone(name, *ifindex).map(|()| false)
            }
            LinkEvent::Up { name, .. } => {
                self.datapath.interface_up(name, true);
                Ok(false)
            }
            LinkEvent::Down { name, .. } => {
                tracing::warn!(interface = %name, "is down");
                self.datapath.interface_up(name, false);
                Ok(false)
            }
            LinkEvent::Renamed { from, to, ifindex } => {
                tracing::warn!(%from, %to, "an interface with our programs was renamed");
                self.datapath.interface_renamed(from, to, *ifindex);
                Ok(false)
            }
        };
        result.unwrap_or_else(|error| {
            tracing::error!(%error, ?event, "attaching failed");
            false
        })
    }

    /// Next hops of clients, from the neighbours on our interfaces.
    pub fn refresh_next_hops(&self, routes_changed: bool) {
        if let Err(error) = self.datapath.set_next_hops(&self.network.next_hops()) {
            tracing::warn!(%error, "writing next hops failed");
        }
        if routes_changed {
            self.datapath.raise_route_generation();
        }
    }

    /// Notices programs that were taken off behind the agent's back.
    pub fn check_pins(&self) {
        for hook in self.datapath.hooks() {
            // A kernel that does not answer has not taken them off.
            let is_off = matches!(ingress_in_force(&self.pins, hook.ifindex), Ok(None));
            if hook.hook != "none" && is_off {
                tracing::warn!(interface = %hook.interface, "its programs were detached");
                self.datapath.hook_taken_off(&hook.interface);
            }
        }
    }
}
