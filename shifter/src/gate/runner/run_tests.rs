//! Tests of programs that hang, write without end, leave others behind, want more
//! rights, or are not root's. They need root, as the runner does.

use std::{
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::PathBuf,
    sync::Arc,
};

use super::*;

/// A directory of root's that nobody else can write; gone when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Option<Self> {
        // SAFETY: it cannot fail and touches no memory.
        if unsafe { libc::geteuid() } != 0 {
            assert!(std::env::var_os("CI").is_none(), "skipped: not root");
            eprintln!("skipped: running a program as another user needs root");
            return None;
        }
        let path = PathBuf::from(format!("/run/shifter-runner-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        mode(&path, 0o755);
        Some(Self(path))
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        mode(&path, 0o755);
        path
    }

    fn run(&self, file: &str, timeout_ms: u64) -> Result<Answer, RunError> {
        let request = Request {
            file: file.into(),
            timeout_ms,
            environment: vec![("SHIFTER_SERVICE".into(), "web".into())],
        };
        run(&request, &self.0, "nobody", &Running::default())
    }

    fn output(&self, text: &str) -> (i32, String) {
        self.script("it", text);
        match self.run("it", 20_000) {
            Ok(Answer::Ended { code, output }) => (code, output),
            other => panic!("{text}: {other:?}"),
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_program_is_nobody_and_has_nothing() {
    let Some(dir) = Dir::new("rights") else {
        return;
    };
    let (code, output) = dir.output("id -u; id -G; cat /proc/self/status; exit 3");
    assert_eq!(code, 3);
    let passwd_uid = user("nobody").unwrap().0;
    assert!(output.starts_with(&format!("{passwd_uid}\n")), "{output}");
    assert!(output.contains("NoNewPrivs:\t1"), "{output}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            output.contains(&format!("{set}:\t0000000000000000")),
            "{output}"
        );
    }
    let groups: Vec<u32> = output
        .lines()
        .nth(1)
        .unwrap()
        .split(' ')
        .map(|g| g.parse().unwrap())
        .collect();
    assert!(
        groups.len() == 2 && groups[1] > MARK,
        "its own and its mark: {groups:?}"
    );
    // SAFETY: a variable of this test's process alone.
    unsafe { std::env::set_var("SHIFTER_SECRET_OF_THE_TEST", "1") };
    let (_, output) = dir.output("env | sort; pwd; ls -l /proc/self/fd | wc -l");
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines.contains(&"SHIFTER_SERVICE=web"), "{output}");
    assert!(!output.contains("SECRET"), "{output}");
    assert!(lines.contains(&"/"), "{output}");
}

#[test]
fn a_program_gains_no_rights_by_files_that_give_them() {
    let Some(dir) = Dir::new("suid") else { return };
    let copy = dir.0.join("id-of-root");
    fs::copy("/usr/bin/id", &copy).unwrap();
    mode(&copy, 0o4755);
    let (_, output) = dir.output(&format!("{} -u", copy.display()));
    assert_eq!(output.trim(), user("nobody").unwrap().0.to_string());
    let (_, output) = dir.output("cat /etc/shadow; kill -0 1; echo x > /run/shifter-x; true");
    assert!(!output.contains("root:"), "{output}");
    assert!(!Path::new("/run/shifter-x").exists());
}

#[test]
fn a_program_that_hangs_is_ended_with_what_it_started() {
    let Some(dir) = Dir::new("hang") else { return };
    let mark = format!("{}.5", 86_000 + std::process::id() % 1_000);
    dir.script(
        "it",
        &format!("trap '' TERM INT HUP; sleep {mark} & sleep {mark}"),
    );
    let begun = Instant::now();
    let answer = dir.run("it", 300).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    let Answer::Stopped { text } = answer else {
        panic!("{answer:?}")
    };
    assert!(text.contains("longer than 300 ms"), "{text}");
    // One that ends and leaves another behind that holds the pipe open.
    dir.script("left", &format!("sleep {mark} & exit 0"));
    let begun = Instant::now();
    let answer = dir.run("left", 20_000).unwrap();
    assert!(
        matches!(answer, Answer::Ended { code: 0, .. }),
        "{answer:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    let begun = Instant::now();
    while lives(&mark) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!lives(&mark));
}

/// Whether a process with this in its command line lives.
fn lives(part: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|p| fs::read(p.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(part))
}

#[test]
fn what_left_its_session_does_not_outlive_it() {
    let Some(dir) = Dir::new("session") else {
        return;
    };
    // Another of its user that the runner did not start; nor does it end it.
    let own = format!("{}.7", 88_000 + std::process::id() % 1_000);
    let mut other = Command::new("sleep").arg(&own).uid(65534).spawn().unwrap();
    let mark = format!("{}.7", 87_000 + std::process::id() % 1_000);
    let away = format!("(setsid sh -c 'env -i sleep {mark} & sleep {mark}' >/dev/null 2>&1 &)");
    dir.script("it", &format!("{away}; sleep 0.2; {away}; sleep 60"));
    dir.script("ends", &format!("{away}; sleep 0.2; exit 0"));
    let answer = dir.run("it", 1_000).unwrap();
    assert!(matches!(answer, Answer::Stopped { .. }), "{answer:?}");
    assert!(!lives(&mark));
    let answer = dir.run("ends", 20_000).unwrap();
    assert!(
        matches!(answer, Answer::Ended { code: 0, .. }),
        "{answer:?}"
    );
    assert!(!lives(&mark));
    assert!(lives(&own));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn what_the_runner_inherited_does_not_reach_a_program() {
    let Some(dir) = Dir::new("fds") else { return };
    let file = fs::File::open("/etc/hostname").unwrap();
    // SAFETY: takes a number. A copy that an exec keeps.
    let left = unsafe { libc::dup(file.as_raw_fd()) };
    assert!(left > 2);
    let (_, output) = dir.output(&format!("readlink /proc/self/fd/{left}; true"));
    // SAFETY: it is this test's.
    unsafe { libc::close(left) };
    assert!(!output.contains("/etc/hostname"), "{output}");
}

#[test]
fn a_program_that_writes_without_end_is_ended() {
    let Some(dir) = Dir::new("write") else { return };
    dir.script(
        "it",
        "while :; do echo 0123456789012345678901234567890123456789; done",
    );
    let answer = dir.run("it", 60_000).unwrap();
    let Answer::Stopped { text } = answer else {
        panic!("{answer:?}")
    };
    assert!(text.contains("wrote more than"), "{text}");
    dir.script("killed", "kill -9 $$");
    assert_eq!(
        dir.run("killed", 20_000).unwrap(),
        Answer::Killed { signal: 9 }
    );
}

#[test]
fn what_is_not_roots_alone_is_not_run() {
    let Some(dir) = Dir::new("owner") else { return };
    let path = dir.script("it", "exit 0");
    let refused = |part: &str| {
        let error = dir.run("it", 1_000).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    mode(&path, 0o775);
    refused("may be written by others (mode 775)");
    mode(&path, 0o757);
    refused("may be written by others");
    mode(&path, 0o644);
    refused("is not executable");
    mode(&path, 0o755);
    chown(&path, Some(65534), None).unwrap();
    refused("belongs to user 65534");
    chown(&path, Some(0), None).unwrap();
    mode(&dir.0, 0o777);
    refused("may be written by others");
    mode(&dir.0, 0o755);
    chown(&dir.0, Some(65534), None).unwrap();
    refused("belongs to user 65534");
    chown(&dir.0, Some(0), None).unwrap();
    fs::remove_file(&path).unwrap();
    symlink("/bin/true", &path).unwrap();
    refused("is a link out of exec_dir");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("is no file");
    fs::remove_dir(&path).unwrap();
    refused("looking for the program");
    // A link that stays within is the program itself.
    dir.script("other", "exit 0");
    symlink("other", &path).unwrap();
    assert!(matches!(
        dir.run("it", 20_000),
        Ok(Answer::Ended { code: 0, .. })
    ));
    for file in ["../it", "a/b", "", ".", "..", ".hidden"] {
        let error = dir.run(file, 1_000).unwrap_err().to_string();
        assert!(error.contains("is no name of a file"), "{file}: {error}");
    }
}

#[test]
fn a_directory_by_a_link_or_in_a_place_of_everybody_is_refused() {
    let Some(dir) = Dir::new("dir") else { return };
    dir.script("it", "exit 0");
    let link = dir.0.join("link");
    symlink(&dir.0, &link).unwrap();
    let request = Request {
        file: "it".into(),
        timeout_ms: 1_000,
        environment: Vec::new(),
    };
    let running: Running = Arc::default();
    let error = run(&request, &link, "nobody", &running).unwrap_err();
    assert!(error.to_string().contains("write that"), "{error}");
    let open = std::env::temp_dir().join(format!("shifter-runner-{}", std::process::id()));
    fs::create_dir_all(&open).unwrap();
    fs::copy(dir.0.join("it"), open.join("it")).unwrap();
    let error = run(&request, &open, "nobody", &running).unwrap_err();
    assert!(error.to_string().contains("written by others"), "{error}");
    fs::remove_dir_all(open).unwrap();
    for (user, part) in [("root", "is root"), ("no-such-user", "there is no user")] {
        let error = run(&request, &dir.0, user, &running).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let more = Request {
        environment: vec![("LD_PRELOAD".into(), "x".into())],
        ..request
    };
    let error = run(&more, &dir.0, "nobody", &running).unwrap_err();
    assert!(error.to_string().contains("begin with SHIFTER_"), "{error}");
}
