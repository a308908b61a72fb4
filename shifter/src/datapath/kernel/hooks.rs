//! Hooks in force: attached, noted for `status`, and compared with what the
//! kernel says is there.

use std::{io, os::fd::OwnedFd};

use super::{KernelDatapath, lock};
use crate::datapath::{
    Datapath as _, DatapathError, HookStatus, ProgramState, ProgramStatus,
    attach::{Egress, Ingress, Place},
    inspect::{self, ProgramIdentity},
};

/// Ids and kernel tags of this agent's programs, in the order of [`Place::ALL`].
pub(super) type Own = [(u32, u64); 3];

impl KernelDatapath {
    /// A descriptor of a loaded program.
    pub(in crate::datapath) fn program(&self, place: Place) -> Result<OwnedFd, DatapathError> {
        lock(&self.attacher).program_fd(place)
    }

    /// Attaches (or replaces) the un-NAT at egress of an interface. All
    /// interfaces get it before any gets its ingress.
    pub fn attach_egress(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.attacher).attach_egress(name, ifindex)
    }

    /// Attaches (or replaces) the ingress program of an interface.
    pub fn attach_ingress(
        &self,
        name: &str,
        ifindex: u32,
        hook: Ingress,
        why: &str,
    ) -> Result<(), DatapathError> {
        self.refuse_unasked(hook)?;
        let mut attacher = lock(&self.attacher);
        attacher.attach_ingress(name, ifindex, hook)?;
        let egress = match attacher.egress() {
            Egress::Tcx => "tcx",
            Egress::Clsact => "clsact",
        };
        let status = HookStatus {
            interface: name.to_owned(),
            ifindex,
            hook: match hook {
                Ingress::Xdp => "xdp".to_owned(),
                Ingress::Tc => "tc".to_owned(),
            },
            egress: egress.to_owned(),
            why: why.to_owned(),
            up: true,
            ..HookStatus::default()
        };
        drop(attacher);
        self.change_hooks(|hooks| {
            hooks.retain(|hook| hook.interface != name && hook.ifindex != ifindex);
            hooks.push(status);
        });
        if let Err(error) = self.look_at(ifindex) {
            tracing::debug!(%error, interface = name, "asking for its programs failed");
        }
        Ok(())
    }

    /// Changes what is noted, and tells packets where XDP may redirect to.
    fn change_hooks(&self, change: impl FnOnce(&mut Vec<HookStatus>)) {
        let mut hooks = lock(&self.hooks);
        change(&mut hooks);
        let xdp = hooks.iter().filter(|hook| hook.hook == "xdp");
        self.allow_xdp_into(xdp.map(|hook| hook.ifindex));
    }

    fn change_hook(&self, ifindex: u32, change: impl FnOnce(&mut HookStatus)) {
        self.change_hooks(|hooks| {
            if let Some(hook) = hooks.iter_mut().find(|hook| hook.ifindex == ifindex) {
                change(hook);
            }
        });
    }

    /// Takes everything off an interface, ingress first.
    pub fn take_off(&self, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.attacher).take_off(ifindex)?;
        self.change_hooks(|hooks| hooks.retain(|hook| hook.ifindex != ifindex));
        Ok(())
    }

    /// An interface is gone, and with it the programs on it.
    pub fn interface_gone(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        self.hook_off(
            name,
            ifindex,
            "the interface is gone; it is attached again when it comes back",
        );
        self.change_hook(ifindex, |hook| hook.up = false);
        lock(&self.attacher).forget(ifindex)
    }

    /// Nothing of ours is in force on an interface.
    pub fn hook_off(&self, name: &str, ifindex: u32, why: &str) {
        self.change_hooks(|hooks| {
            hooks.retain(|hook| hook.interface != name || hook.ifindex == ifindex);
            let position = hooks.iter().position(|hook| hook.ifindex == ifindex);
            let up = position.is_some_and(|position| hooks.remove(position).up);
            hooks.push(HookStatus {
                interface: name.to_owned(),
                ifindex,
                hook: "none".to_owned(),
                egress: "none".to_owned(),
                why: why.to_owned(),
                up,
                ..HookStatus::default()
            });
        });
    }

    /// An interface came up or went down.
    pub fn interface_up(&self, ifindex: u32, up: bool) {
        self.change_hook(ifindex, |hook| hook.up = up);
    }

    /// An interface goes by another name, programs and all.
    pub fn interface_renamed(&self, from: &str, to: &str, ifindex: u32) {
        self.change_hooks(|hooks| {
            // What was noted of one that is gone and had this name.
            hooks.retain(|hook| {
                hook.interface != to || hook.ifindex == ifindex || hook.hook != "none"
            });
            if let Some(hook) = hooks.iter_mut().find(|hook| hook.ifindex == ifindex) {
                hook.interface = to.to_owned();
                hook.why = why_renamed(&hook.why, from, to);
            }
        });
    }

    /// What is loud about the hooks from now on.
    pub fn set_alarms(&self, alarms: Vec<String>) {
        *lock(&self.alarms) = alarms;
    }

    /// Asks the kernel what runs on an interface, and notes it.
    ///
    /// # Errors
    /// When the kernel does not answer; then nothing is known, and nothing noted.
    pub fn look_at(&self, ifindex: u32) -> io::Result<Look> {
        let attached = inspect::attached(ifindex)?;
        let wants_xdp = lock(&self.hooks)
            .iter()
            .any(|hook| hook.ifindex == ifindex && hook.hook == "xdp");
        let judged = |direction, programs: &[_], places: &[Place]| {
            let (status, other) = judge(direction, programs, &self.own, places, wants_xdp, |id| {
                self.identity(id)
            });
            let installation = match status.state {
                ProgramState::Ours => self.tag(),
                _ => other,
            };
            (status, installation)
        };
        let places = [Place::Xdp, Place::TcIngress];
        let (ingress, installation) = judged("ingress", &attached.ingress, &places);
        let (egress, of_egress) = judged("egress", &attached.egress, &[Place::TcEgress]);
        let counted = [ingress.id, egress.id];
        let mut beside = Vec::new();
        for (direction, programs) in [("ingress", &attached.ingress), ("egress", &attached.egress)]
        {
            let of = strangers(direction, programs, &counted, |id| self.identity(id));
            beside.extend(of);
        }
        self.change_hook(ifindex, |hook| {
            hook.tag.clone_from(&installation);
            hook.programs = vec![ingress.clone(), egress.clone()];
            hook.programs.extend(beside.iter().cloned());
        });
        let is_ours = [installation, of_egress].contains(&self.tag());
        Ok(Look {
            ingress,
            egress,
            beside,
            is_ours,
        })
    }

    /// Who a program is; asked of the kernel once, for an id names one program.
    fn identity(&self, id: u32) -> ProgramIdentity {
        let mut known = lock(&self.identities);
        if known.len() > MOST_IDENTITIES {
            known.clear();
        }
        if let Some(identity) = known.get(&id) {
            return identity.clone();
        }
        let identity = inspect::identify(id);
        // A failure is not kept: the next look may succeed.
        if !identity.name.is_empty() {
            known.insert(id, identity.clone());
        }
        identity
    }
}

