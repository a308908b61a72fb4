//! The one binary: agent and command line.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use shifter::cli::{Screen, run};

pub fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let (out_is_terminal, err_is_terminal) = (out.is_terminal(), err.is_terminal());
    let mut screen = Screen::new((&mut out, out_is_terminal), (&mut err, err_is_terminal));
    ExitCode::from(run(std::env::args_os(), &mut screen))
}
