//! The only inline assembly: atomics that the bpf target lacks, loads from
//! packets at any alignment, and a fence against the optimiser.

use core::{
    arch::asm,
    mem::{MaybeUninit, size_of},
};

use shifter_common::packet::MAX_OFFSET;

/// `base + offset`, of which the optimiser knows nothing more: the pointer that
/// is checked and the one that is used stay the same register for the verifier.
/// `offset` must have been checked against [`MAX_OFFSET`]; it is masked all the
/// same, because the optimiser may derive that check from one of another sum,
/// and verifiers below 6.10 see no relation between registers that differ by a
/// constant.
#[inline(always)]
pub fn add(base: usize, offset: usize) -> usize {
    const { assert!((MAX_OFFSET + 1).is_power_of_two()) };
    let at;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("{at} &= {mask}", "{at} += {base}", at = inout(reg) offset => at,
             base = in(reg) base, mask = const MAX_OFFSET, options(nomem, nostack))
    };
    at
}

/// The next number, of which the optimiser knows nothing more: a loop over such is
/// not unrolled.
#[inline(always)]
pub fn next(number: u32) -> u32 {
    let mut next = u64::from(number);
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{next} += 1", next = inout(reg) next, options(nomem, nostack)) };
    next as u32
}

/// A number that the optimiser knows nothing of, and the verifier all.
#[inline(always)]
pub fn constant<const NUMBER: u8>() -> u8 {
    let number: u64;
    // SAFETY: loads a number.
    unsafe {
        asm!("{number} = {value}", number = out(reg) number, value = const NUMBER,
             options(nomem, nostack, pure))
    };
    number as u8
}

/// Zeroes words one by one; of a plain assignment the compiler makes a call of a
/// loop over bytes.
#[inline(always)]
pub fn zero<const N: usize>(words: &mut [MaybeUninit<u64>; N]) {
    let mut i = 0;
    while i < N {
        // SAFETY: `i` is below `N`.
        unsafe { core::ptr::write_volatile(words.as_mut_ptr().add(i).cast::<u64>(), 0) };
        i += 1;
    }
}

/// Address of an element of a table of `N` at `base`. `index` must be below `N`;
/// it is masked all the same, for the verifier, which does not see every check
/// that the optimiser has moved.
#[inline(always)]
pub fn element<T, const N: usize>(base: usize, index: u32) -> usize {
    const { assert!(N.is_power_of_two()) };
    let mut at = index as usize;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("{at} &= {mask}", at = inout(reg) at, mask = const N - 1, options(nomem, nostack));
        if size_of::<T>().is_power_of_two() {
            asm!("{at} <<= {shift}", at = inout(reg) at,
                 shift = const size_of::<T>().trailing_zeros(), options(nomem, nostack));
        } else {
            asm!("{at} *= {size}", at = inout(reg) at, size = const size_of::<T>(),
                 options(nomem, nostack));
        }
        asm!("{at} += {base}", at = inout(reg) at, base = in(reg) base, options(nomem, nostack));
    }
    at
}

/// Loads a pointer field of the context. The kernel declares it as 32 bits and
/// makes it 64; a plain load is narrowed by the optimiser, which the verifier
/// takes for arithmetic on a pointer.
///
/// # Safety
/// `context` must be the program's own and `OFFSET` that of a pointer field.
#[inline(always)]
pub unsafe fn context_pointer<const OFFSET: usize>(context: usize) -> usize {
    let pointer;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{pointer} = *(u32 *)({context} + {offset})", pointer = out(reg) pointer,
             context = in(reg) context, offset = const OFFSET, options(nostack, readonly))
    };
    pointer
}

macro_rules! load {
    ($name:ident, $type:ty, $text:literal) => {
        /// Loads at any alignment.
        ///
        /// # Safety
        /// `from` must have been checked to be readable.
        #[inline(always)]
        pub unsafe fn $name(from: usize) -> $type {
            let value: u64;
            // SAFETY: the caller's promise; the verifier checks it again.
            unsafe { asm!($text, from = in(reg) from, to = out(reg) value, options(nostack, readonly)) };
            value as $type
        }
    };
}

