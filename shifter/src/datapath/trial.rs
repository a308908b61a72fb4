//! Runs a loaded program on a frame that no interface ever saw
//! (BPF_PROG_TEST_RUN, kernel 4.12): for packet tables and for trying a host.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::{DatapathError, attach::Place, kernel::KernelDatapath, load::failed};

/// `BPF_PROG_TEST_RUN` of the kernel's `uapi/linux/bpf.h`.
const PROG_TEST_RUN: libc::c_int = 10;
/// Longest frame that comes back whole.
const ROOM: usize = 4_096;

/// `union bpf_attr` as BPF_PROG_TEST_RUN reads it.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What a test run gave.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// What the program returned for the last packet.
    pub action: i32,
    /// Bytes written to the buffer.
    pub length: usize,
    /// Mean time of a packet, cut to whole ns.
    pub packet_ns: u32,
}

/// Runs a program `repeat` times on a frame; what it left goes to `out`, if that
/// has room.
pub fn test_run(program: BorrowedFd, frame: &[u8], out: &mut [u8], repeat: u32) -> io::Result<Ran> {
    let mut attr = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: if out.is_empty() {
            0
        } else {
            out.as_mut_ptr() as u64
        },
        repeat,
        ..TestRun::default()
    };
    // SAFETY: both buffers are valid for the lengths given, and `attr` is laid
    // out as the kernel reads it; what it does not know must be zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRun>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Ran {
        action: attr.result.cast_signed(),
        length: attr.data_size_out as usize,
        packet_ns: attr.duration,
    })
}

/// One loaded program, ready to be given frames.
pub struct Trial {
    program: OwnedFd,
    place: Place,
    out: Vec<u8>,
}

impl AsFd for Trial {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

impl Trial {
    /// Runs the program on a frame of at least 14 bytes, as if it had come in
    /// by this namespace's loopback interface. Returns the action and the frame
    /// as the program left it; a redirect is answered, not carried out.
    pub fn run(&mut self, frame: &[u8]) -> Result<(i32, &[u8]), DatapathError> {
        let ran = test_run(self.program.as_fd(), frame, &mut self.out, 1);
        let ran = ran.map_err(|error| {
            failed(
                format!(
                    "trying {} on a frame of {} bytes",
                    self.place.program(),
                    frame.len()
                ),
                error,
                "a frame has 14 to 3,500 bytes",
            )
        })?;
        Ok((ran.action, &self.out[..ran.length]))
    }
}

impl KernelDatapath {
    /// The program of a place, to be given frames.
    pub fn trial(&self, place: Place) -> Result<Trial, DatapathError> {
        Ok(Trial {
            program: self.program(place)?,
            place,
            out: vec![0; ROOM],
        })
    }

    /// Runs the program of a place on one frame: see [`Trial::run`].
    pub fn try_frame(&self, place: Place, frame: &[u8]) -> Result<(i32, Vec<u8>), DatapathError> {
        let mut trial = self.trial(place)?;
        let (action, frame) = trial.run(frame)?;
        Ok((action, frame.to_vec()))
    }
}
