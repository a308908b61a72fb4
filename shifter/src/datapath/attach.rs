//! Programs on interfaces: attached in order, pinned, replaced in place.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
        xdp::XdpLink,
    },
};

use super::{
    DatapathError, clsact,
    load::{Pins, failed},
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

/// Priority of our filters in clsact. The kernel gives the handle: another
/// program may be there with one already.
const CLSACT_PRIORITY: u16 = 1;

/// Which of the three programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Place {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "ingress",
            Self::TcEgress => "egress",
        }
    }
    /// Its direction at tc.
    const fn tc(self) -> TcAttachType {
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
pub fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    const REMEDY: &str = "the kernel refused the program: run a kernel that docs/toolchain.md names, and report its verifier log";
    for place in [Place::Xdp, Place::TcIngress, Place::TcEgress] {
        let loaded = match ebpf.program_mut(place.program()) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            _ => {
                return Err(DatapathError::Refused(format!(
                    "the eBPF object has no program {}: build it with this version's shifter-ebpf",
                    place.program()
                )));
            }
        };
        loaded.map_err(|error| failed(format!("loading {}", place.program()), error, REMEDY))?;
    }
    Ok(())
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

    fn pin_path(&self, ifindex: u32, place: Place) -> PathBuf {
        self.pins
            .links()
            .join(format!("{ifindex}-{}", place.suffix()))
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
                take_filter_off(name, Place::TcIngress);
                Ok(())
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
                    program
                        .attach_to_link(link)
                        .map_err(|error| error.to_string())
                });
            if replaced.is_ok() {
                return Ok(());
            }
            unpin(&path)?;
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
                take_filter_off(name, place);
                Ok(())
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
                    program
                        .attach_to_link(link)
                        .map_err(|error| error.to_string())
                });
            if replaced.is_ok() {
                return Ok(());
            }
            unpin(&path)?;
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
        let there = clsact::find(ifindex, place.tc(), place.program())
            .map_err(|error| fail(error.into()))?;
        let program = self.classifier(place)?;
        let attached = match there {
            Some(clsact::Filter { priority, handle }) => {
                SchedClassifierLink::attached(name, place.tc(), priority, handle, None)
                    .map_err(|error| fail(error.into()))
                    .and_then(|link| {
                        program
                            .attach_to_link(link)
                            .map_err(|error| fail(error.into()))
                    })
            }
            None => {
                let options = NlOptions {
                    priority: CLSACT_PRIORITY,
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
    pub fn take_off(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        take_filter_off(name, Place::TcIngress);
        self.forget(ifindex)?;
        take_filter_off(name, Place::TcEgress);
        Ok(())
    }

    /// Forgets links of an interface that is gone.
    pub fn forget(&self, ifindex: u32) -> Result<(), DatapathError> {
        for place in [Place::Xdp, Place::TcIngress, Place::TcEgress] {
            let path = self.pin_path(ifindex, place);
            if path.exists() {
                unpin(&path)?;
            }
        }
        Ok(())
    }
}

fn pinned(path: &std::path::Path) -> Option<FdLink> {
    if !path.exists() {
        return None;
    }
    PinnedLink::from_pin(path).ok().map(FdLink::from)
}

fn pin(link: FdLink, path: &std::path::Path) -> Result<(), DatapathError> {
    link.pin(path).map(drop).map_err(|error| {
        failed(
            format!("pinning a link at {}", path.display()),
            error,
            "bpffs must be writable",
        )
    })
}

fn unpin(path: &std::path::Path) -> Result<(), DatapathError> {
    fs::remove_file(path)
        .map_err(|error| failed(format!("removing the pin {}", path.display()), error, ""))
}

/// An interface that pinned links name.
pub struct PinnedInterface {
    pub ifindex: u32,
    pub ingress: Option<Ingress>,
    pub egress: bool,
}

/// What is pinned, by interface.
pub fn pinned_interfaces(pins: &Pins) -> Vec<PinnedInterface> {
    let mut interfaces: Vec<PinnedInterface> = Vec::new();
    let Ok(entries) = fs::read_dir(pins.links()) else {
        return interfaces;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((index, suffix)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        let Ok(ifindex) = index.parse() else { continue };
        let position = match interfaces.iter().position(|i| i.ifindex == ifindex) {
            Some(position) => position,
            None => {
                interfaces.push(PinnedInterface {
                    ifindex,
                    ingress: None,
                    egress: false,
                });
                interfaces.len() - 1
            }
        };
        let interface = &mut interfaces[position];
        match suffix {
            "xdp" => interface.ingress = Some(Ingress::Xdp),
            "ingress" => interface.ingress = Some(Ingress::Tc),
            "egress" => interface.egress = true,
            _ => {}
        }
    }
    interfaces
}

/// The ingress program that is on an interface: by a pinned link, or by our
/// filter in clsact.
pub fn ingress_in_force(pins: &Pins, ifindex: u32) -> io::Result<Option<Ingress>> {
    let pinned = pinned_interfaces(pins)
        .into_iter()
        .find(|pinned| pinned.ifindex == ifindex)
        .and_then(|pinned| pinned.ingress);
    if pinned.is_some() {
        return Ok(pinned);
    }
    let place = Place::TcIngress;
    let filter = clsact::find(ifindex, place.tc(), place.program())?;
    Ok(filter.map(|_| Ingress::Tc))
}

/// Takes programs off: ingress first, then egress, each from all of the
/// interfaces `names`. `only`: links of one interface.
pub fn detach(pins: &Pins, names: &[String], only: Option<u32>) -> Result<usize, DatapathError> {
    let mut removed = 0;
    for place in [Place::Xdp, Place::TcIngress, Place::TcEgress] {
        for interface in pinned_interfaces(pins) {
            if only.is_some_and(|ifindex| ifindex != interface.ifindex) {
                continue;
            }
            let path = pins
                .links()
                .join(format!("{}-{}", interface.ifindex, place.suffix()));
            if path.exists() {
                unpin(&path)?;
                removed += 1;
            }
        }
        if place != Place::Xdp {
            let filters = names.iter().filter(|name| take_filter_off(name, place));
            removed += filters.count();
        }
    }
    Ok(removed)
}

/// Takes our filter out of clsact of an interface; false where there is none.
fn take_filter_off(name: &str, place: Place) -> bool {
    tc::qdisc_detach_program(name, place.tc(), place.program()).is_ok()
}

/// Whether the kernel has tcx (6.6).
pub fn has_tcx() -> bool {
    aya::util::KernelVersion::current()
        .is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0))
}
