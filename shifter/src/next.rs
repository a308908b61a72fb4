//! `shifter` of a later layout, which tests of migration move to.

#[path = "main.rs"]
mod agent;

fn main() -> std::process::ExitCode {
    agent::main()
}
