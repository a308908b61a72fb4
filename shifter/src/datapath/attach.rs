//! Programs on interfaces: attached in order, pinned, replaced in place.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
        xdp::XdpLink,
    },
};

use super::{
    DatapathError, clsact,
    inspect::{ProgramIdentity, pinned_tag, show_tag, stranger},
    load::{Pins, failed},
    noted,
    pinned::{self, pin, pinned, take_filter_off, unpin},
};

/// Ingress hook of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    Xdp,
    Tc,
}

/// How the un-NAT at egress is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Egress {
    /// tcx, kernel 6.6.
    Tcx,
    /// A filter of the clsact qdisc, which stays when the agent goes.
    Clsact,
}

/// Which of the three programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Place {
    /// In the order in which they are taken off: ingress first.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    /// Name of the pin of its link on an interface.
    pub(super) fn pin_name(self, ifindex: u32) -> String {
        format!("{ifindex}-{}", self.suffix())
    }
    const fn suffix(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "ingress",
            Self::TcEgress => "egress",
        }
    }
    /// Its direction at tc.
    pub(super) const fn tc(self) -> TcAttachType {
        match self {
            Self::TcEgress => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }
    /// Its name in the eBPF object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "shifter_xdp",
            Self::TcIngress => "shifter_ingress",
            Self::TcEgress => "shifter_egress",
        }
    }
}

/// Has the kernel verify all three programs. The object's maps must still be open.
///
/// Verification is most of a start. The kernel verifies programs of a privileged
/// caller side by side, so each gets a thread.
pub fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    if let Some(place) = Place::ALL
        .into_iter()
        .find(|place| ebpf.program(place.program()).is_none())
    {
        return Err(DatapathError::Refused(format!(
            "the eBPF object has no program {}: build it with this version's shifter-ebpf",
            place.program()
        )));
    }
    let ours = |name: &str| Place::ALL.iter().any(|place| place.program() == name);
    std::thread::scope(|scope| {
        let threads: Vec<_> = ebpf
            .programs_mut()
            .filter(|(name, _)| ours(name))
            .map(|(name, program)| scope.spawn(move || load_program(name, program)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(loaded) => loaded,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // All of them are waited for before the first error is told.
        let loaded: Vec<_> = threads.into_iter().map(join).collect();
        loaded.into_iter().collect()
    })
}

fn load_program(name: &str, program: &mut Program) -> Result<(), DatapathError> {
    const REMEDY: &str = "the kernel refused the program: run a kernel that docs/toolchain.md names, and report its verifier log";
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => {
            return Err(DatapathError::Refused(format!(
                "{name} in the eBPF object is a program of another kind: build it with this version's shifter-ebpf"
            )));
        }
    };
    loaded.map_err(|error| failed(format!("loading {name}"), error, REMEDY))
}

/// The loaded programs and where their links are pinned.
pub struct Attacher {
    ebpf: Ebpf,
    pins: Pins,
    egress: Egress,
}

