//! Programs on the configured interfaces, as those come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    datapath::{
        Datapath as _, DatapathError, ProgramState,
        attach::{Egress, Ingress},
        kernel::{KernelDatapath, Look},
        load::Pins,
        pinned::pinned_interfaces,
        plural,
    },
    doctor::{Hook, choose_hook},
    model::config::{HookChoice, HookEgress},
    network::{Link, LinkEvent, Network},
    store::EventQueue,
};

use super::left_over::LeftOver;

/// What keeps the programs attached.
pub struct Hooks {
    datapath: Arc<KernelDatapath>,
    network: Arc<Network>,
    pins: Pins,
    asked: Hook,
    events: Arc<EventQueue>,
    tended: Mutex<Tended>,
    /// Some next hops could not be written.
    lacks_next_hops: AtomicBool,
}

/// What is remembered from one look at the interfaces to the next.
#[derive(Default)]
struct Tended {
    /// Programs that could not be put back, by interface.
    failed: BTreeMap<String, Failed>,
    /// Taken off by `shifter detach` in this run, by their index then.
    detached: BTreeMap<String, u32>,
    /// Interfaces that run another's program in the place of ours.
    taken: BTreeSet<String>,
    left_over: LeftOver,
}

struct Failed {
    tries: u32,
    next: Instant,
    error: String,
}

/// The longest pause between two tries to attach.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// As the datapath names it. tcx needs kernel 6.6; where it is missing, clsact does the same.
pub fn egress_of(asked: HookEgress) -> Egress {
    match asked {
        HookEgress::Clsact => Egress::Clsact,
        HookEgress::Tcx => Egress::Tcx,
        HookEgress::Auto if crate::datapath::attach::has_tcx() => Egress::Tcx,
        HookEgress::Auto => Egress::Clsact,
    }
}

/// Packets of tun and the like begin with their IP header.
fn has_no_header(link: &Link) -> bool {
    link.mac.is_none() && !link.loopback
}

