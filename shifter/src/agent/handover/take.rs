//! The new agent's side.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Offer, Said, VERSION, wire};
use crate::{
    agent::{
        alone::{self, Holder},
        peer,
    },
    control::Socket,
    fault,
};

/// How long the old agent may take until it offers: writes under way, and a
/// pass of its tasks, come to their end first.
const OFFER_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to stop accepting once this one is ready.
const GONE_WAIT: Duration = Duration::from_secs(5);

/// What the old agent has handed over. Dropped without a word, the old one
/// takes everything back.
pub struct Handed {
    stream: UnixStream,
    /// The process that made way.
    pub pid: u32,
    pub offer: Offer,
    unix: Vec<Option<UnixListener>>,
    metrics: Option<TcpListener>,
    taken: Vec<PathBuf>,
}

/// Asks the agent that runs to make way; `None` where none runs.
///
/// # Errors
/// When it does not make way. Then it goes on as if nothing had happened.
pub fn ask() -> Result<Option<Handed>> {
    let Some(holder) = alone::holder()? else {
        tracing::info!("no agent runs here: there is nothing to take over");
        return Ok(None);
    };
    let pid = holder.pid;
    let Some(path) = &holder.handover else {
        bail!(
            "the running agent (process {pid}) is of a version that does not hand over: stop it, then start this one without --replace; packets do not notice"
        );
    };
    let stream = connect(path, pid)?;
    fault::point("replace_connected");
    wire::send(&stream, &Said::Ask { version: VERSION }, &[]).with_context(|| broken(pid))?;
    fault::point("replace_asked");
    match wire::receive(&stream) {
        Ok(Some((Said::Offer(offer), sockets))) => {
            let handed = Handed::new(stream, pid, offer, sockets)?;
            tracing::info!(from = pid, "the running agent makes way");
            fault::point("replace_offered");
            Ok(Some(handed))
        }
        Ok(Some((Said::Refuse { why }, _))) => {
            bail!("the running agent (process {pid}) does not make way and goes on: {why}")
        }
        Ok(None) if has_ended(&holder) => {
            tracing::warn!(from = pid, "the running agent ended before it made way");
            Ok(None)
        }
        Ok(_) => bail!("{}", broken(pid)),
        Err(error) => Err(error).with_context(|| broken(pid)),
    }
}

fn connect(path: &Path, pid: u32) -> Result<UnixStream> {
    let unreachable = || {
        format!(
            "asking the running agent (process {pid}) to make way at {}: run this as the user that it runs as (root), where its files are seen; or stop it first",
            path.display()
        )
    };
    let stream = UnixStream::connect(path).with_context(unreachable)?;
    let peer = peer::of(&stream);
    if !peer.as_ref().is_some_and(alone::is_agent) {
        bail!(
            "what answers at {} is no agent of this user: see who holds that path; nothing was taken over",
            path.display()
        );
    }
    stream
        .set_read_timeout(Some(OFFER_WAIT))
        .with_context(unreachable)?;
    Ok(stream)
}

fn broken(pid: u32) -> String {
    format!(
        "the running agent (process {pid}) did not answer when asked to make way: see its log; stop it and start this one without --replace, packets do not notice"
    )
}

/// Whether the process is gone; the kernel may need a moment for it.
fn has_ended(holder: &Holder) -> bool {
    (0..100).any(|_| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", holder.pid));
        let state = stat.ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            rest.trim_start().chars().next()
        });
        let ended = matches!(state, None | Some('Z' | 'X'));
        if !ended {
            std::thread::sleep(Duration::from_millis(20));
        }
        ended
    })
}

impl Handed {
    fn new(stream: UnixStream, pid: u32, offer: Offer, sockets: Vec<OwnedFd>) -> Result<Self> {
        let wanted = offer.unix.len() + usize::from(offer.metrics.is_some());
        if sockets.len() != wanted {
            bail!(
                "the running agent (process {pid}) offered {} sockets for {wanted} names: raise the limit of open files (LimitNOFILE=) and try again; it goes on",
                sockets.len()
            );
        }
        let mut sockets = sockets.into_iter();
        let unix = sockets.by_ref().take(offer.unix.len());
        let unix = unix.map(|socket| Some(socket.into())).collect();
        Ok(Self {
            stream,
            pid,
            unix,
            metrics: sockets.next().map(TcpListener::from),
            offer,
            taken: Vec::new(),
        })
    }

    /// The listening socket at a path, if the old agent has it.
    pub fn unix(&mut self, path: &Path) -> Option<Socket> {
        let at = self.offer.unix.iter().position(|(is, _)| is == path)?;
        let listener = self.unix[at].take()?;
        let socket = Socket::adopt(listener, path, self.offer.unix[at].1)?;
        self.taken.push(path.to_owned());
        Some(socket)
    }

    /// The listener of metrics, if the old agent has it at this address.
    pub fn metrics(&mut self, listen: SocketAddr) -> Option<TcpListener> {
        (self.offer.metrics == Some(listen)).then_some(())?;
        self.metrics.take()
    }

    /// Has the old agent go on.
    pub fn fail(self, error: &anyhow::Error) {
        let why = format!("{error:#}");
        // One that has gone meanwhile cannot go on.
        let _ = wire::send(&self.stream, &Said::Failed { why }, &[]);
    }

    /// This agent is attached. Waits until the old one accepts no more; it
    /// never comes back after that.
    pub fn ready(self) {
        let taken = self.taken;
        let told = wire::send(&self.stream, &Said::Ready { taken }, &[]);
        fault::point("replace_ready");
        let gone = told
            .and_then(|()| self.stream.set_read_timeout(Some(GONE_WAIT)))
            .and_then(|()| wire::receive(&self.stream));
        match gone {
            Ok(Some((Said::Gone, _))) => tracing::info!(from = self.pid, "took over"),
            Ok(None) => tracing::info!(from = self.pid, "took over; the other one has ended"),
            other => tracing::warn!(
                from = self.pid,
                ?other,
                "took over from an agent that does not say that it has gone: it may answer reads as long as it runs"
            ),
        }
    }
}
