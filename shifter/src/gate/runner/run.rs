//! One program, as another user, within bounds.

use std::{
    fs, io,
    io::Read as _,
    os::{
        fd::AsRawFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    Answer, Request, Running,
    check::{self, CheckError},
    lock,
};

/// Bytes that a program may write.
const OUTPUT: usize = 64 * 1024;
/// Of which so many go into the answer.
const SHOWN: usize = 4 * 1024;
/// So long it is tried to end all that a program has started.
const KILLING: Duration = Duration::from_secs(2);
const PASSWD: &str = "/etc/passwd";

/// Why a program was not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("there is no user {0:?} in {PASSWD}: set exec_user of [gates] in the agent's file")]
    NoUser(String),
    #[error("user {0:?} is root: set exec_user of [gates] to one without privileges")]
    Root(String),
    #[error("{0:?} is no variable for a program: their names begin with SHIFTER_")]
    Variable(String),
    #[error("starting {path} failed: {error}")]
    Start { path: String, error: io::Error },
}

/// Uid and gid of a user, by name.
fn user(name: &str) -> Result<(u32, u32), RunError> {
    let passwd = fs::read_to_string(PASSWD).unwrap_or_default();
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    });
    match ids {
        None => Err(RunError::NoUser(name.into())),
        Some((0, _) | (_, 0)) => Err(RunError::Root(name.into())),
        Some(ids) => Ok(ids),
    }
}

/// Runs it to its end, or to that of its time or output.
pub(super) fn run(
    request: &Request,
    dir: &Path,
    exec_user: &str,
    running: &Running,
) -> Result<Answer, RunError> {
    let path = check::program(dir, &request.file)?;
    let (uid, gid) = user(exec_user)?;
    let timeout = Duration::from_millis(request.timeout_ms.clamp(1, 300_000));
    let mut command = Command::new(&path);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for (key, value) in &request.environment {
        if !key.starts_with("SHIFTER_") || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(RunError::Variable(key.clone()));
        }
        command.env(key, value);
    }
    let seconds = timeout.as_secs() + 1;
    // SAFETY: every call in there is async-signal-safe.
    unsafe {
        command.pre_exec(move || become_user(uid, gid).and_then(|()| confine(seconds)));
    }
    let child = command.spawn().map_err(|error| RunError::Start {
        path: path.display().to_string(),
        error,
    })?;
    let group = child.id() as i32;
    lock(running).insert(group);
    let answer = follow(child, timeout, &request.file);
    lock(running).remove(&group);
    Ok(answer)
}

/// The group that marks a program and all that it starts: its pid is added. Without
/// CAP_SETGID nobody leaves a group, so none of them gets rid of it. No file is its.
const MARK: u32 = 0x7300_0000;

fn mark(pid: i32) -> u32 {
    MARK + pid as u32
}