load!(load8, u8, "{to} = *(u8 *)({from} + 0)");
load!(load16, u16, "{to} = *(u16 *)({from} + 0)");
load!(load32, u32, "{to} = *(u32 *)({from} + 0)");
load!(load64, u64, "{to} = *(u64 *)({from} + 0)");

macro_rules! store {
    ($name:ident, $type:ty, $text:literal) => {
        /// Stores at any alignment.
        ///
        /// # Safety
        /// `to` must have been checked to be writable.
        #[inline(always)]
        pub unsafe fn $name(to: usize, value: $type) {
            // SAFETY: the caller's promise; the verifier checks it again.
            unsafe { asm!($text, to = in(reg) to, value = in(reg) value as u64, options(nostack)) };
        }
    };
}

store!(store8, u8, "*(u8 *)({to} + 0) = {value}");
store!(store16, u16, "*(u16 *)({to} + 0) = {value}");
store!(store32, u32, "*(u32 *)({to} + 0) = {value}");
store!(store64, u64, "*(u64 *)({to} + 0) = {value}");

macro_rules! load_at {
    ($name:ident, $type:ty, $width:literal) => {
        /// Loads `OFFSET` bytes on, at any alignment.
        ///
        /// # Safety
        /// `from` must have been checked to be readable that far.
        #[inline(always)]
        pub unsafe fn $name<const OFFSET: usize>(from: usize) -> $type {
            let value: u64;
            // SAFETY: the caller's promise; the verifier checks it again.
            unsafe {
                asm!(concat!("{to} = *(", $width, " *)({from} + {offset})"), from = in(reg) from,
                     to = out(reg) value, offset = const OFFSET, options(nostack, readonly))
            };
            value as $type
        }
    };
}

load_at!(load8_at, u8, "u8");
load_at!(load16_at, u16, "u16");
load_at!(load32_at, u32, "u32");
load_at!(load64_at, u64, "u64");

macro_rules! store_at {
    ($name:ident, $type:ty, $width:literal) => {
        /// Stores `OFFSET` bytes on, at any alignment.
        ///
        /// # Safety
        /// `to` must have been checked to be writable that far.
        #[inline(always)]
        pub unsafe fn $name<const OFFSET: usize>(to: usize, value: $type) {
            // SAFETY: the caller's promise; the verifier checks it again.
            unsafe {
                asm!(concat!("*(", $width, " *)({to} + {offset}) = {value}"), to = in(reg) to,
                     value = in(reg) value as u64, offset = const OFFSET, options(nostack))
            };
        }
    };
}

store_at!(store8_at, u8, "u8");
store_at!(store16_at, u16, "u16");
store_at!(store32_at, u32, "u32");
store_at!(store64_at, u64, "u64");

/// Compare-and-swap; returns what was there. A full barrier.
///
/// # Safety
/// `at` must point into a map value and be aligned to 8.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let was;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({at} + 0, r0, {new})",
             at = in(reg) at, new = in(reg) new, inout("r0") old => was, options(nostack))
    };
    was
}

/// Adds; returns what was there. A full barrier.
///
/// # Safety
/// `at` must point into a map value and be aligned to 8.
#[inline(always)]
pub unsafe fn fetch_add(at: *mut u64, more: u64) -> u64 {
    let mut value = more;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({at} + 0), {value})",
             at = in(reg) at, value = inout(reg) value, options(nostack))
    };
    value
}

/// Sets bits.
///
/// # Safety
/// `at` must point into a map value and be aligned to 8.
#[inline(always)]
pub unsafe fn atomic_or(at: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("lock *(u64 *)({at} + 0) |= {bits}", at = in(reg) at, bits = in(reg) bits, options(nostack))
    };
}

/// Sets bits; returns what was there. A full barrier.
///
/// # Safety
/// `at` must point into a map value and be aligned to 8.
#[inline(always)]
pub unsafe fn fetch_or(at: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{value} = atomic_fetch_or((u64 *)({at} + 0), {value})",
             at = in(reg) at, value = inout(reg) value, options(nostack))
    };
    value
}
