//! The packet path without a network: programs loaded in a namespace and a
//! bpffs of their own, given frames by BPF_PROG_TEST_RUN.

use std::{
    ffi::CString,
    fs,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use shifter::{
    datapath::{
        BackendId, BackendImage, Datapath as _, NextHopImage, Placement, ServiceId, ServiceImage,
        attach::{Egress, Place, has_tcx},
        kernel::{KernelDatapath, Setup},
        memory::MappedArray,
        trial::Trial,
    },
    model::{Affinity, PoolName, Protocol, Seed, SplitMethod, Vip},
};

use crate::{command::run, topology::PREFIX};

/// What the kernel does with a frame after a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Pass,
    Drop,
    /// Out of an interface.
    Redirect,
}

/// What became of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub action: Action,
    /// Name of the one verdict that was counted.
    pub verdict: &'static str,
    pub frame: Vec<u8>,
}

/// Loaded programs over maps of their own.
pub struct Scene {
    pub datapath: KernelDatapath,
    trials: [Trial; 3],
    bpffs: PathBuf,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Runs `test` in a thread with a network and a mount namespace of its own,
/// which end with it. `timeouts_s` as in `shifter_common::abi::config`.
pub fn in_scene(
    flow_capacity: u32,
    timeouts_s: [u32; 8],
    test: impl FnOnce(&mut Scene) + Send + 'static,
) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory =
        std::env::temp_dir().join(format!("{PREFIX}{}-bpf{number}", std::process::id()));
    let bpffs = directory.clone();
    let body = move || {
        isolate(&bpffs);
        let setup = Setup {
            bpffs: bpffs.clone(),
            flow_capacity,
            timeouts_s,
            egress: if has_tcx() {
                Egress::Tcx
            } else {
                Egress::Clsact
            },
        };
        let datapath = KernelDatapath::open(&setup).unwrap_or_else(|error| panic!("{error}"));
        // No hook is attached here: frames may leave by any interface of a scene.
        datapath.allow_xdp_into(SCENE_INTERFACES);
        let trials = [Place::Xdp, Place::TcIngress, Place::TcEgress]
            .map(|place| datapath.trial(place).unwrap());
        test(&mut Scene {
            datapath,
            trials,
            bpffs,
        });
    };
    let ended = thread::Builder::new().spawn(body).unwrap().join();
    // Empty outside of the thread's mount namespace.
    let _ = fs::remove_dir(&directory);
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Indices that scenes give to the interfaces of their next hops.
const SCENE_INTERFACES: std::ops::RangeInclusive<u32> = 77..=88;

/// A network namespace with loopback up, and a bpffs that nobody else sees.
fn isolate(bpffs: &Path) {
    fs::create_dir_all(bpffs).unwrap();
    // SAFETY: unshare concerns this thread only.
    let failed = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(failed, 0, "unshare: {}", std::io::Error::last_os_error());
    for args in [
        &["mount", "--make-rprivate", "/"][..],
        &["ip", "link", "set", "lo", "up"],
    ] {
        run(Command::new(args[0]).args(&args[1..])).unwrap();
    }
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(bpffs)).unwrap();
}

impl Scene {
    /// Runs the program of a place on a frame.
    pub fn run(&mut self, place: Place, frame: &[u8]) -> (Action, &[u8]) {
        let trial = &mut self.trials[place as usize];
        let (action, frame) = trial.run(frame).unwrap_or_else(|error| panic!("{error}"));
        (action_of(place, action), frame)
    }

