//! One agent per network namespace, whatever BPF file system it pins in: two
//! would replace each other's programs on the same interfaces.
//!
//! Who holds the name tells whoever asks where it may be asked to hand over.
//! That is asked at a path, not here: who shares the network namespace but not
//! the file system, as a container may, reaches this name.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::peer;

/// Name of an abstract socket, of which there is one in each network namespace.
const NAME: &str = "shifter-agent";
/// How long a holder of the name may take to answer: an agent always listens.
const PATIENCE: Duration = Duration::from_secs(2);
/// A path is no longer than this.
const LONGEST_PATH: u64 = 4_096;

/// Held as long as this agent runs; the kernel frees the name with the process,
/// dropping it does so before.
pub struct Alone {
    _door: Option<Door>,
}

struct Door {
    listener: UnixListener,
    closed: Arc<AtomicBool>,
    answers: Option<JoinHandle<()>>,
}

/// The agent that holds the name.
#[derive(Debug)]
pub struct Holder {
    pub pid: u32,
    /// Where it can be asked to hand over; older versions know of no such thing.
    pub handover: Option<PathBuf>,
}

/// Makes sure that no other agent runs in this network namespace. `handover`
/// is where this one can be asked to make way.
///
/// # Errors
/// One that names the other, by its process.
pub fn claim(handover: &Path) -> Result<Alone> {
    let name = name()?;
    let listener = match UnixListener::bind_addr(&name) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            refuse_beside(&name)?;
            return Ok(Alone { _door: None });
        }
        Err(error) => return Err(error).context("taking the lock of this network namespace"),
    };
    let door = listener.try_clone().context("sharing the agent's lock")?;
    let closed = Arc::new(AtomicBool::new(false));
    let is_closed = Arc::clone(&closed);
    let path = handover.as_os_str().as_bytes().to_vec();
    // Who asks for the holder's name hangs up at once; a queue that nobody
    // empties would make the 129th wait.
    let answers = std::thread::Builder::new()
        .name("alone".into())
        .spawn(move || {
            while !is_closed.load(Ordering::Acquire) {
                match door.accept() {
                    // Whoever has gone needs no answer; it fits the queue of a new socket.
                    Ok((mut stream, _)) => drop(stream.write_all(&path)),
                    Err(_) if is_closed.load(Ordering::Acquire) => {}
                    Err(_) => std::thread::sleep(Duration::from_secs(1)),
                }
            }
        })
        .context("starting a thread")?;
    let door = Door {
        listener,
        closed,
        answers: Some(answers),
    };
    Ok(Alone { _door: Some(door) })
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        // SAFETY: a descriptor that is open; it wakes the thread that accepts.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        // Its copy of the socket keeps the name.
        let _ = self.answers.take().map(JoinHandle::join);
    }
}

/// The agent that runs in this network namespace, if one does.
pub fn holder() -> Result<Option<Holder>> {
    let name = name()?;
    let Some(answer) = ask(&name).filter(|answer| is_agent(&answer.peer)) else {
        return Ok(None);
    };
    let path = (!answer.path.is_empty()).then(|| std::ffi::OsStr::from_bytes(&answer.path).into());
    Ok(Some(Holder {
        pid: answer.peer.pid.cast_unsigned(),
        handover: path,
    }))
}

fn name() -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME).context("naming the agent's lock")
}

/// Refuses if the holder may be an agent. Anybody may take the name, but an
/// agent answers, and is root's or this user's: nobody else keeps this one from
/// starting.
fn refuse_beside(name: &SocketAddr) -> Result<()> {
    let Some(Answer { peer, .. }) = ask(name) else {
        tracing::warn!(
            "a process that is no agent holds the abstract socket {NAME:?} and does not answer (see `ss -xap`): a second agent would not be noticed"
        );
        return Ok(());
    };
    if is_agent(&peer) {
        bail!(
            "process {} is the agent of this network namespace already (it holds the abstract socket {NAME:?}): `shifter agent --replace` takes over from it; or stop it first, or run this one in a network namespace of its own",
            peer.pid
        );
    }
    tracing::warn!(
        pid = peer.pid,
        uid = peer.uid,
        "a process that is no agent holds the abstract socket {NAME:?}: a second agent would not be noticed"
    );
    Ok(())
}

/// Whether whoever holds the name may be an agent.
pub fn is_agent(peer: &libc::ucred) -> bool {
    // SAFETY: it cannot fail and touches no memory.
    let own = unsafe { libc::geteuid() };
    peer.uid == 0 || peer.uid == own
}

struct Answer {
    peer: libc::ucred,
    path: Vec<u8>,
}

/// Who answers to the name, and what. Asked in a thread of its own, which a full
/// queue may hold for as long as the process that keeps it full likes.
fn ask(name: &SocketAddr) -> Option<Answer> {
    let (answer, answered) = std::sync::mpsc::channel();
    let name = name.clone();
    std::thread::spawn(move || {
        let heard = UnixStream::connect_addr(&name).ok().and_then(|stream| {
            let peer = peer::of(&stream)?;
            let mut path = Vec::new();
            // One that says nothing is an agent of an older version, or none.
            let _ = stream.set_read_timeout(Some(PATIENCE / 2));
            let _ = stream.take(LONGEST_PATH).read_to_end(&mut path);
            Some(Answer { peer, path })
        });
        // Nobody may be waiting any more.
        let _ = answer.send(heard);
    });
    answered.recv_timeout(PATIENCE).ok().flatten()
}
