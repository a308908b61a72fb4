//! The binary as a shell meets it: exit codes, and which text goes where.

use std::process::{Command, Output};

fn shifter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shifter"))
        .args(args)
        .env("SHIFTER_ENDPOINT", "unix:///nonexistent/shifter.sock")
        .output()
        .unwrap()
}

#[test]
fn without_an_agent_the_answer_is_8_on_stderr() {
    for args in [
        &["status"][..],
        &["rollback", "web"],
        &["get", "flows", "-o", "json"],
    ] {
        let ran = shifter(args);
        assert_eq!(ran.status.code(), Some(8), "{args:?}");
        assert!(ran.stdout.is_empty(), "{args:?}");
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(said.contains("unix:///nonexistent/shifter.sock"), "{said}");
        assert!(
            said.contains("is it running?") && !said.contains('\x1b'),
            "{said}"
        );
    }
}

#[test]
fn wrong_usage_is_64_on_stderr_and_help_is_0_on_stdout() {
    let wrong = shifter(&["shift", "web"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(wrong.stdout.is_empty() && !wrong.stderr.is_empty());
    let help = shifter(&["rollback", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(help.stderr.is_empty() && !help.stdout.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_shifter"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = child.wait_with_output().unwrap();
    assert_eq!(
        (ran.status.code(), ran.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}
