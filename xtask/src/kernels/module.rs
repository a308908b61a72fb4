//! Modules of a kernel with what they depend on, in the order of loading.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::run::program;

/// A module: its name, and its content as `insmod` takes it.
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The modules of these names in the directory of a kernel's modules, each
/// after those that it needs; what is built into the kernel is left out.
pub fn collect(directory: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let dependencies = read("modules.dep")?;
    let paths = in_order(&dependencies, &read("modules.builtin")?, names)?;
    paths
        .iter()
        .map(|path| {
            let content = content(&directory.join(path))?;
            let name = name_of(path).to_owned();
            Ok(Module { name, content })
        })
        .collect()
}

/// Paths in the order of loading, from modules.dep(5).
fn in_order<'text>(
    dependencies: &'text str,
    builtin: &str,
    names: &[&str],
) -> Result<Vec<&'text str>> {
    let mut order = Vec::new();
    for name in names {
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| name_of(path) == *name);
        let Some((path, needs)) = line else {
            builtin
                .lines()
                .find(|path| name_of(path) == *name)
                .with_context(|| format!("the kernel has no module {name}"))?;
            continue;
        };
        // Each of them stands behind those that need it.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// `kernel/drivers/net/veth.ko.xz` is veth.
fn name_of(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

fn content(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
    }
    let mut command = program("xz");
    let unpacked = command
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("xz cannot be run")?;
    anyhow::ensure!(
        unpacked.status.success(),
        "xz cannot unpack {}: {}",
        path.display(),
        String::from_utf8_lossy(&unpacked.stderr)
    );
    Ok(unpacked.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/net/llc/llc.ko:\n\
        kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko\n\
        kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko\n\
        kernel/drivers/net/veth.ko:\n";

    #[test]
    fn a_module_comes_after_all_that_it_needs_and_once() {
        let order = in_order(DEPENDENCIES, "", &["bridge", "veth", "llc"]).unwrap();
        let names: Vec<&str> = order.into_iter().map(name_of).collect();
        assert_eq!(names, ["llc", "stp", "bridge", "veth"]);
    }

    #[test]
    fn what_is_built_in_is_left_out_and_what_is_nowhere_is_an_error() {
        let builtin = "kernel/net/sched/sch_ingress.ko\n";
        let order = in_order(DEPENDENCIES, builtin, &["sch_ingress"]).unwrap();
        assert!(order.is_empty());
        assert!(in_order(DEPENDENCIES, builtin, &["cls_bpf"]).is_err());
    }
}
