//! Repeated test runs of the driver, and what a packet cost in them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `BPF_PROG_TEST_RUN` of the kernel's `uapi/linux/bpf.h`.
const PROG_TEST_RUN: libc::c_int = 10;

/// `union bpf_attr` as BPF_PROG_TEST_RUN reads it, up to what is used here.
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
    context: [u64; 3],
    rest: [u32; 4],
}

/// Time of a run.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// CPU time of this thread, the system call included.
    pub thread_ns: u64,
    /// What the kernel took for a packet, cut to whole ns.
    pub packet_ns: u32,
    /// What the last packet's program returned.
    pub action: i32,
}

/// Runs a program on `packets` packets. Being preempted costs caches, not time.
pub fn run(program: BorrowedFd, frame: &[u8], packets: u32) -> io::Result<Took> {
    let mut attr = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: packets,
        ..TestRun::default()
    };
    let start = thread_ns();
    // SAFETY: the frame is valid for its length, and `attr` is laid out as the
    // kernel reads it; what it does not know is zero.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRun>(),
        )
    };
    let thread_ns = thread_ns() - start;
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Took {
        thread_ns,
        packet_ns: attr.duration,
        action: attr.result.cast_signed(),
    })
}

/// CPU time of this thread.
pub fn thread_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes, and the clock exists since Linux 2.6.12.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "clock_gettime of a known clock cannot fail");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Keeps this thread on the last CPU that it may use: caches and per-CPU
/// values stay the same from run to run.
pub fn stay_on_one_cpu() -> io::Result<()> {
    // SAFETY: an all-zero set is valid; both calls read and write this one only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, &mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        let last = (0..libc::CPU_SETSIZE as usize)
            .rev()
            .find(|cpu| libc::CPU_ISSET(*cpu, &set));
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(last.unwrap_or(0), &mut set);
        if libc::sched_setaffinity(0, size, &set) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
