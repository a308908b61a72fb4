//! Repeated test runs of the driver, and what a packet cost in them.

use std::{io, os::fd::BorrowedFd};

use shifter::datapath::trial::test_run;

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
    let start = thread_ns();
    let ran = test_run(program, frame, &mut [], packets);
    let thread_ns = thread_ns() - start;
    let ran = ran?;
    Ok(Took {
        thread_ns,
        packet_ns: ran.packet_ns,
        action: ran.action,
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
