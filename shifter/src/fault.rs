//! Points at which tests have the agent die.
//!
//! A debug build whose environment has `SHIFTER_KILL_AT=NAME` kills itself with
//! SIGKILL at the point of that name; `NAME:N` waits for its N-th pass. In a
//! release build a point is nothing.

/// Ends the process here, if that is asked for.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    };
    static ASKED: OnceLock<Option<Asked>> = OnceLock::new();
    static PASSES: AtomicU64 = AtomicU64::new(0);
    let asked = ASKED.get_or_init(|| Asked::read(&std::env::var("SHIFTER_KILL_AT").ok()?));
    let Some(asked) = asked.as_ref().filter(|asked| asked.name == name) else {
        return;
    };
    if PASSES.fetch_add(1, Relaxed) + 1 == asked.pass {
        // SAFETY: kill takes two numbers, and the process is our own.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Ends the process here, if that is asked for.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}

/// Which pass of which point.
#[cfg(debug_assertions)]
#[derive(PartialEq, Eq, Debug)]
struct Asked {
    name: String,
    pass: u64,
}

#[cfg(debug_assertions)]
impl Asked {
    fn read(text: &str) -> Option<Self> {
        let (name, pass) = match text.split_once(':') {
            Some((name, pass)) => (name, pass.parse().ok()?),
            None => (text, 1),
        };
        (!name.is_empty()).then(|| Self {
            name: name.to_owned(),
            pass,
        })
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_asked_for_by_name_and_pass() {
        let asked = |name: &str, pass| {
            let name = name.to_owned();
            Some(Asked { name, pass })
        };
        assert_eq!(Asked::read("sweep"), asked("sweep", 1));
        assert_eq!(Asked::read("apply:3"), asked("apply", 3));
        assert_eq!(Asked::read("apply:x"), None);
        assert_eq!(Asked::read(""), None);
    }

    #[test]
    fn a_point_that_nobody_asks_for_is_passed() {
        point("nowhere");
    }
}
