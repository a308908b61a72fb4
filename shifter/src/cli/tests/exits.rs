//! How commands fail: exit code, and a message that helps.

use super::{ask, file, run};
use crate::control::testbed::{Directory, Testbed};

#[track_caller]
fn assert_fails(testbed: &Testbed, line: &str, code: u8, helps: &str) {
    let ran = ask(testbed, line);
    assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{}", ran.err);
    assert!(
        ran.err.contains(helps),
        "{:?} does not say {helps:?}",
        ran.err
    );
}

#[test]
fn an_agent_out_of_reach_is_8_and_says_what_to_do() {
    let directory = Directory::new();
    let path = directory.0.join("no.sock");
    let endpoint = format!("unix://{}", path.display());
    let ran = run(&["--endpoint", &endpoint, "get", "services"]);
    assert_eq!(ran.code, 8);
    assert!(
        ran.err.contains("there is no socket") && ran.err.contains("`shifter agent`"),
        "{}",
        ran.err
    );
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let ran = run(&["--endpoint", &endpoint, "rollback", "web"]);
    assert_eq!(ran.code, 8);
    assert!(ran.err.contains("nobody listens"), "{}", ran.err);
}

#[test]
fn an_agent_that_does_not_answer_is_6() {
    let directory = Directory::new();
    let path = directory.0.join("mute.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let endpoint = format!("unix://{}", path.display());
    let ran = run(&["--endpoint", &endpoint, "--timeout", "200ms", "status"]);
    assert_eq!(ran.code, 6, "{}", ran.err);
    assert!(ran.err.contains("within 0.2 s"), "{}", ran.err);
}

#[test]
fn refusals_carry_the_agents_words_and_their_code() {
    let testbed = Testbed::with_web();
    assert_fails(
        &testbed,
        "shift web --green 10% --if-match e0",
        3,
        "etag is e1",
    );
    assert_fails(&testbed, "get services nope", 1, "there are: web");
    assert_fails(&testbed, "get services nope -w", 1, "there are: web");
    assert_fails(&testbed, "delete web", 1, "3 flows on green");
    assert_fails(&testbed, "rollback web --to 99", 1, "generation 99");
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    let testbed = Testbed::with_web();
    for (line, helps) in [
        ("shift web", "--candidate"),
        ("shift web --green 5% --blue 5%", "cannot be used with"),
        (
            "shift web --green 5% --revert-after 10",
            "write numbers with units",
        ),
        ("shift web --green 500%", "is no weight"),
        ("shift web --candidate 5", "a fraction (1/3)"),
        ("plan web --blue half", "is no weight"),
        ("plan", "--file"),
        ("plan web", "--candidate"),
        ("plan -f x web --green 5%", "cannot be used with"),
        ("explain web nobody", "is no client"),
        ("get pods", "pods"),
        ("get foo", "'flows'"),
        ("fly", "fly"),
        ("apply", "--file"),
    ] {
        assert_fails(&testbed, line, 64, helps);
    }
    let ran = run(&["--endpoint", "http://127.0.0.1:1", "status"]);
    assert_eq!(ran.code, 64);
    // Who asks no agent has no use for a place to ask one at.
    let elsewhere = ["--endpoint", "unix:///tmp/elsewhere.sock"];
    for (line, says) in [
        (["agent", "--config=/nonexistent"], "`unix` in [api]"),
        (["detach", "--bpffs=/nonexistent"], "on this host itself"),
        (["prepare", "--config=/nonexistent"], "on this host itself"),
    ] {
        for ran in [
            run(&[&elsewhere[..], &line].concat()),
            run(&[&line[..], &elsewhere].concat()),
        ] {
            assert_eq!(ran.code, 64, "{line:?}: {}", ran.err);
            assert!(ran.err.contains(says), "{line:?}: {}", ran.err);
        }
    }
    for line in ["--help", "shift --help", "--version"] {
        let ran = ask(&testbed, line);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{line}");
        assert!(!ran.out.is_empty() && !ran.out.contains('\x1b'), "{line}");
    }
}

#[test]
fn a_bad_file_is_refused_with_its_place_and_changes_nothing() {
    let testbed = Testbed::with_web();
    let path = file(
        &testbed,
        "bad.toml",
        "[[service]]\nname = \"x\"\nvipp = \"1.2.3.4:5/tcp\"\n",
    );
    assert_fails(&testbed, &format!("apply -f {}", path.display()), 1, "vipp");
    let path = file(&testbed, "empty.toml", "");
    assert_fails(
        &testbed,
        &format!("apply -f {}", path.display()),
        1,
        "there is no service in this file",
    );
    assert_fails(
        &testbed,
        "apply -f /nowhere/services.toml",
        1,
        "/nowhere/services.toml",
    );
    let ran = ask(&testbed, "get services");
    assert_eq!(ran.out.lines().count(), 2, "{}", ran.out);
}

#[test]
fn a_watch_in_json_is_one_line_a_change_and_ends_with_the_agent() {
    let mut testbed = Testbed::with_web();
    let endpoint = format!("unix://{}", testbed.path().display());
    let watch = std::thread::spawn(move || {
        run(&[
            "--endpoint",
            &endpoint,
            "-o",
            "json",
            "get",
            "services",
            "-w",
        ])
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    testbed.agent.edit("web", |view| view.generation = 9);
    std::thread::sleep(std::time::Duration::from_millis(300));
    testbed.stop().unwrap();
    let ran = watch.join().unwrap();
    assert_eq!(ran.code, 8, "{}", ran.err);
    let kinds: Vec<_> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].clone())
        .collect();
    assert_eq!(kinds, ["present", "synced", "changed"]);
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let testbed = Testbed::with_web();
    let endpoint = format!("unix://{}", testbed.path().display());
    for format in ["table", "json"] {
        let args = [
            "shifter",
            "--endpoint",
            &endpoint,
            "-o",
            format,
            "get",
            "services",
        ];
        let mut err = Vec::new();
        let mut closed = Closed;
        let mut screen = crate::cli::Screen::new((&mut closed, false), (&mut err, false));
        let code = crate::cli::run(args.map(Into::into), &mut screen);
        assert_eq!(
            (code, String::from_utf8(err).unwrap().as_str()),
            (0, ""),
            "{format}"
        );
    }
}
