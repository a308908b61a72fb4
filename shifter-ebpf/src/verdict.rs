//! Every packet that a hook looks at is counted once, by its reason.

use shifter_common::abi::stats::{REASONS, Verdict};

use crate::{
    hook::{Action, Hook},
    maps::VERDICTS,
};

/// Why a packet ended, and what the kernel shall do with it.
pub struct Outcome {
    /// Counted reason.
    pub verdict: Verdict,
    /// Returned to the kernel.
    pub action: Action,
}

impl Outcome {
    /// On its way.
    #[inline(always)]
    pub fn pass<H: Hook>(hook: &H, verdict: Verdict) -> Self {
        Self {
            verdict,
            action: hook.pass(),
        }
    }
    /// Dropped.
    #[inline(always)]
    pub fn drop<H: Hook>(hook: &H, verdict: Verdict) -> Self {
        Self {
            verdict,
            action: hook.drop(),
        }
    }
}

/// Counts the outcome and gives its action.
#[inline(always)]
pub fn conclude<H: Hook>(outcome: Outcome) -> Action {
    if let Some(counter) = VERDICTS.get_ptr_mut(H::NUMBER * REASONS + outcome.verdict as u32) {
        // SAFETY: per CPU, and programs of one CPU do not interleave.
        unsafe { *counter += 1 };
    }
    outcome.action
}
