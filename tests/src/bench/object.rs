//! The eBPF object of the bench: built when it is asked for, loaded anew for
//! every round.

use std::{
    env, fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, TcAttachType, XdpMode},
};
use shifter::datapath::memory::MappedArray;

/// Names a ready object.
pub const OBJECT: &str = "SHIFTER_BENCH_OBJECT";

/// The object: that of [`OBJECT`], or what `cargo xtask bench --object` builds.
pub fn path() -> Result<PathBuf> {
    if let Some(path) = env::var_os(OBJECT) {
        return Ok(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("cargo")
        .args(["xtask", "bench", "--object"])
        .current_dir(workspace)
        .output()
        .context("running `cargo xtask bench --object`")?;
    if !output.status.success() {
        bail!(
            "`cargo xtask bench --object` failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8(output.stdout)?;
    let path = text.lines().last().unwrap_or_default();
    Ok(path.into())
}

/// The object's programs, loaded, with maps of their own.
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads these programs; `sizes` are numbers of elements of maps.
    pub fn load(path: &Path, programs: &[String], sizes: &[(&str, u32)]) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| {
            format!(
                "reading {}: `cargo xtask bench --object` builds it",
                path.display()
            )
        })?;
        let mut loader = EbpfLoader::new();
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        let mut ebpf = loader
            .load(&bytes)
            .context("loading the object of the bench")?;
        for name in programs {
            match ebpf.program_mut(name) {
                Some(Program::Xdp(program)) => program.load(),
                Some(Program::SchedClassifier(program)) => program.load(),
                _ => bail!("the object of the bench has no program {name}"),
            }
            .with_context(|| format!("loading {name}"))?;
        }
        Ok(Self { ebpf })
    }

    /// A loaded program.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let fd = match self.ebpf.program(name) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            _ => bail!("the object of the bench has no program {name}"),
        };
        Ok(fd?.as_fd())
    }

    /// Attaches an XDP program to an interface of this namespace, in the generic way.
    pub fn attach_generic(&mut self, name: &str, interface: &str) -> Result<()> {
        self.attach_xdp(name, interface, XdpMode::Skb)
    }

    /// Attaches an XDP program to an interface of this namespace, in its driver.
    pub fn attach_native(&mut self, name: &str, interface: &str) -> Result<()> {
        self.attach_xdp(name, interface, XdpMode::Driver)
    }

    fn attach_xdp(&mut self, name: &str, interface: &str, mode: XdpMode) -> Result<()> {
        match self.ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => {
                program
                    .attach(interface, mode)
                    .with_context(|| format!("attaching {name} to {interface}"))?;
                Ok(())
            }
            _ => bail!("the object of the bench has no XDP program {name}"),
        }
    }

    /// Attaches a tc program to the ingress of an interface of this namespace.
    pub fn attach_tc(&mut self, name: &str, interface: &str) -> Result<()> {
        match self.ebpf.program_mut(name) {
            Some(Program::SchedClassifier(program)) => {
                program
                    .attach(interface, TcAttachType::Ingress)
                    .with_context(|| format!("attaching {name} to {interface}"))?;
                Ok(())
            }
            _ => bail!("the object of the bench has no tc program {name}"),
        }
    }

    /// Descriptor of a map.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let data: &MapData = match self.ebpf.map(name) {
            Some(
                Map::Array(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::ProgramArray(data),
            ) => data,
            _ => return Err(anyhow!("the object of the bench has no map {name}")),
        };
        Ok(data.fd().as_fd())
    }

    /// A map as memory.
    pub fn mapped<T: Copy>(&self, name: &str, elements: u32) -> Result<MappedArray<T>> {
        MappedArray::new(self.map(name)?, elements).with_context(|| format!("mapping {name}"))
    }

    /// Writes an element of a hash map or program array. Key and value must be
    /// of the map's sizes.
    pub fn put<K: Copy, V: Copy>(&self, name: &str, key: K, value: V) -> Result<()> {
        const MAP_UPDATE_ELEM: libc::c_int = 2;
        element(MAP_UPDATE_ELEM, self.map(name)?, &key, Some(&value))
            .with_context(|| format!("writing to {name}"))
    }

    /// Makes a program the one under test.
    pub fn set_subject(&self, array: &str, program: BorrowedFd) -> Result<()> {
        self.put(array, 0u32, program.as_raw_fd())
    }
}

/// Removes a key; false where it was not there.
pub fn delete<K: Copy>(map: BorrowedFd, key: &K) -> bool {
    const MAP_DELETE_ELEM: libc::c_int = 3;
    element::<K, u32>(MAP_DELETE_ELEM, map, key, None).is_ok()
}

fn element<K, V>(
    command: libc::c_int,
    map: BorrowedFd,
    key: &K,
    value: Option<&V>,
) -> std::io::Result<()> {
    #[repr(C)]
    struct Element {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
        flags: 0,
    };
    // SAFETY: `attr` is laid out as the kernel reads it, key and value outlive the call.
    let failed =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Element>()) };
    if failed == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