impl Attacher {
    /// Over programs that [`load_programs`] has loaded.
    pub fn new(ebpf: Ebpf, pins: Pins, egress: Egress) -> Self {
        Self { ebpf, pins, egress }
    }
    /// A descriptor of a loaded program.
    pub fn program_fd(&self, place: Place) -> Result<OwnedFd, DatapathError> {
        let fd = match self.ebpf.program(place.program()) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            _ => {
                return Err(DatapathError::Refused(
                    "a program is gone from the object".into(),
                ));
            }
        };
        let what = || format!("opening {}", place.program());
        let fd = fd.map_err(|error| failed(what(), error, ""))?;
        fd.as_fd()
            .try_clone_to_owned()
            .map_err(|error| failed(what(), error, ""))
    }

    /// Where maps and links are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    fn pin_path(&self, ifindex: u32, place: Place) -> PathBuf {
        self.pins.links().join(place.pin_name(ifindex))
    }

    /// How egress is attached here.
    pub fn egress(&self) -> Egress {
        self.egress
    }

    /// Attaches or replaces the un-NAT at egress.
    pub fn attach_egress(&mut self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        self.attach_tc(name, ifindex, Place::TcEgress)
    }

    /// Attaches or replaces the ingress program; a hook of the other kind that
    /// was there goes after the new one is in force.
    pub fn attach_ingress(
        &mut self,
        name: &str,
        ifindex: u32,
        hook: Ingress,
    ) -> Result<(), DatapathError> {
        match hook {
            Ingress::Xdp => {
                self.attach_xdp(name, ifindex)?;
                let pin = self.pin_path(ifindex, Place::TcIngress);
                if pin.exists() {
                    unpin(&pin)?;
                }
                take_filter_off(&self.pins, ifindex, Place::TcIngress).map(drop)
            }
            Ingress::Tc => {
                self.attach_tc(name, ifindex, Place::TcIngress)?;
                let pin = self.pin_path(ifindex, Place::Xdp);
                if pin.exists() { unpin(&pin) } else { Ok(()) }
            }
        }
    }

    fn xdp(&mut self) -> Result<&mut Xdp, DatapathError> {
        match self.ebpf.program_mut(Place::Xdp.program()) {
            Some(Program::Xdp(program)) => Ok(program),
            _ => Err(DatapathError::Refused(
                "the XDP program is gone from the object".into(),
            )),
        }
    }

    fn classifier(&mut self, place: Place) -> Result<&mut SchedClassifier, DatapathError> {
        match self.ebpf.program_mut(place.program()) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(DatapathError::Refused(
                "a tc program is gone from the object".into(),
            )),
        }
    }

    fn attach_xdp(&mut self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.pin_path(ifindex, Place::Xdp);
        if let Some(link) = pinned(&path) {
            let program = self.xdp()?;
            let replaced = XdpLink::try_from(link)
                .map_err(|error| error.to_string())
                .and_then(|link| {
                    let id = program.attach_to_link(link);
                    // The pin keeps the link, not this process.
                    id.and_then(|id| program.take_link(id))
                        .map_err(|error| error.to_string())
                });
            if is_replaced(replaced.map(drop), name, &path)? {
                return Ok(());
            }
        }
        let remedy = format!(
            "set hook = \"tc\" (or \"auto\") for {name}, or free its XDP slot: `ip link show {name}` names what is attached"
        );
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            failed(format!("attaching XDP to {name}"), error, &remedy)
        };
        let program = self.xdp()?;
        let id = program
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .map_err(|error| fail(error.into()))?;
        let link = program.take_link(id).map_err(|error| fail(error.into()))?;
        pin(
            FdLink::try_from(link).map_err(|error| fail(error.into()))?,
            &path,
        )
    }

    /// What the other way of tc has there goes after the new one is in force.
    fn attach_tc(&mut self, name: &str, ifindex: u32, place: Place) -> Result<(), DatapathError> {
        match self.egress {
            Egress::Clsact => {
                self.attach_clsact(name, ifindex, place)?;
                let pin = self.pin_path(ifindex, place);
                if pin.exists() { unpin(&pin) } else { Ok(()) }
            }
            Egress::Tcx => {
                self.attach_tcx(name, ifindex, place)?;
                take_filter_off(&self.pins, ifindex, place).map(drop)
            }
        }
    }

    fn attach_tcx(&mut self, name: &str, ifindex: u32, place: Place) -> Result<(), DatapathError> {
        let path = self.pin_path(ifindex, place);
        if let Some(link) = pinned(&path) {
            let program = self.classifier(place)?;
            let replaced = SchedClassifierLink::try_from(link)
                .map_err(|error| error.to_string())
                .and_then(|link| {
                    let id = program.attach_to_link(link);
                    // The pin keeps the link, not this process.
                    id.and_then(|id| program.take_link(id))
                        .map_err(|error| error.to_string())
                });
            if is_replaced(replaced.map(drop), name, &path)? {
                return Ok(());
            }
        }
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            failed(
                format!("attaching {} to {name}", place.program()),
                error,
                "tcx needs kernel 6.6; set hook_egress = \"clsact\" on an older one",
            )
        };
        let program = self.classifier(place)?;
        // Other programs see what the host sees: backends, in both directions.
        let order = match place {
            Place::TcEgress => LinkOrder::last(),
            _ => LinkOrder::first(),
        };
        let id = program
            .attach_with_options(name, place.tc(), TcAttachOptions::TcxOrder(order))
            .map_err(|error| fail(error.into()))?;
        let link = program.take_link(id).map_err(|error| fail(error.into()))?;
        pin(
            FdLink::try_from(link).map_err(|error| fail(error.into()))?,
            &path,
        )
    }

    /// Replaces our filter in place, or adds one; those of others stay.
    fn attach_clsact(
        &mut self,
        name: &str,
        ifindex: u32,
        place: Place,
    ) -> Result<(), DatapathError> {
        const REMEDY: &str = "the kernel needs the modules sch_ingress and cls_bpf; `tc filter show` tells what else is there";
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            let what = format!("attaching {} to clsact of {name}", place.program());
            failed(what, error, REMEDY)
        };
        match tc::qdisc_add_clsact(name) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            // Said by some kernels for one that is there; the filter's error says what is wrong.
            Err(error) => tracing::debug!(%error, interface = name, "adding clsact failed"),
        }
        let filters = clsact::list(ifindex, place.tc()).map_err(|error| fail(error.into()))?;
        let there = filters.iter().find(|filter| filter.name == place.program());
        if let Some(filter) = there {
            refuse_stranger(&self.pins, filter, name)?;
        }
        let program = self.classifier(place)?;
        let attached = match there {
            Some(filter) => SchedClassifierLink::attached(
                name,
                place.tc(),
                filter.priority,
                filter.handle,
                None,
            )
            .map_err(|error| fail(error.into()))
            .and_then(|link| {
                program
                    .attach_to_link(link)
                    .map_err(|error| fail(error.into()))
            }),
            None => {
                // The kernel gives the handle: another program may be there with one already.
                let options = NlOptions {
                    priority: clsact::free_priority(&filters),
                    handle: TcHandle::AUTO_ASSIGN,
                    classid: None,
                };
                program
                    .attach_with_options(name, place.tc(), TcAttachOptions::Netlink(options))
                    .map_err(|error| fail(error.into()))
            }
        };
        // Forgotten, not dropped: the filter outlives the agent.
        std::mem::forget(
            program
                .take_link(attached?)
                .map_err(|error| fail(error.into()))?,
        );
        Ok(())
    }

    /// Takes everything off an interface, ingress first.
    pub fn take_off(&self, ifindex: u32) -> Result<(), DatapathError> {
        pinned::detach(&self.pins, &[ifindex]).map(drop)
    }

    /// Ids and kernel tags of the loaded programs, in the order of [`Place::ALL`].
    pub fn programs(&self) -> Result<[(u32, u64); 3], DatapathError> {
        let mut found = [(0, 0); 3];
        for (place, known) in Place::ALL.into_iter().zip(&mut found) {
            let info = match self.ebpf.program(place.program()) {
                Some(Program::Xdp(program)) => program.info(),
                Some(Program::SchedClassifier(program)) => program.info(),
                _ => continue,
            };
            let info =
                info.map_err(|error| failed(format!("asking for {}", place.program()), error, ""))?;
            *known = (info.id(), info.tag());
        }
        Ok(found)
    }

    /// Tells who the loaded programs are where the kernel names none by its id
    /// (it does so to CAP_SYS_ADMIN only), so that they are never taken for a stranger's.
    pub fn know_own(&self) -> Result<(), DatapathError> {
        let installation = pinned_tag(&self.pins).unwrap_or_default();
        for (place, (id, tag)) in Place::ALL.into_iter().zip(self.programs()?) {
            let identity = ProgramIdentity {
                // The kernel keeps 15 characters.
                name: place.program().chars().take(15).collect(),
                tag: show_tag(tag),
                installation: installation.clone(),
            };
            noted::know(id, identity);
        }
        Ok(())
    }

    /// Forgets links of an interface that is gone.
    pub fn forget(&self, ifindex: u32) -> Result<(), DatapathError> {
        for place in Place::ALL {
            let path = self.pin_path(ifindex, place);
            if path.exists() {
                unpin(&path)?;
            }
        }
        Ok(())
    }
}

/// A filter with the name of ours may be another installation's, whose agent
/// does not run and whose flows still need it.
fn refuse_stranger(
    pins: &Pins,
    filter: &clsact::Filter,
    interface: &str,
) -> Result<(), DatapathError> {
    let Some(tag) = stranger(filter.program, pinned_tag(pins).as_deref()) else {
        return Ok(());
    };
    Err(DatapathError::Refused(format!(
        "{interface} has {} of another shifter installation (tag {tag}, program {}) in clsact: take it off with `shifter detach --bpffs` and the bpffs that it pins in, or, if that is gone, with `tc qdisc del dev {interface} clsact`",
        filter.name, filter.program
    )))
}

/// Whether the kernel has tcx (6.6).
pub fn has_tcx() -> bool {
    aya::util::KernelVersion::current()
        .is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0))
}

/// Whether a pinned link runs the new program. One that is of no use loses its pin.
fn is_replaced(
    replaced: Result<(), String>,
    name: &str,
    path: &Path,
) -> Result<bool, DatapathError> {
    let Err(error) = replaced else {
        return Ok(true);
    };
    tracing::debug!(error, interface = name, "a pinned link is of no use");
    unpin(path)?;
    Ok(false)
}
