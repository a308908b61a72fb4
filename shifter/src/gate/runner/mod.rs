//! The runner of programs: a small process of its own that may become another
//! user, which the agent may not.
//!
//! An agent that root starts starts its runner before it gives up its own
//! capabilities; it ends with the agent. Under systemd the agent never had them, and
//! shifter-runner.socket starts one when it is first asked. Both listen on
//! descriptor 3 and take one request a connection: a line of JSON, answered by one.

mod check;
mod run;

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::RunnerAt;
use crate::{
    agent::{peer, privilege},
    model::config::AgentConfig,
};

/// Programs at once.
const MOST: usize = 16;
/// Bytes of a request.
const REQUEST: u64 = 64 * 1024;
/// The socket that listens, as systemd hands it over.
const LISTENER: i32 = 3;

/// A program to be run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Name of a file in `exec_dir`.
    pub file: String,
    pub timeout_ms: u64,
    /// All of its environment, but `PATH`. Keys begin with `SHIFTER_`.
    pub environment: Vec<(String, String)>,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Ended {
        code: i32,
        /// The beginning of what it wrote, to both outputs.
        output: String,
    },
    Killed {
        signal: i32,
    },
    /// The runner ended it, for its time or its output.
    Stopped {
        text: String,
    },
    /// It was not run, or nobody knows how it went: why.
    Refused {
        text: String,
    },
}

impl Answer {
    /// Bytes of an answer.
    pub const MOST: u64 = 64 * 1024;
}

/// Finds who runs programs for this agent; to be called while there is one thread
/// and nothing was given up.
pub fn start(config: &AgentConfig, path: &Path) -> Option<RunnerAt> {
    config.gates.exec_dir.as_ref()?;
    let unit = config.unix.with_file_name("runner.sock");
    if !privilege::may_change_user() {
        return Some(RunnerAt::Unit(unit));
    }
    match start_own(path) {
        Ok(at) => Some(at),
        Err(error) => {
            tracing::error!(%error, "starting the runner of programs failed; exec gates end with an error");
            Some(RunnerAt::Unit(unit))
        }
    }
}

fn start_own(config: &Path) -> io::Result<RunnerAt> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    let name = format!("shifter-runner-{}-{nanos}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors there.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new, and nobody else's.
    let (lifeline, ours) =
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    let from = listener.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["runner", "--lifeline", "--config"])
        .arg(config)
        .env_clear()
        .stdin(Stdio::from(lifeline))
        .stdout(Stdio::null());
    // SAFETY: dup2(2), fcntl(2) and setsid(2) are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // A descriptor that is in place already keeps its mark.
            let is_placed = match from {
                LISTENER => libc::fcntl(from, libc::F_SETFD, 0) == 0,
                _ => libc::dup2(from, LISTENER) == LISTENER,
            };
            if !is_placed {
                return Err(io::Error::last_os_error());
            }
            // A signal to the agent's group is not the runner's.
            libc::setsid();
            Ok(())
        });
    }
    command.spawn()?;
    // Held until this process ends, however it does: the other end then reads its end.
    std::mem::forget(ours);
    Ok(RunnerAt::Own(name))
}

/// Groups of programs that run.
type Running = Arc<Mutex<BTreeSet<i32>>>;

/// `shifter runner`: serves until its lifeline ends, or for ever.
pub fn serve(config: &AgentConfig, has_lifeline: bool) -> io::Result<()> {
    privilege::keep_for_runner()?;
    // SAFETY: takes numbers, concerns this process.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let running = Running::default();
    if has_lifeline {
        let running = Arc::clone(&running);
        std::thread::spawn(move || follow_lifeline(&running));
    }
    // SAFETY: takes numbers. No program may have what the agent connects to.
    if unsafe { libc::fcntl(LISTENER, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: whoever started this process handed it over, and it is nobody else's.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER) };
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let (running, gates) = (Arc::clone(&running), config.gates.clone());
                let serve = move || answer(stream, &gates, &running);
                if let Err(error) = std::thread::Builder::new().spawn(serve) {
                    eprintln!("shifter runner: no thread for a request: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Err(error),
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Err(error),
            Err(error) => {
                eprintln!("shifter runner: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn follow_lifeline(running: &Running) {
    let mut byte = [0];
    // Nobody writes there.
    while io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
    for group in lock(running).iter() {
        run::kill_all(*group);
    }
    std::process::exit(0);
}

fn lock(running: &Running) -> std::sync::MutexGuard<'_, BTreeSet<i32>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: UnixStream, gates: &crate::model::gates::GatesConfig, running: &Running) {
    let refused = |text: String| Answer::Refused { text };
    let answer = match request(&stream) {
        Err(text) => refused(text),
        Ok(request) => match &gates.exec_dir {
            None => refused("there is no exec_dir in [gates] of the agent's file".into()),
            Some(_) if lock(running).len() >= MOST => refused(format!(
                "{MOST} programs run already: it is tried again later"
            )),
            Some(dir) => run::run(&request, dir, &gates.exec_user, running)
                .unwrap_or_else(|error| refused(error.to_string())),
        },
    };
    if let Ok(text) = serde_json::to_string(&answer) {
        // Who has gone wants no answer.
        let _ = stream.write_all(text.as_bytes());
    }
}

fn request(stream: &UnixStream) -> Result<Request, String> {
    // Of the peer at connect(2): root, or whoever runs this.
    let peer = peer::of(stream);
    // SAFETY: it cannot fail and touches no memory.
    let own = unsafe { libc::geteuid() };
    if peer.is_none_or(|peer| peer.uid != own) {
        return Err(format!("only user {own} may have programs run"));
    }
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).map_err(|e| e.to_string())?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST))
        .read_line(&mut line)
        .map_err(|error| format!("reading the request failed: {error}"))?;
    serde_json::from_str(&line).map_err(|error| format!("no request: {error}"))
}
