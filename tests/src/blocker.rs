//! An XDP program that passes everything: to take an interface's slot, or to
//! make the far end of a veth poll what XDP sends into it.

use std::{
    ffi::CString,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};

use crate::topology::Netns;

const PROG_LOAD: i64 = 5;
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
        let program = bpf(
            PROG_LOAD,
            &ProgLoad {
                prog_type: PROG_TYPE_XDP,
                instruction_count: PASS.len() as u32,
                instructions: PASS.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
                rest: [0; 16],
            },
        )
        .context("load an XDP program")?;
        use std::os::fd::AsRawFd;
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

fn bpf<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are valid for their size, and so is what they point to.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
