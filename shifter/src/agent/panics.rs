//! Points at which tests have a task of the agent panic.
//!
//! In a debug build whose environment has `SHIFTER_PANIC_AT=NAME` the point of
//! that name panics at each pass; with `NAME:N` at the first N of them. In a
//! release build a point is nothing.

/// Panics here, if that is asked for.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    };
    static ASKED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSES: AtomicU64 = AtomicU64::new(0);
    let asked = ASKED.get_or_init(|| asked(&std::env::var("SHIFTER_PANIC_AT").ok()?));
    let Some((_, passes)) = asked.as_ref().filter(|(asked, _)| asked == name) else {
        return;
    };
    let pass = PASSES.fetch_add(1, Relaxed);
    assert!(pass >= *passes, "asked for at {name}, pass {pass}");
}

/// Panics here, if that is asked for.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}

#[cfg(debug_assertions)]
fn asked(text: &str) -> Option<(String, u64)> {
    match text.split_once(':') {
        Some((name, passes)) => Some((name.to_owned(), passes.parse().ok()?)),
        None => Some((text.to_owned(), u64::MAX)),
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_asked_for_by_name_and_number_of_passes() {
        assert_eq!(asked("api"), Some(("api".to_owned(), u64::MAX)));
        assert_eq!(asked("maintain:2"), Some(("maintain".to_owned(), 2)));
        assert_eq!(asked("maintain:x"), None);
    }
}
