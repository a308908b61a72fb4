//! `cargo xtask test --kernels`: boots other kernels in an emulated machine and
//! runs there what depends on the kernel.

mod cpio;
mod guest;
mod initramfs;
pub mod list;
mod module;
mod package;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    guest::{Guest, Run},
    list::{BUILT, KERNELS, Kernel, LIMIT_S, Long, MODULES, PROGRAMS, SUITES, Suite},
    package::Package,
};
use crate::{
    run::{cargo, line_of, output, program, target_directory},
    test::{
        options::Options,
        stage::{self, Stage},
    },
};

/// A test program as it was built.
struct Built {
    suite: &'static Suite,
    path: PathBuf,
    /// Names of all its tests.
    tests: Vec<String>,
}

/// A stage for each kernel; expects the workspace to be built.
pub fn stages(options: &Options) -> Result<Vec<Stage>> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the kernels are Debian's for x86_64, and what is built here does not run on them: run this on such a machine"
    );
    let built = build()?;
    check_list(&built)?;
    let stages = KERNELS.iter().filter_map(|kernel| {
        let runs = runs(kernel, &built, options);
        if runs.is_empty() {
            return None;
        }
        let stage = boot(kernel, &runs, &built, options.long);
        Some(stage.unwrap_or_else(|error| stage::check(kernel.name, || Err(error))))
    });
    Ok(stages.collect())
}

/// Builds the test programs and asks each what tests it has.
fn build() -> Result<Vec<Built>> {
    let mut command = cargo(&["test", "--no-run", "--package", "shifter-tests"]);
    for suite in &SUITES {
        command.args(["--test", suite.name]);
    }
    command.args(["--message-format", "json-render-diagnostics"]);
    println!("$ {}", line_of(&command));
    let built = command
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run")?;
    ensure!(built.status.success(), "the test programs do not build");
    let messages = String::from_utf8_lossy(&built.stdout);
    SUITES
        .iter()
        .map(|suite| {
            let path = executable(&messages, suite.name)
                .with_context(|| format!("cargo names no program of the tests {}", suite.name))?;
            let tests = tests_of(&path)?;
            Ok(Built { suite, path, tests })
        })
        .collect()
}

/// The program `NAME-HASH` among cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            Some(Path::new(rest.split_once('"')?.0))
        })
        .find(|path| {
            let stem = path.file_name().and_then(|file| file.to_str());
            stem.and_then(|stem| stem.rsplit_once('-')).map(|(n, _)| n) == Some(name)
        })
        .map(Path::to_path_buf)
}

