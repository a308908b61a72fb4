//! What a scenario needs of the machine, said loudly when it is not there.

use std::{env, path::Path};

/// Whether the machine has root and these tools. If not, prints
/// `SKIPPED: NAME needs ...`; with `CI` set that is a failure.
///
/// # Panics
///
/// With `CI` set, when something is missing.
pub fn ready(name: &str, tools: &[&str]) -> bool {
    let mut missing: Vec<&str> = Vec::new();
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("root");
    }
    let common = ["ip", "ethtool", "nft"];
    missing.extend(
        common
            .iter()
            .chain(tools)
            .copied()
            .filter(|tool| !on_path(tool)),
    );
    if missing.is_empty() {
        return true;
    }
    let text = format!("SKIPPED: {name} needs {}", missing.join(", "));
    assert!(
        env::var_os("CI").is_none(),
        "{text} (a failure, because CI is set)"
    );
    // Straight to the terminal: the test harness swallows what println! writes.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
    false
}

/// Whether a program is found on `PATH`.
pub fn on_path(tool: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| Path::new(&dir).join(tool).is_file()))
}

/// Full counts instead of the short form.
pub fn long() -> bool {
    env::var_os("SHIFTER_TEST_LONG").is_some_and(|v| v != "0")
}

/// The number for the short form or the one for the long form.
pub fn scaled<T>(short: T, full: T) -> T {
    if long() { full } else { short }
}

/// Ends the test early where the machine lacks something; the name of the
/// test is found by itself.
#[macro_export]
macro_rules! need {
    ($($tool:literal),*) => {{
        let name = std::thread::current().name().unwrap_or("a scenario").to_owned();
        if !$crate::need::ready(&name, &[$($tool),*]) {
            return;
        }
    }};
}