impl Hooks {
    pub fn new(
        datapath: Arc<KernelDatapath>,
        network: Arc<Network>,
        pins: Pins,
        asked: HookChoice,
        events: Arc<EventQueue>,
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
            events,
            tended: Mutex::default(),
            lacks_next_hops: AtomicBool::new(false),
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
        if !self.was_installed() {
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

    /// Whether there was an agent before this one: clsact leaves no pins.
    fn was_installed(&self) -> bool {
        let inventory = self.datapath.inventory();
        inventory.is_ok_and(|inventory| !inventory.services.is_empty())
            || !pinned_interfaces(&self.pins).is_empty()
    }

    /// At the start: egress on all interfaces, then ingress. Returns whether any
    /// ingress was not attached before, so that flows may have begun unseen.
    pub fn attach_all(&self) -> Result<bool, DatapathError> {
        self.pins.clear_detached()?;
        let links: Vec<Link> = self
            .network
            .attached()
            .iter()
            .filter_map(|name| self.network.link(name))
            .collect();
        if let Some(link) = links.iter().find(|link| has_no_header(link)) {
            return Err(DatapathError::Refused(format!(
                "interface {} has no Ethernet header, and packets without one are not understood: name the Ethernet interfaces that clients are behind",
                link.name
            )));
        }
        let bare: Vec<&Link> = links
            .iter()
            .filter(|link| {
                let look = self.datapath.look_at(link.index);
                look.is_ok_and(|look| look.ingress.state == ProgramState::Absent)
            })
            .collect();
        let attached = self.attach_links(&links);
        if let Err(error) = attached {
            // Nothing stays of a start that failed: ingress goes before egress.
            for link in bare {
                self.datapath.take_off(link.index)?;
            }
            return Err(error);
        }
        let left_over = LeftOver::find(&self.datapath, &self.network, &self.pins);
        self.tended().left_over = left_over;
        let had_gap = !bare.is_empty();
        Ok(self.tend() || had_gap)
    }

    fn tended(&self) -> std::sync::MutexGuard<'_, Tended> {
        self.tended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach_links(&self, links: &[Link]) -> Result<(), DatapathError> {
        for link in links {
            self.datapath.attach_egress(&link.name, link.index)?;
            crate::fault::point("attach-egress");
        }
        for link in links {
            self.attach_ingress(link)?;
            crate::fault::point("attach-ingress");
        }
        Ok(())
    }

    fn attach_ingress(&self, link: &Link) -> Result<(), DatapathError> {
        let mut link = link.clone();
        let slot = self.datapath.look_at(link.index);
        if slot.is_ok_and(|look| look.is_ours && look.ingress.at == "xdp") {
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
                Ok(()) => {
                    self.attached(&link, "xdp", &why);
                    return Ok(());
                }
                Err(error) if self.asked == Hook::Auto => {
                    why = format!("its driver would not take native XDP ({error})");
                }
                Err(error) => return Err(error),
            }
        }
        self.datapath
            .attach_ingress(name, link.index, Ingress::Tc, &why)?;
        self.attached(&link, "tc", &why);
        Ok(())
    }

    fn attached(&self, link: &Link, hook: &str, why: &str) {
        self.datapath.interface_up(link.index, link.running);
        tracing::info!(interface = %link.name, hook, why, "attached");
        self.tell("attached", &link.name, &format!("{hook}: {why}"));
    }

    fn tell(&self, what: &str, interface: &str, text: &str) {
        let text = match text {
            "" => interface.to_owned(),
            text => format!("{interface}: {text}"),
        };
        self.events.tell("interface", what, "", text);
    }

    /// Follows one change of an interface; returns whether services shall settle
    /// anew. What an event says may be over by now, so it is what is there that
    /// counts.
    pub fn follow(&self, event: &LinkEvent) -> bool {
        match event {
            LinkEvent::Appeared { name, .. } | LinkEvent::XdpChanged { name, .. } => {
                // What kept the programs off may be gone: no pause is waited for.
                self.tended().failed.remove(name);
                if matches!(event, LinkEvent::Appeared { .. }) {
                    self.tell("appeared", name, "");
                }
            }
            LinkEvent::Vanished { name, .. } => {
                let text = "is gone; it is attached again when it comes back";
                tracing::warn!(interface = %name, "{text}");
                self.tell("gone", name, text);
            }
            LinkEvent::Up { name, .. } => self.tell("up", name, ""),
            LinkEvent::Down { name, .. } => {
                tracing::warn!(interface = %name, "is down");
                self.tell("down", name, "");
            }
            LinkEvent::Renamed { from, to, .. } => {
                tracing::warn!(%from, %to, "an interface was renamed: programs are on what bears a configured name");
                self.tell("renamed", from, &format!("is {to} now"));
            }
        }
        self.tend()
    }

    fn gone(&self, name: &str, ifindex: u32) {
        let done = if self.network.attached().iter().any(|a| a == name) {
            self.datapath.interface_gone(name, ifindex)
        } else {
            self.datapath.take_off(ifindex)
        };
        if let Err(error) = done {
            tracing::warn!(%error, interface = name, "forgetting its links failed");
        }
    }

    /// Compares every interface with what the kernel says is on it, puts back
    /// what is missing, and says what is loud. Whatever notice of a change was
    /// lost, the next look finds it. Returns whether an ingress was put back,
    /// so that services shall settle anew.
    pub fn tend(&self) -> bool {
        let mut tended = self.tended();
        let mut alarms = Vec::new();
        let mut had_gap = false;
        if self.lacks_next_hops.load(Ordering::Relaxed) {
            self.refresh_next_hops(false);
        }
        self.follow_indices(&mut tended);
        for name in self.network.attached() {
            let Some(link) = self.network.link(name) else {
                alarms.push(format!(
                    "interface {name} is not there: it is attached when it appears"
                ));
                continue;
            };
            match self.tend_link(&link, &mut tended) {
                Ok(put_back) => had_gap |= put_back,
                Err(alarm) => alarms.push(alarm),
            }
        }
        let left_over = &mut tended.left_over;
        alarms.extend(left_over.tend(&self.datapath, &self.network, &self.pins));
        self.datapath.set_alarms(alarms);
        had_gap
    }

    /// Programs stay with the index, whatever name it bears: brings what is
    /// noted of them up to date.
    fn follow_indices(&self, tended: &mut Tended) {
        for hook in self.datapath.hooks() {
            let Some(link) = self.network.link_at(hook.ifindex) else {
                let is_waited_for = self.network.attached().contains(&hook.interface);
                if hook.hook != "none" || !is_waited_for {
                    self.gone(&hook.interface, hook.ifindex);
                }
                continue;
            };
            if link.name != hook.interface {
                let (from, to) = (&hook.interface, &link.name);
                self.datapath.interface_renamed(from, to, link.index);
                if !self.network.attached().contains(to) {
                    tended.left_over.add(link.index, to);
                }
            }
            if link.running != hook.up {
                self.datapath.interface_up(link.index, link.running);
            }
        }
    }

    /// Whether an ingress was put back, or what is loud about the interface.
    fn tend_link(&self, link: &Link, tended: &mut Tended) -> Result<bool, String> {
        let name = &link.name;
        if has_no_header(link) {
            return Err(format!(
                "interface {name} has no Ethernet header, and packets without one are not understood: give its name back to the interface that clients are behind"
            ));
        }
        let look = self
            .datapath
            .look_at(link.index)
            .map_err(|error| format!("what runs on {name} is not known: {error}"))?;
        // After the look: `shifter detach` leaves its mark before it takes anything off.
        self.heed_detach(link, tended)?;
        let programs = [&look.ingress, &look.egress];
        if let Some(other) = programs.iter().find(|p| p.state == ProgramState::Other) {
            if tended.taken.insert(name.clone()) {
                tracing::warn!(interface = %name, program = other.id, direction = other.direction, at = other.at, "another's program has taken the place of ours");
                let text = format!(
                    "program {} of another runs at {} in the place of ours",
                    other.id, other.direction
                );
                self.tell("taken", name, &text);
            }
            return Err(format!(
                "interface {name} runs {} (program {}, tag {}) at {}, which this agent did not load: start the agent again to replace it, or see `bpftool prog show id {}` for whose it is",
                other.name, other.id, other.tag, other.direction, other.id
            ));
        }
        tended.taken.remove(name);
        if programs.iter().all(|p| p.state == ProgramState::Ours) {
            tended.failed.remove(name);
            return match look.beside.first() {
                None => Ok(false),
                Some(other) => Err(format!(
                    "interface {name} runs {} of another shifter installation (program {}, tag {}) at {} beside this agent's, so packets meet both: `shifter detach --bpffs` with the bpffs that it pins in takes it off",
                    other.name, other.id, other.tag, other.direction
                )),
            };
        }
        self.put_back(link, &look, tended)
    }

    /// What is loud about an interface that the operator detached. One that is
    /// made anew, with another index, stays detached in this run.
    fn heed_detach(&self, link: &Link, tended: &mut Tended) -> Result<(), String> {
        let name = &link.name;
        // Where the pins are out of reach, so are the marks: what is off stays off.
        let is_marked = self.pins.is_detached(link.index)
            || (!self.pins.root().exists() && tended.detached.contains_key(name));
        match tended.detached.get(name) {
            // The detach failed, and took its mark back.
            Some(index) if *index == link.index && !is_marked => {
                tended.detached.remove(name);
                // What is on is noted as off: attaching notes it anew.
                let done = self
                    .datapath
                    .attach_egress(name, link.index)
                    .and_then(|()| self.attach_ingress(link));
                return done.map_err(|error| {
                    format!("interface {name}: attaching after a detach that failed: {error}")
                });
            }
            Some(_) => {}
            None if !is_marked => return Ok(()),
            None => {
                let why = "it was detached by `shifter detach`; start the agent again to attach it";
                tracing::warn!(interface = %name, "{why}");
                self.tell("detached", name, "by `shifter detach`");
                self.datapath.hook_off(name, link.index, why);
                tended.detached.insert(name.clone(), link.index);
            }
        }
        Err(format!(
            "interface {name} was detached by `shifter detach`: what comes in there is not shifted; start the agent again to attach it"
        ))
    }

    fn put_back(&self, link: &Link, look: &Look, tended: &mut Tended) -> Result<bool, String> {
        let name = &link.name;
        let missing = match (look.ingress.state, look.egress.state) {
            (ProgramState::Ours, _) => "the un-NAT at egress",
            (_, ProgramState::Ours) => "the program at ingress",
            _ => "both programs",
        };
        let alarm = |failed: &Failed| {
            format!(
                "interface {name} is without {missing}, and putting it back failed {} ({}): what comes in there may pass untouched or be answered with a backend's address; it is tried again",
                plural(u64::from(failed.tries), "time"),
                failed.error
            )
        };
        let before = tended.failed.remove(name);
        if let Some(failed) = before.as_ref().filter(|f| Instant::now() < f.next) {
            let text = alarm(failed);
            tended.failed.extend(before.map(|f| (name.clone(), f)));
            return Err(text);
        }
        tracing::warn!(interface = %name, "is without {missing}; putting it back");
        if before.is_none() {
            self.tell("missing", name, &format!("is without {missing}"));
        }
        let done = self
            .datapath
            .attach_egress(name, link.index)
            .and_then(|()| self.attach_ingress(link));
        // A detach that began after the look may have been over before the attach.
        if let Err(detached) = self.heed_detach(link, tended) {
            if let Err(error) = self.datapath.take_off(link.index) {
                return Err(format!(
                    "{detached}; taking its programs off again failed: {error}"
                ));
            }
            return Err(detached);
        }
        let Err(error) = done else {
            return Ok(look.ingress.state != ProgramState::Ours);
        };
        let tries = before.map_or(1, |failed| failed.tries + 1);
        let pause = Duration::from_secs(1 << tries.min(6)).min(LONGEST_PAUSE);
        tracing::error!(%error, interface = %name, pause_s = pause.as_secs(), "attaching failed; it is tried again");
        let failed = Failed {
            tries,
            next: Instant::now() + pause,
            error: error.to_string(),
        };
        if look.ingress.state != ProgramState::Ours {
            let why = format!("attaching failed ({error}); it is tried again");
            self.datapath.hook_off(name, link.index, &why);
        }
        let text = alarm(&failed);
        tended.failed.insert(name.clone(), failed);
        Err(text)
    }

    /// Next hops of clients, from the neighbours on our interfaces.
    pub fn refresh_next_hops(&self, routes_changed: bool) {
        let written = self.datapath.set_next_hops(&self.network.next_hops());
        let before = self
            .lacks_next_hops
            .swap(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written
            && !before
        {
            tracing::warn!(%error, "writing next hops failed; it is tried again every second");
        }
        if routes_changed {
            self.datapath.raise_route_generation();
        }
    }
}
