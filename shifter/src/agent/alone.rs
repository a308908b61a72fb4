//! One agent per network namespace, whatever BPF file system it pins in: two
//! would replace each other's programs on the same interfaces.

use std::{
    io,
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Name of an abstract socket, of which there is one in each network namespace.
const NAME: &str = "shifter-agent";

/// Held as long as this agent runs; the kernel frees the name with the process.
pub struct Alone {
    _listener: Option<UnixListener>,
}

/// Makes sure that no other agent runs in this network namespace.
///
/// # Errors
/// One that names the other, by its process.
pub fn claim() -> Result<Alone> {
    let name = SocketAddr::from_abstract_name(NAME).context("naming the agent's lock")?;
    let listener = match UnixListener::bind_addr(&name) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            refuse_beside(&name)?;
            return Ok(Alone { _listener: None });
        }
        Err(error) => return Err(error).context("taking the lock of this network namespace"),
    };
    let door = listener.try_clone().context("sharing the agent's lock")?;
    // Who asks for the holder's name hangs up at once; a queue that nobody
    // empties would make the 129th wait.
    std::thread::Builder::new()
        .name("alone".into())
        .spawn(move || {
            loop {
                if door.accept().is_err() {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        })
        .context("starting a thread")?;
    Ok(Alone {
        _listener: Some(listener),
    })
}

/// How long a holder of the name may take to answer: an agent always listens.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refuses if the holder may be an agent. Anybody may take the name, but an
/// agent answers, and is root's or this user's: nobody else keeps this one from
/// starting.
fn refuse_beside(name: &SocketAddr) -> Result<()> {
    let Some(peer) = holder(name) else {
        tracing::warn!(
            "a process that is no agent holds the abstract socket {NAME:?} and does not answer (see `ss -xap`): a second agent would not be noticed"
        );
        return Ok(());
    };
    // SAFETY: it cannot fail and touches no memory.
    let own = unsafe { libc::geteuid() };
    if peer.uid == 0 || peer.uid == own {
        bail!(
            "process {} is the agent of this network namespace already (it holds the abstract socket {NAME:?}), with another bpffs: stop it first, or run this one in a network namespace of its own",
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

/// Who answers to the name. Asked in a thread of its own, which a full queue may
/// hold for as long as the process that keeps it full likes.
fn holder(name: &SocketAddr) -> Option<libc::ucred> {
    let (answer, answered) = std::sync::mpsc::channel();
    let name = name.clone();
    std::thread::spawn(move || {
        let stream = UnixStream::connect_addr(&name).ok();
        // Nobody may be waiting any more.
        let _ = answer.send(stream.and_then(|stream| peer(&stream)));
    });
    answered.recv_timeout(PATIENCE).ok().flatten()
}

/// Whoever called listen at the other end.
fn peer(stream: &UnixStream) -> Option<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: libc::gid_t::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `length` are valid for what the kernel writes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(peer)
}
