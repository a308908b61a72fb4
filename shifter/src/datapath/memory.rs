//! A map's values as memory of this process: reads and single-word stores
//! without a system call.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd as _},
    ptr::NonNull,
};

/// All elements of an mmapable array map of `T`.
///
/// Packets and other processes read and write at the same time: every access
/// is volatile, and only aligned words up to 64 bits are whole.
pub struct MappedArray<T> {
    base: NonNull<u8>,
    elements: u32,
    stride: usize,
    bytes: usize,
    _values: PhantomData<T>,
}

// SAFETY: the mapping is shared memory; all access is volatile and tearing is
// the business of callers, which publish by single words.
unsafe impl<T: Copy + Send> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Send> Sync for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps `elements` values of the array behind `map`.
    pub fn new(map: impl AsFd, elements: u32) -> io::Result<Self> {
        let stride = size_of::<T>().next_multiple_of(8);
        let page = 4_096;
        let bytes = (stride * elements as usize).next_multiple_of(page);
        // SAFETY: a fresh mapping; the kernel checks its length against the map.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self {
            base,
            elements,
            stride,
            bytes,
            _values: PhantomData,
        })
    }

    /// Number of elements.
    pub fn count(&self) -> u32 {
        self.elements
    }

    /// Address of an element, for reads and stores of single fields.
    pub fn at(&self, index: u32) -> *mut T {
        assert!(
            index < self.elements,
            "index {index} of a map of {}",
            self.elements
        );
        // SAFETY: within the mapping by the assertion.
        unsafe { self.base.as_ptr().add(self.stride * index as usize).cast() }
    }

    /// Copies an element out; may be torn if it changes meanwhile.
    pub fn read(&self, index: u32) -> T {
        // SAFETY: `at` is within the mapping; every bit pattern of a map value is a valid `T`.
        unsafe { std::ptr::read_volatile(self.at(index)) }
    }

    /// Copies an element in; readers may see it half written.
    pub fn write(&self, index: u32, value: T) {
        // SAFETY: as above.
        unsafe { std::ptr::write_volatile(self.at(index), value) }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// What follows where there is no grace period, and what mends it.
pub const NO_BARRIER: &str = "the kernel has no grace period for readers (membarrier refuses MEMBARRIER_CMD_GLOBAL, as under nohz_full): what writes replace cannot be used again, so after some 8,000 changes (sooner with large rings) writes are refused until the agent is started anew; packets and weights in force are not touched; boot without nohz_full";

/// Whether [`grace_period`] can work here.
pub fn has_grace_period() -> bool {
    const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
    // SAFETY: takes numbers only.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    commands > 0 && commands & 1 != 0
}

/// Waits until no program that runs now can still hold what it has read
/// (membarrier(2), MEMBARRIER_CMD_GLOBAL; kernel 4.3).
pub fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let failed = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
