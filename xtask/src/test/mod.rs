//! `cargo xtask test`: every check, live, and one summary at the end.

mod elf;
mod lanes;
pub mod options;
pub mod output;
pub mod stack;
pub mod stage;
mod summary;

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    Told, kernels, lint,
    run::{cargo, is_root, is_set, root},
    setup::{Need, setup},
    tidy,
};
use lanes::Programs;
use options::Options;
use stage::Stage;
use summary::Summary;

/// Set to 1: full counts.
const LONG: &str = "SHIFTER_TEST_LONG";

/// Runs all stages, a failed one does not stop the next, and sums up.
pub fn test(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let need = match (options.kernels, is_root()) {
        (true, _) => Need::Kernels,
        (false, true) => Need::All,
        (false, false) => Need::Unprivileged,
    };
    setup(need)?;
    let summary = if options.kernels {
        on_other_kernels(&options)?
    } else {
        here(&options)
    };
    sum_up(&options, &summary)
}

fn on_other_kernels(options: &Options) -> Result<Summary> {
    let mut summary = Summary::default();
    summary.push(stage::command("build", &mut build()));
    // What does not build cannot be booted.
    if summary.failed() == 0 {
        for stage in kernels::stages(options)? {
            summary.push(stage);
        }
    }
    Ok(summary)
}

fn here(options: &Options) -> Summary {
    let mut summary = Summary::default();
    if options.filter.is_none() {
        summary.push(stage::check("tidy", || tidy::tidy(&[])));
        summary.push(stage::command("formatting", &mut lint::formatting()));
        summary.push(stage::command("clippy", &mut lint::clippy()));
        summary.push(lint_ebpf());
    }
    summary.push(stage::command("build", &mut build()));
    if options.filter.is_none() {
        summary.push(stage::command("build of a later layout", &mut build_next()));
        summary.push(stage::check("stack of the eBPF programs", stack::check));
    }
    summary.push(stage::tests("unit tests", &mut unit_tests(options)));
    scenarios(options, &mut summary);
    summary
}

fn sum_up(options: &Options, summary: &Summary) -> Result<()> {
    if let Some(filter) = &options.filter
        && summary.failed() == 0
        && summary.tests_run() == 0
    {
        bail!("no test has a name that contains {filter:?}");
    }
    print!("{summary}");
    let refused = is_set("CI") && summary.skipped() > 0;
    if refused {
        eprintln!("CI is set, so a skip is a failure: see SKIPPED above for what is missing");
    }
    println!("{}", summary.counts());
    if refused || summary.failed() > 0 {
        // The counts stay the last line.
        return Err(Told.into());
    }
    Ok(())
}

fn lint_ebpf() -> Stage {
    const NAME: &str = "clippy of shifter-ebpf";
    if is_set("SHIFTER_BPF_OBJECT") {
        return stage::skipped(NAME, "SHIFTER_BPF_OBJECT is set, so there is no nightly");
    }
    match lint::clippy_ebpf() {
        Some(mut command) => stage::command(NAME, &mut command),
        None => stage::skipped(NAME, "no nightly with clippy (cargo xtask setup)"),
    }
}

/// Scenarios start the `shifter` program, which their own build does not make.
fn build() -> Command {
    cargo(&["build", "--workspace", "--exclude", "shifter-ebpf"])
}

/// The agent that tests of migration move to; those make it where it is not there.
fn build_next() -> Command {
    let next = ["--features", "next_layout", "--bin", "shifter-next"];
    let mut command = cargo(&["build", "--package", "shifter"]);
    command.args(next);
    command
}

fn unit_tests(options: &Options) -> Command {
    let mut command = cargo(&["test", "--no-fail-fast", "--workspace"]);
    command.args(["--exclude", "shifter-ebpf", "--exclude", "shifter-tests"]);
    options.pass_on(&mut command, &[]);
    command
}

/// Those of the library, of each program that may have another beside it, and of
/// each that may not.
fn scenarios(options: &Options, summary: &mut Summary) {
    const NAME: &str = "scenarios";
    const BESIDE: &str = "scenarios, two at a time";
    if !is_root() {
        summary.push(stage::skipped(
            NAME,
            "they make network namespaces and load eBPF programs: run as root",
        ));
        return;
    }
    let programs = match Programs::find(&root().join("tests/tests")) {
        Ok(programs) => programs,
        Err(error) => return summary.push(stage::check(NAME, || Err(error))),
    };
    let command = |which: &[&str]| {
        let mut command = cargo(&["test", "--no-fail-fast", "--package", "shifter-tests"]);
        command.args(which);
        options.pass_on(&mut command, &["--test-threads=1"]);
        if options.long {
            command.env(LONG, "1");
        }
        command
    };
    // Built before, so that no two wait for each other to build.
    let mut built = cargo(&["test", "--no-run", "--package", "shifter-tests"]);
    summary.push(stage::command("build of the scenarios", &mut built));
    let each = programs.beside.iter();
    let beside = each.map(|name| command(&["--test", name])).collect();
    summary.push(stage::tests_side_by_side(BESIDE, beside));
    let mut alone = vec!["--lib", "--bins"];
    alone.extend(programs.alone.iter().flat_map(|name| ["--test", name]));
    summary.push(stage::tests(NAME, &mut command(&alone)));
}
