//! docs/toolchain.md, Cargo.toml and the build script say the versions of `pins`.

use anyhow::{Context as _, Result};

use super::Finding;
use crate::pins;

/// Holds the table of pins between two marks.
pub const DOC: &str = "docs/toolchain.md";
/// Pins the crates.
pub const CARGO: &str = "Cargo.toml";
/// Chooses the nightly.
pub const BUILD_SCRIPT: &str = "shifter/build.rs";

const BEGIN: &str = "<!-- pins: cargo xtask tidy --fix -->\n";
const END: &str = "<!-- end of pins -->\n";

/// Compares the three with the pins.
pub fn check(doc: &str, cargo: &str, build_script: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    match fix(doc) {
        Ok(right) if right == doc => {}
        Ok(_) => {
            let text = "the table is not that of xtask/src/pins.rs: cargo xtask tidy --fix";
            findings.push(Finding::new(DOC, 0, text));
        }
        Err(error) => findings.push(Finding::new(DOC, 0, format!("{error:#}"))),
    }
    for package in pins::LLVM_PACKAGES.into_iter().chain(tools()) {
        if !doc.contains(&format!("`{package}`")) {
            let text = format!("package `{package}` is installed by setup and not named here");
            findings.push(Finding::new(DOC, 0, text));
        }
    }
    let mut lines = vec![format!("rust-version = \"{}\"", pins::RUST)];
    for pin in pins::TABLE.iter().filter(|pin| pin.name.starts_with("aya")) {
        lines.push(format!("{} = \"={}\"", pin.name, pin.version));
    }
    for line in lines {
        if !cargo.lines().any(|l| l.trim() == line) {
            let text = format!("the line `{line}` of xtask/src/pins.rs is not here");
            findings.push(Finding::new(CARGO, 0, text));
        }
    }
    if !build_script.contains(&format!("\"{}\"", pins::NIGHTLY)) {
        let text = format!(
            "the nightly of xtask/src/pins.rs, {}, is not here",
            pins::NIGHTLY
        );
        findings.push(Finding::new(BUILD_SCRIPT, 0, text));
    }
    findings
}

fn tools() -> impl Iterator<Item = &'static str> {
    let tests = pins::DEMO_PACKAGES.iter().chain(&pins::TEST_PACKAGES);
    let all = tests
        .chain(&pins::DIST_PACKAGES)
        .chain(&pins::BENCH_PACKAGES)
        .chain(&pins::KERNEL_PACKAGES);
    all.map(|package| package.name)
}

/// The page with its table made anew.
pub fn fix(doc: &str) -> Result<String> {
    let missing = "the marks around the table of pins are missing";
    let (before, rest) = doc.split_once(BEGIN).context(missing)?;
    let (_, after) = rest.split_once(END).context(missing)?;
    let mut table = String::from("| what | version | why |\n|---|---|---|\n");
    for pin in &pins::TABLE {
        table += &format!("| {} | {} | {} |\n", pin.name, pin.version, pin.why);
    }
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc() -> String {
        let packages: Vec<String> = pins::LLVM_PACKAGES
            .into_iter()
            .chain(tools())
            .map(|package| format!("`{package}`"))
            .collect();
        fix(&format!(
            "# Toolchain\n{BEGIN}{END}{}\n",
            packages.join(" ")
        ))
        .unwrap()
    }

    const CARGO: &str = "rust-version = \"1.95\"\naya = \"=0.14.0\"\naya-ebpf = \"=0.2.1\"\n";

    fn script() -> String {
        format!("const NIGHTLY: &str = \"{}\";", pins::NIGHTLY)
    }

    #[test]
    fn files_that_agree_with_the_pins_hold() {
        assert_eq!(check(&doc(), CARGO, &script()), []);
    }

    #[test]
    fn a_page_with_another_version_is_found() {
        let doc = doc().replace(pins::BPF_LINKER, "0.12.0");
        assert_eq!(check(&doc, CARGO, &script()).len(), 1);
        assert_eq!(fix(&doc).unwrap(), super::tests::doc());
    }

    #[test]
    fn a_page_without_a_package_or_the_table_is_found() {
        assert_eq!(
            check(&doc().replace("`wrk`", ""), CARGO, &script()).len(),
            1
        );
        assert!(!check("# Toolchain\n", CARGO, &script()).is_empty());
    }

    #[test]
    fn another_crate_version_or_nightly_is_found() {
        let cargo = CARGO.replace("=0.14.0", "=0.15.0");
        assert_eq!(check(&doc(), &cargo, &script()).len(), 1);
        assert_eq!(check(&doc(), CARGO, "").len(), 1);
    }
}
