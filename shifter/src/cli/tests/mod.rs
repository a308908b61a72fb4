//! Tests of the command line against an agent in memory: what each verb
//! prints, and how it exits.

mod exits;
mod json;
mod tables;

use std::{fs, path::PathBuf};

use crate::control::testbed::Testbed;

/// What a command left behind.
struct Ran {
    code: u8,
    out: String,
    err: String,
}

fn run(args: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("shifter").chain(args.iter().copied());
    let code = super::run(
        args.map(Into::into),
        &mut super::Screen::new((&mut out, false), (&mut err, false)),
    );
    Ran {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// Runs a command line, words parted by blanks, against an agent.
fn ask(testbed: &Testbed, line: &str) -> Ran {
    let endpoint = format!("unix://{}", testbed.path().display());
    let mut args = vec!["--endpoint", &endpoint];
    args.extend(line.split_whitespace());
    run(&args)
}

/// Asserts that a command went well and printed exactly this.
#[track_caller]
fn assert_prints(testbed: &Testbed, line: &str, code: u8, expected: &str) {
    let ran = ask(testbed, line);
    let out: Vec<_> = ran.out.lines().map(str::trim_end).collect();
    let expected: Vec<_> = expected.trim().lines().map(str::trim).collect();
    let trimmed: Vec<_> = out.iter().map(|line| line.trim_start()).collect();
    assert_eq!(
        trimmed, expected,
        "\nprinted:\n{}\nand said: {}",
        ran.out, ran.err
    );
    assert_eq!((ran.code, ran.err.as_str()), (code, ""));
}

/// A file beside the testbed's socket.
fn file(testbed: &Testbed, name: &str, text: &str) -> PathBuf {
    let path = testbed.directory.0.join(name);
    fs::write(&path, text).unwrap();
    path
}

const TWO_SERVICES: &str = r#"
[[service]]
name = "dns"
vip = "[2001:db8::1]:53/udp"
[service.pools]
blue = ["[2001:db8::11]:53"]

[[service]]
name = "web"
vip = "203.0.113.10:443/tcp"
mode = "nat"
live = "blue"
green = "10%"
affinity = "client/24"
[service.pools]
blue = ["10.0.0.11:8443", { addr = "10.0.0.12:8443", weight = 2, state = "drain" }]
green = ["10.0.1.11:8443"]
"#;
