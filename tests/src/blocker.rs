//! An XDP program that passes everything: to take an interface's slot, or to
//! make the far end of a veth poll what XDP sends into it.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result, bail};

use crate::topology::Netns;

const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const LINK_CREATE: i64 = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;

/// `return XDP_PASS`.
static PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD, rest zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 16],
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 16],
}

/// And for BPF_OBJ_PIN.
#[repr(C)]
struct ObjPin {
    path: u64,
    fd: u32,
    rest: [u32; 3],
}

/// A program on an interface; removed when dropped.
#[derive(Debug)]
pub struct Blocker {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Blocker {
    /// Attaches a program that passes everything.
    pub fn attach(ns: &Netns, interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: `name` is a C string that outlives the call.
        let index = ns.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
        if index == 0 {
            bail!("no interface {interface} in {}", ns.name());
        }
        let program = load()?;
        let attributes = LinkCreate {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            interface: index,
            attach_type: ATTACH_XDP,
            flags: 0,
            rest: [0; 16],
        };
        let link = ns
            .run(|| bpf(LINK_CREATE, &attributes))
            .with_context(|| format!("attach an XDP program to {interface}"))?;
        Ok(Self {
            _program: program,
            _link: link,
        })
    }
}

/// Pins a program that passes everything, for `ip link set dev X xdp pinned PATH`.
pub fn pin_program(path: &Path) -> Result<()> {
    let program = load()?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjPin {
        path: name.as_ptr() as u64,
        fd: program.as_raw_fd().cast_unsigned(),
        rest: [0; 3],
    };
    call(OBJ_PIN, &attributes).with_context(|| format!("pin a program at {}", path.display()))?;
    Ok(())
}

fn load() -> Result<OwnedFd> {
    let attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        instruction_count: PASS.len() as u32,
        instructions: PASS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 16],
    };
    bpf(PROG_LOAD, &attributes).context("load an XDP program")
}

/// A command that makes a descriptor.
fn bpf<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: i64, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are valid for their size, and so is what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
