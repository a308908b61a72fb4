//! Build, test, demo and tidy: the commands of the README.

mod bench;
mod build;
mod demo;
mod dist;
mod kernels;
mod lint;
mod pins;
mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;

const HELP: &str = "\
cargo xtask VERB [ARGUMENTS]

  setup              install what the build and the tests lack, and say what and why
  build [ARGS]       build everything; ARGS go to cargo build
  test [--long] [FILTER] [-- ARGS]
                     tidy, formatting, lints, unit tests, scenarios; ends with a summary.
                     FILTER runs only the tests whose name contains it;
                     --long runs full counts; ARGS go to the test programs
  test --kernels [--long] [FILTER]
                     boot Linux 6.1 and 6.12 in QEMU and run there what depends on
                     the kernel; --long runs all packet tables
  demo [ARGS]        move live traffic between two servers in network namespaces (root)
  bench [PART..] [--quick] [--json FILE] [..]
                     measure packets and traffic beside the usual ways, control, start and
                     migration; `compare --other FILE`: this build beside another (root);
                     `bench --help` lists the filters
  dist [--check]     a static binary and a Debian package of it, in target/dist;
                     --check installs, upgrades, removes and purges it in a Debian root (root)
  tidy [--fix]       hold the lines of the code base; --fix rewrites the generated tables
  lint               formatting and clippy
  stack              the stack that each eBPF program needs, as Linux 6.1 counts it
  help               this text

Environment:
  SHIFTER_BPF_OBJECT=PATH   build with this ready eBPF object; nothing of nightly,
                            LLVM and bpf-linker is needed or installed
  CI=true                   a skipped test is a failed one

What is installed, in which version and why: docs/toolchain.md.
";

/// Exit code for a wrong command line (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", &[][..]),
    };
    // The bench has options enough for a help text of its own.
    if verb != "bench" && rest.iter().any(|a| a == "--help" || a == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let outcome = match verb {
        "setup" => nothing_more(verb, rest).and_then(|()| setup::setup(setup::Need::All)),
        "build" => build::build(rest),
        "test" => test::test(rest),
        "bench" => bench::bench(rest),
        "demo" => demo::demo(rest),
        "dist" => dist::dist(rest),
        "tidy" => tidy::tidy(rest),
        "lint" => nothing_more(verb, rest).and_then(|()| lint::lint()),
        "stack" => nothing_more(verb, rest).and_then(|()| test::stack::check()),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(Usage(format!("there is no verb {verb:?}")).into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Usage>() => {
            eprintln!("error: {error}\n\n{HELP}");
            ExitCode::from(USAGE)
        }
        Err(error) if error.is::<Told>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A command line that is not understood.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A failure whose reasons are on the screen already.
#[derive(Debug)]
struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not all tests passed")
    }
}

impl std::error::Error for Told {}

fn nothing_more(verb: &str, rest: &[String]) -> Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(first) => Err(Usage(format!("{verb} takes no argument, {first:?} was given")).into()),
    }
}