fn tests_of(path: &Path) -> Result<Vec<String>> {
    let text = output(program(&path.to_string_lossy()).arg("--list"))
        .with_context(|| format!("{} does not list its tests", path.display()))?;
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// A name in the list that no test has would never run, and nobody would know.
fn check_list(built: &[Built]) -> Result<()> {
    let has = |name: &str| {
        built
            .iter()
            .any(|b| b.tests.iter().any(|test| test == name))
    };
    let listed = SUITES.iter().flat_map(|suite| match suite.long {
        Long::Rest => suite.tests.iter().chain(&[]),
        Long::Some(tests) => suite.tests.iter().chain(tests),
    });
    let excluded = KERNELS.iter().flat_map(|kernel| kernel.cannot);
    for name in listed.chain(excluded.map(|(name, _)| name)) {
        if !has(name) {
            bail!("xtask/src/kernels/list.rs names a test {name}, and there is none");
        }
    }
    Ok(())
}

/// What runs on a kernel; says what does not, and why.
fn runs(kernel: &Kernel, built: &[Built], options: &Options) -> Vec<Run> {
    let is_asked = |name: &str| options.filter.as_ref().is_none_or(|f| name.contains(f));
    let mut runs = Vec::new();
    for Built { suite, tests, .. } in built {
        let is_listed =
            |name: &str| suite.tests.contains(&name) || (options.long && is_long(suite, name));
        let reason = |name: &str| kernel.cannot.iter().find(|(n, _)| *n == name);
        let mut chosen = tests.clone();
        chosen.retain(|name| is_listed(name) && is_asked(name));
        for (name, why) in chosen.iter().filter_map(|name| reason(name)) {
            println!("not on {}: {name}: {why}", kernel.name);
        }
        chosen.retain(|name| reason(name).is_none());
        if !chosen.is_empty() {
            runs.push(Run {
                program: suite.name,
                threads: suite.threads,
                tests: chosen,
            });
        }
    }
    runs
}

/// Whether it is `--long` that runs a test.
fn is_long(suite: &Suite, name: &str) -> bool {
    match suite.long {
        Long::Rest => true,
        Long::Some(tests) => tests.contains(&name),
    }
}

fn boot(kernel: &Kernel, runs: &[Run], built: &[Built], is_long: bool) -> Result<Stage> {
    let directory = target_directory().join("kernels");
    let package = Package::fetch(kernel, &directory)?;
    let scratch = directory.join("guest").join(&package.release);
    fs::create_dir_all(&scratch)
        .with_context(|| format!("{} cannot be made", scratch.display()))?;
    let modules = module::collect(&package.modules(), &MODULES)?;
    let of_the_build = |name| (name, target_directory().join("debug").join(name));
    let mut programs = BUILT.map(of_the_build).to_vec();
    let is_run = |b: &&Built| runs.iter().any(|run| run.program == b.suite.name);
    programs.extend(
        built
            .iter()
            .filter(is_run)
            .map(|b| (b.suite.name, b.path.clone())),
    );
    let archive = initramfs::make(&initramfs::Content {
        programs: &PROGRAMS,
        built: &programs,
        modules: &modules,
        init: &guest::script(runs, &modules),
        scratch: &scratch,
    })?;
    let initramfs = scratch.join("initramfs");
    fs::write(&initramfs, archive)
        .with_context(|| format!("{} cannot be written", initramfs.display()))?;
    let guest = Guest {
        kernel,
        image: package.image(),
        initramfs,
        directory: scratch,
        limit_s: LIMIT_S[usize::from(is_long)],
    };
    let expected: Vec<String> = runs.iter().flat_map(|run| run.tests.clone()).collect();
    Ok(guest.run(&expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_cargos_messages_by_its_name() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/traffic\"}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/packets-0f1e\",\"fresh\":true}\n";
        let found = executable(messages, "packets");
        assert_eq!(found, Some(PathBuf::from("/t/deps/packets-0f1e")));
        assert_eq!(executable(messages, "hooks"), None);
    }

    fn built() -> Vec<Built> {
        let of = |suite: &'static Suite| {
            let mut tests: Vec<String> = suite.tests.iter().map(ToString::to_string).collect();
            if let Long::Some(more) = suite.long {
                tests.extend(more.iter().map(ToString::to_string));
            }
            tests.push(format!("{}_more", suite.name));
            let path = PathBuf::new();
            Built { suite, path, tests }
        };
        SUITES.iter().map(of).collect()
    }

    #[test]
    fn a_kernel_runs_what_is_listed_but_for_what_it_cannot() {
        let kernel = &KERNELS[0];
        let runs = runs(kernel, &built(), &Options::default());
        let all: Vec<&String> = runs.iter().flat_map(|run| &run.tests).collect();
        let listed = SUITES.iter().flat_map(|suite| suite.tests);
        let is_possible = |name: &&&str| !kernel.cannot.iter().any(|(n, _)| n == *name);
        assert_eq!(all.len(), listed.filter(is_possible).count());
        for (name, _) in kernel.cannot {
            assert!(!all.iter().any(|test| test == name), "{name}");
        }
    }

    #[test]
    fn a_filter_and_the_long_form_choose_other_tests() {
        let long = Options {
            long: true,
            filter: Some("_more".to_owned()),
            ..Options::default()
        };
        let runs = runs(&KERNELS[1], &built(), &long);
        let tests: Vec<&String> = runs.iter().flat_map(|run| &run.tests).collect();
        assert_eq!(tests, ["packets_more"]);
    }

    #[test]
    fn a_listed_test_that_is_not_there_is_an_error() {
        let mut built = built();
        assert!(check_list(&built).is_ok());
        built[0].tests.clear();
        assert!(check_list(&built).is_err());
    }
}
