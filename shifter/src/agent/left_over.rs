//! Programs on interfaces that the configuration no longer names.
//!
//! They come off, ingress then egress, under the rule of `shifter detach`: when
//! no flow is on a backend other than the VIP, because nothing tells which flows
//! come in at the interface.

use std::time::{Duration, Instant};

use crate::{
    datapath::{
        kernel::KernelDatapath, load::Pins, off::would_cut, pinned::pinned_interfaces, plural,
    },
    network::Network,
};

/// Between two passes over the flow table.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Interfaces that are not configured and have programs of this installation.
#[derive(Default)]
pub struct LeftOver {
    interfaces: Vec<(u32, String)>,
    alarms: Vec<String>,
    next: Option<Instant>,
}

impl LeftOver {
    /// Looks at every interface of this network namespace, and forgets links
    /// of those that are gone.
    pub fn find(datapath: &KernelDatapath, network: &Network, pins: &Pins) -> Self {
        let links = network.links();
        let pinned = pinned_interfaces(pins);
        for pinned in &pinned {
            if !links.iter().any(|link| link.index == pinned.ifindex)
                && let Err(error) = datapath.take_off(pinned.ifindex)
            {
                tracing::warn!(%error, ifindex = pinned.ifindex, "forgetting links of an interface that is gone failed");
            }
        }
        let interfaces = links
            .into_iter()
            .filter(|link| !network.attached().contains(&link.name))
            .filter(|link| {
                pinned.iter().any(|pinned| pinned.ifindex == link.index)
                    || datapath.look_at(link.index).is_ok_and(|look| look.is_ours)
            })
            .map(|link| (link.index, link.name))
            .collect();
        Self {
            interfaces,
            ..Self::default()
        }
    }

    /// An interface with programs has a name that is not configured.
    pub fn add(&mut self, ifindex: u32, name: &str) {
        self.interfaces.retain(|(index, _)| *index != ifindex);
        self.interfaces.push((ifindex, name.to_owned()));
        self.next = None;
    }

    /// Those that are gone, or bear a configured name again, are left over no
    /// more; the others go by the name that they bear now.
    fn follow_names(&mut self, network: &Network) {
        let before = std::mem::take(&mut self.interfaces);
        for (ifindex, name) in before {
            let Some(link) = network.link_at(ifindex) else {
                self.next = None;
                continue;
            };
            if link.name != name {
                self.next = None;
            }
            if !network.attached().contains(&link.name) {
                self.interfaces.push((ifindex, link.name));
            }
        }
    }

    /// Takes off what may go, and says what stays and why.
    pub fn tend(
        &mut self,
        datapath: &KernelDatapath,
        network: &Network,
        pins: &Pins,
    ) -> Vec<String> {
        self.follow_names(network);
        if self.interfaces.is_empty() {
            return Vec::new();
        }
        if self.next.is_none_or(|next| Instant::now() >= next) {
            self.alarms.clear();
            let (stay, alarms) = std::mem::take(&mut self.interfaces)
                .into_iter()
                .filter_map(|(ifindex, name)| {
                    let alarm = take_off(datapath, pins, ifindex, &name)?;
                    Some(((ifindex, name), alarm))
                })
                .unzip();
            (self.interfaces, self.alarms) = (stay, alarms);
            self.next = Some(Instant::now() + LOOK_EVERY);
        }
        self.alarms.clone()
    }
}

/// Why the programs stay; `None` when they are off.
fn take_off(datapath: &KernelDatapath, pins: &Pins, ifindex: u32, name: &str) -> Option<String> {
    if pins.is_detached(ifindex) {
        tracing::info!(
            interface = name,
            "was detached by `shifter detach` and is not in [agent] interfaces any more"
        );
        return None;
    }
    let done = would_cut(pins, Some(ifindex)).and_then(|cut| {
        let flows = cut.blue + cut.green;
        if flows == 0 {
            datapath.take_off(ifindex)?;
        }
        Ok((flows, cut))
    });
    match done {
        Ok((0, _)) => {
            tracing::info!(
                interface = name,
                "is not in [agent] interfaces any more; its programs are off"
            );
            None
        }
        Ok((_, cut)) => Some(format!(
            "interface {name} is not in [agent] interfaces but keeps its programs, because {} on green and {} on blue may come in there (which do is not known, so each flow on a backend other than the VIP counts): they come off when there are none, or at once with `shifter detach {name} --force`, which cuts those that do; or name {name} in interfaces again",
            plural(cut.green, "flow"),
            cut.blue
        )),
        Err(error) => Some(format!(
            "interface {name} is not in [agent] interfaces but keeps its programs: {error}; `shifter detach {name}` takes them off"
        )),
    }
}