/// Why a hook was chosen, and the name that its interface had then.
fn why_renamed(why: &str, from: &str, to: &str) -> String {
    const THEN: &str = "; attached as ";
    match why.rsplit_once(THEN) {
        Some((chosen, first)) if first == to => chosen.to_owned(),
        Some(_) => why.to_owned(),
        None => format!("{why}{THEN}{from}"),
    }
}

/// More than stand beside ours on any host; then they are asked for anew.
const MOST_IDENTITIES: usize = 1_024;

/// What runs on an interface.
#[derive(Clone, Debug)]
pub struct Look {
    pub ingress: ProgramStatus,
    pub egress: ProgramStatus,
    /// Programs of shifter that this agent did not load, beside those two.
    pub beside: Vec<ProgramStatus>,
    /// One of them uses the maps of this installation.
    pub is_ours: bool,
}

/// Which of the programs of one direction counts, and its installation if it
/// is a stranger's.
fn judge(
    direction: &'static str,
    programs: &[(&'static str, u32)],
    own: &Own,
    places: &[Place],
    wants_xdp: bool,
    identify: impl Fn(u32) -> ProgramIdentity,
) -> (ProgramStatus, String) {
    for (at, id) in programs {
        for (place, (own_id, tag)) in Place::ALL.iter().zip(own) {
            if own_id == id && places.contains(place) {
                let status = ProgramStatus {
                    direction,
                    at,
                    id: *id,
                    name: place.program().to_owned(),
                    tag: inspect::show_tag(*tag),
                    state: ProgramState::Ours,
                };
                return (status, String::new());
            }
        }
    }
    for (at, id) in programs {
        let found = identify(*id);
        let in_our_place = found.name.starts_with("shifter_") || (wants_xdp && *at == "xdp");
        if in_our_place {
            let status = ProgramStatus {
                direction,
                at,
                id: *id,
                name: found.shown_name(),
                tag: found.tag,
                state: ProgramState::Other,
            };
            return (status, found.installation);
        }
    }
    let absent = ProgramStatus {
        direction,
        at: "none",
        ..ProgramStatus::default()
    };
    (absent, String::new())
}

/// Programs of shifter beside those that count: two of them on one interface
/// handle each packet twice. What is not shifter's is its owner's business.
fn strangers(
    direction: &'static str,
    programs: &[(&'static str, u32)],
    counted: &[u32],
    identify: impl Fn(u32) -> ProgramIdentity,
) -> Vec<ProgramStatus> {
    let rest = programs.iter().filter(|(_, id)| !counted.contains(id));
    rest.map(|(at, id)| (at, id, identify(*id)))
        .filter(|(_, _, found)| found.name.starts_with("shifter_"))
        .map(|(at, id, found)| ProgramStatus {
            direction,
            at,
            id: *id,
            name: found.name,
            tag: found.tag,
            state: ProgramState::Other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own = [(10, 0xa), (11, 0xb), (12, 0xc)];
    const INGRESS: [Place; 2] = [Place::Xdp, Place::TcIngress];

    fn stranger(id: u32) -> ProgramIdentity {
        let name = if id == 77 {
            "shifter_ingress"
        } else {
            "cilium"
        };
        ProgramIdentity {
            name: name.to_owned(),
            tag: format!("{id:016x}"),
            installation: if id == 77 {
                "beef".to_owned()
            } else {
                String::new()
            },
        }
    }

    fn state(programs: &[(&'static str, u32)], wants_xdp: bool) -> (ProgramState, u32, String) {
        let (seen, tag) = judge("ingress", programs, &OWN, &INGRESS, wants_xdp, stranger);
        (seen.state, seen.id, tag)
    }

    #[test]
    fn our_program_counts_whatever_stands_beside_it() {
        let all = [("xdp", 99), ("tcx", 98), ("tcx", 11), ("clsact", 77)];
        assert_eq!(state(&all, false), (ProgramState::Ours, 11, String::new()));
        assert_eq!(
            state(&[("xdp", 10)], true),
            (ProgramState::Ours, 10, String::new())
        );
    }

    #[test]
    fn another_installation_beside_ours_is_named_and_other_programs_are_not() {
        let all = [("xdp", 99), ("tcx", 98), ("tcx", 11), ("clsact", 77)];
        let beside = strangers("ingress", &all, &[11, 12], stranger);
        let seen: Vec<_> = beside.iter().map(|p| (p.at, p.id, p.state)).collect();
        assert_eq!(seen, [("clsact", 77, ProgramState::Other)]);
        assert_eq!(strangers("ingress", &all, &[11, 77], stranger), []);
    }

    #[test]
    fn another_program_in_our_place_is_named() {
        let stale = (ProgramState::Other, 77, "beef".to_owned());
        assert_eq!(state(&[("tcx", 98), ("tcx", 77)], false), stale);
        let taken = (ProgramState::Other, 99, String::new());
        assert_eq!(state(&[("xdp", 99)], true), taken);
    }

    #[test]
    fn without_ours_the_programs_of_others_leave_the_place_empty() {
        let absent = (ProgramState::Absent, 0, String::new());
        assert_eq!(state(&[], false), absent);
        assert_eq!(state(&[("xdp", 99), ("tcx", 98)], false), absent);
        // The egress program at ingress is not the ingress program.
        assert_eq!(state(&[("tcx", 12)], false).0, ProgramState::Absent);
    }

    #[test]
    fn an_interface_that_has_its_name_again_says_nothing_of_the_other() {
        let away = why_renamed("it was asked for", "eth0", "old0");
        assert_eq!(away, "it was asked for; attached as eth0");
        assert_eq!(why_renamed(&away, "old0", "old1"), away);
        assert_eq!(why_renamed(&away, "old1", "eth0"), "it was asked for");
    }
}
