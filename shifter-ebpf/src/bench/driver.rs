//! Feeds a program under test: a repeated test run would give it its own output.

use crate::{
    atomic,
    frame::Frame,
    maps::{COURSE, TEMPLATES},
};

/// Words of the short frame and of the long one.
const SHORT: usize = 8;
const LONG: usize = 10;

/// Copies the next template into the frame. Templates are visited each once in
/// a scattered order, then again in the same.
#[inline(always)]
pub fn restore(data: usize, end: usize) {
    let Some(course) = COURSE.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a map value; one CPU runs the bench.
    let (number, mask, shift) = unsafe {
        let number = (*course).next + (*course).seen;
        (*course).next = number + 1;
        (number as u32, (*course).mask, (*course).shift)
    };
    let Some(template) = TEMPLATES.get(scatter(number, mask, shift)) else {
        return;
    };
    if data + 8 * SHORT > end {
        return;
    }
    let mut i = 0;
    while i < SHORT {
        // SAFETY: checked above.
        unsafe { atomic::store64(data + 8 * i, template.words[i]) };
        i += 1;
    }
    if data + 8 * LONG > end {
        return;
    }
    while i < LONG {
        // SAFETY: checked above.
        unsafe { atomic::store64(data + 8 * i, template.words[i]) };
        i += 1;
    }
}

/// Makes the next packet wait for this one's frame: with nothing in between
/// that needs it, the processor works on the next packets while a template is
/// still on its way from memory. Neither fences nor atomics keep it from that.
#[inline(always)]
pub fn wait<F: Frame>(frame: &F) {
    // The client's port.
    let (Some(port), Some(course)) = (frame.get2(34), COURSE.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: a map value; one CPU runs the bench.
    unsafe { (*course).seen = u64::from(port) & (*course).zero };
}

/// A permutation of `0..=mask`: products with odd numbers and a shifted xor
/// can all be undone.
#[inline(always)]
fn scatter(number: u32, mask: u32, shift: u32) -> u32 {
    let mixed = number.wrapping_mul(0x9e37_79b1) & mask;
    let mixed = mixed ^ (mixed >> (shift & 31));
    let mixed = mixed.wrapping_mul(0x85eb_ca6b) & mask;
    mixed ^ (mixed >> (shift & 31))
}
