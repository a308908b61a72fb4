//! Nothing of the machine it was written on is in the repository.

use super::{File, Finding};

/// Put together, so that this file does not find itself.
const PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ho", "me/")];
/// Parts of the names of hosts that stand in for a public one.
const STAND_INS: [&str; 6] = [
    "mirror", "proxy", "artifact", "nexus", "internal", "registry",
];
/// What Cargo.lock names as the source of every package; put together, because
/// that file alone names a registry.
const PUBLIC_SOURCE: &str = concat!(
    "registry+https://git",
    "hub.com/rust-lang/crates",
    ".io-index"
);
/// Hosts of package registries.
const REGISTRIES: [&str; 2] = [
    concat!("crates", ".io"),
    concat!("static.rust-", "lang.org"),
];

/// Finds paths of a machine and names of its package hosts.
pub fn check(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let mut find = |text: String| findings.push(Finding::new(&file.path, number + 1, text));
        for path in PATHS.iter().filter(|path| line.contains(**path)) {
            find(format!("{path} is a path of one machine"));
        }
        for host in hosts(line) {
            if STAND_INS.iter().any(|part| host.contains(part)) {
                find(format!("{host} looks like a package host of one network"));
            }
        }
        for registry in REGISTRIES.iter().filter(|host| line.contains(**host)) {
            if file.path != "Cargo.lock" {
                find(format!(
                    "{registry} is a registry: cargo's own settings name it"
                ));
            }
        }
        let source = line
            .strip_prefix("source = \"")
            .map(|s| s.trim_end_matches('"'));
        if file.path == "Cargo.lock" && source.is_some_and(|s| s != PUBLIC_SOURCE) {
            find(format!(
                "a package comes from elsewhere than {PUBLIC_SOURCE}"
            ));
        }
    }
    findings
}

/// Hosts of http URLs.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.split("://").skip(1).filter_map(|rest| {
        let end = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-');
        rest.split(end).next().filter(|host| host.contains('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let file = File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&file).len()
    }

    #[test]
    fn paths_and_hosts_of_one_machine_are_found() {
        assert_eq!(count("a.rs", concat!("see /wo", "rk/notes")), 1);
        assert_eq!(count("a.md", concat!("in /ho", "me/me/x")), 1);
        assert_eq!(
            count(
                "b.toml",
                concat!("u = \"https://crates-mir", "ror.example/x\"")
            ),
            1
        );
        assert_eq!(
            count(
                "c.md",
                "https://docs.kernel.org/bpf/ and http://127.0.0.1:9464/metrics"
            ),
            0
        );
    }

    #[test]
    fn a_registry_is_named_in_the_lock_file_alone() {
        let public = format!("source = \"{PUBLIC_SOURCE}\"\n");
        assert_eq!(count("Cargo.lock", &public), 0);
        assert_eq!(count("a.rs", &public), 1);
        assert_eq!(count("a.md", concat!("see crates", ".io")), 1);
    }

    #[test]
    fn a_lock_file_of_another_source_is_found() {
        let public = format!("source = \"{PUBLIC_SOURCE}\"\n");
        assert_eq!(count("Cargo.lock", &public), 0);
        assert_eq!(
            count("Cargo.lock", "source = \"git+https://example.org/x\"\n"),
            1
        );
    }
}