    /// The program of a place.
    pub fn program(&self, place: Place) -> BorrowedFd<'_> {
        self.trials[place as usize].as_fd()
    }

    /// As [`Scene::run`], with the verdict that was counted, of which there
    /// must be exactly one.
    pub fn judge(&mut self, place: Place, frame: &[u8]) -> Outcome {
        let before = self.datapath.verdicts().unwrap();
        let (action, frame) = self.run(place, frame);
        let frame = frame.to_vec();
        let after = self.datapath.verdicts().unwrap();
        let mut moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before.packets != after.packets);
        let (_, counted) = moved.next().expect("a verdict was counted");
        assert_eq!(counted.hook, hook_name(place), "counted on another hook");
        assert!(moved.next().is_none(), "two verdicts for one packet");
        Outcome {
            action,
            verdict: counted.reason,
            frame,
        }
    }

    /// The memory of a pinned map.
    pub fn map<T: Copy>(&self, name: &str, elements: u32) -> MappedArray<T> {
        let path = self.bpffs.join("shifter/maps").join(name);
        MappedArray::new(open_pin(&path), elements).unwrap()
    }

    /// A backend, ready.
    pub fn backend(&self, id: BackendId, addr: SocketAddr, protocol: Protocol, place: Placement) {
        let image = BackendImage {
            addr,
            protocol,
            placement: place,
            maint: false,
            down: false,
        };
        self.datapath.put_backend(id, &image).unwrap();
    }

    /// A service whose rings hold each backend once.
    pub fn service(&self, image: &ServiceImage, blue: &[BackendId], green: &[BackendId]) {
        let rings = [blue.to_vec(), green.to_vec()];
        self.datapath.publish(image, Some(&rings)).unwrap();
    }

    /// Makes an interface `out` and routes to 10.9/16 and 2001:db8:9::/48 by
    /// way of one neighbour there. Returns that next hop.
    pub fn route_to_clients(&self, ifindex: u32, mtu: u32) -> NextHopImage {
        self.ip(&format!(
            "link add out index {ifindex} address 02:00:00:00:01:01 type veth peer name far"
        ));
        for line in [
            "link set out up",
            "link set far up",
            "addr add 10.7.0.1/24 dev out",
            "addr add 2001:db8:7::1/64 dev out nodad",
            "neigh add 10.7.0.2 lladdr 02:00:00:00:01:09 dev out nud permanent",
            "neigh add 2001:db8:7::2 lladdr 02:00:00:00:01:09 dev out nud permanent",
            "route add 10.9.0.0/16 via 10.7.0.2",
            "route add 2001:db8:9::/48 via 2001:db8:7::2",
        ] {
            self.ip(line);
        }
        for key in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            let path = format!("/proc/sys/net/{key}");
            fs::write(&path, "1").unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        neighbour(ifindex, 9, mtu)
    }

    /// Runs `ip` in this namespace.
    pub fn ip(&self, args: &str) {
        run(Command::new("ip").args(args.split_whitespace())).unwrap();
    }
}

/// A service with nothing special about it, all new flows to blue.
pub fn image(
    id: ServiceId,
    addr: SocketAddr,
    protocol: Protocol,
    vip_backend: BackendId,
) -> ServiceImage {
    ServiceImage {
        id,
        vip: Vip { addr, protocol },
        vip_backend,
        generation: 1,
        threshold: 0,
        dead_man: None,
        breaker: None,
        live: PoolName::Blue,
        live_has_vip: false,
        split: SplitMethod::Hash,
        affinity: Affinity::Flow,
        seed: Seed([1, u64::from(id)]),
        desired_hash: 0,
        settle_until_ns: 0,
        local_backends: Default::default(),
        cohort_set: 0,
        cohorts_on: false,
    }
}

/// A neighbour on an interface.
pub fn neighbour(ifindex: u32, last: u8, mtu: u32) -> NextHopImage {
    NextHopImage {
        ifindex,
        mtu,
        source: [2, 0, 0, 0, 1, 1],
        destination: [2, 0, 0, 0, 1, last],
    }
}

fn action_of(place: Place, action: i32) -> Action {
    match (place, action) {
        (Place::Xdp, 2) | (Place::TcIngress | Place::TcEgress, -1) => Action::Pass,
        (Place::Xdp, 1) | (Place::TcIngress | Place::TcEgress, 2) => Action::Drop,
        // XDP_TX, XDP_REDIRECT; TC_ACT_REDIRECT.
        (Place::Xdp, 3 | 4) | (Place::TcIngress | Place::TcEgress, 7) => Action::Redirect,
        _ => panic!("{place:?} answered {action}"),
    }
}

/// Hook label of verdict counters.
pub fn hook_name(place: Place) -> &'static str {
    match place {
        Place::Xdp => "xdp",
        Place::TcIngress => "tc",
        Place::TcEgress => "egress",
    }
}

/// What is pinned at a path.
///
/// # Panics
///
/// When nothing is.
pub fn open_pin(path: &Path) -> OwnedFd {
    const OBJ_GET: libc::c_int = 7;
    #[repr(C)]
    struct ObjGet {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let text = CString::new(path.to_str().unwrap()).unwrap();
    let mut attr = ObjGet {
        path: text.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: a C string, and `attr` as the kernel reads it.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw mut attr, size_of::<ObjGet>()) } as i32;
    assert!(
        fd >= 0,
        "{}: {}",
        path.display(),
        std::io::Error::last_os_error()
    );
    // SAFETY: the kernel has just given it to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