/// In the child: the user, with no group but its own and the mark.
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: numbers, and a list of one that lives over the call.
    let failed = unsafe {
        let groups = [mark(libc::getpid())];
        libc::setgroups(groups.len(), groups.as_ptr()) != 0
            || libc::setgid(gid) != 0
            || libc::setuid(uid) != 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// In the child, as the user: a session of its own, no way to more rights, bounds.
fn confine(cpu_s: u64) -> io::Result<()> {
    let bounds = [
        (libc::RLIMIT_CPU, cpu_s),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, 1 << 20),
        (libc::RLIMIT_NOFILE, 256),
    ];
    // SAFETY: numbers, and a structure that lives over the call. Both outputs are
    // one pipe, so that their order is kept.
    let failed = unsafe {
        libc::setsid() < 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            // The end of the runner is the end of it, however the runner ends.
            || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0
            || libc::dup2(1, 2) < 0
            // Whatever the runner was started with is not the program's.
            || libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0
            || bounds.into_iter().any(|(what, most)| {
                let limit = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: most,
                };
                libc::setrlimit(what, &raw const limit) != 0
            })
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

fn follow(mut child: Child, timeout: Duration, file: &str) -> Answer {
    let begun = Instant::now();
    let group = child.id() as i32;
    let mut output = Vec::new();
    let mut pipe = child.stdout.take();
    let end = |child: &mut Child| {
        kill_all(group);
        let _ = child.wait();
    };
    loop {
        if output.len() > OUTPUT {
            let text = format!("{file} wrote more than {OUTPUT} bytes and was ended");
            end(&mut child);
            return Answer::Stopped { text };
        }
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let text = format!(
                "{file} took longer than {} ms and was ended",
                timeout.as_millis()
            );
            end(&mut child);
            return Answer::Stopped { text };
        }
        match has_ended(group) {
            Ok(false) => {}
            Ok(true) => {
                // Before it is reaped: until then nobody else can have its number.
                kill_all(group);
                // What is left in the pipe, and nothing that comes later.
                while read_some(&mut pipe, &mut output, Duration::ZERO) && output.len() <= OUTPUT {}
                return ended(&mut child, output, file);
            }
            Err(error) => {
                let text = format!("waiting for {file} failed: {error}");
                end(&mut child);
                return Answer::Refused { text };
            }
        }
        // Both its end and its output are looked for this often.
        let pause = left.min(Duration::from_millis(5));
        if !read_some(&mut pipe, &mut output, pause) {
            std::thread::sleep(pause);
        }
    }
}

fn ended(child: &mut Child, mut output: Vec<u8>, file: &str) -> Answer {
    output.truncate(SHOWN);
    match child.wait() {
        Ok(status) => match status.code() {
            Some(code) => Answer::Ended {
                code,
                output: String::from_utf8_lossy(&output).into_owned(),
            },
            None => Answer::Killed {
                signal: status.signal().unwrap_or(0),
            },
        },
        Err(error) => Answer::Refused {
            text: format!("waiting for {file} failed: {error}"),
        },
    }
}

/// Whether a child has ended; it is left to be waited for.
fn has_ended(pid: i32) -> io::Result<bool> {
    // SAFETY: zeroes are a siginfo; it lives over the call.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: as above.
    let result = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, how) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid(2) has filled it in, or left the zeroes.
    Ok(unsafe { info.si_pid() } == pid)
}

/// Reads what comes within a time; false if nothing did.
fn read_some(
    pipe: &mut Option<std::process::ChildStdout>,
    output: &mut Vec<u8>,
    wait: Duration,
) -> bool {
    let Some(from) = pipe else { return false };
    let mut poll = libc::pollfd {
        fd: from.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which lives over the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, wait.as_millis() as i32) };
    if ready <= 0 {
        return false;
    }
    let mut bytes = [0; 4096];
    match from.read(&mut bytes) {
        Ok(0) | Err(_) => {
            *pipe = None;
            false
        }
        Ok(count) => {
            output.extend_from_slice(&bytes[..count]);
            true
        }
    }
}

/// Ends a program and all that it started, in whatever group or session that is.
pub(super) fn kill_all(program: i32) {
    // SAFETY: takes numbers. A group that is gone is no fault.
    unsafe {
        libc::kill(-program, libc::SIGKILL);
    }
    let begun = Instant::now();
    // Again until none is left: one may have started another meanwhile.
    while kill_marked(mark(program)) && begun.elapsed() < KILLING {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills those that live in a group; false if there was none.
fn kill_marked(group: u32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let mut found = false;
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|n| n.parse().ok());
        let Some(pid) = pid.filter(|pid: &i32| *pid > 1) else {
            continue;
        };
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        if lives_in(&status, group) {
            found = true;
            // SAFETY: takes numbers.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
            }
        }
    }
    found
}

/// Whether a /proc/PID/status is that of a process in a group that has not ended.
fn lives_in(status: &str, group: u32) -> bool {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let has_ended = value("State:").is_some_and(|s| s.trim_start().starts_with(['Z', 'X']));
    let mut groups = value("Groups:").unwrap_or_default().split_whitespace();
    !has_ended && groups.any(|number| number.parse() == Ok(group))
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
