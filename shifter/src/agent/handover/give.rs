//! The old agent's side.

use std::{
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;

use super::{Offer, Said, VERSION, wire};
use crate::{
    agent::{
        alone, peer,
        supervise::{Stopped, blocking},
    },
    control::Socket,
};

/// How long a process that connects may take to say what it wants.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// How often the old agent looks up while it waits.
const LOOK_UP: Duration = Duration::from_millis(500);

/// A new agent that wants to take over.
pub struct Asked {
    stream: UnixStream,
    pub pid: i32,
}

/// What the new agent says after an offer.
pub enum Answer {
    /// It is attached, and has taken these paths over.
    Ready(Vec<PathBuf>),
    /// It is not there any more, or says why it could not.
    Failed(String),
    /// Nothing yet.
    Waiting,
}

/// Accepts who asks to take over, one at a time, until `stopped`.
pub async fn listen(socket: Socket, asks: mpsc::Sender<Asked>, mut stopped: Stopped) -> Result<()> {
    let (listener, _place) = socket.into_listener()?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        let stream = match stream {
            Ok((stream, _)) => stream.into_std().context("taking a connection over")?,
            Err(error) => {
                // Out of descriptors, mostly: wait for some to come free.
                tracing::warn!(%error, "a connection to the handover socket could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(asked) = blocking(move || hear(stream)).await? else {
            continue;
        };
        if let Err(refused) = asks.try_send(asked) {
            let asked = refused.into_inner();
            asked.refuse("another agent is taking over just now: try again");
        }
    }
}

/// What a process that has connected asks, if it may.
fn hear(stream: UnixStream) -> Option<Asked> {
    let peer = peer::of(&stream)?;
    let limits = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(ASK_WAIT)))
        .and_then(|()| stream.set_write_timeout(Some(ASK_WAIT)));
    if !alone::is_agent(&peer) || limits.is_err() {
        tracing::warn!(
            uid = peer.uid,
            "a process of another user may not take over"
        );
        return None;
    }
    let asked = Asked {
        stream,
        pid: peer.pid,
    };
    match wire::receive(&asked.stream) {
        Ok(Some((Said::Ask { version }, _))) if version == VERSION => Some(asked),
        Ok(Some((Said::Ask { version }, _))) => {
            asked.refuse(&format!(
                "it hands over by protocol {VERSION}, the new one asks by {version}: stop it, then start the new one without --replace"
            ));
            None
        }
        Ok(Some(_)) => None,
        other => {
            tracing::debug!(?other, "who connected to the handover socket asked nothing");
            None
        }
    }
}

impl Asked {
    /// Nothing is handed over, and nothing has changed.
    pub fn refuse(self, why: &str) {
        tracing::warn!(to = self.pid, "did not make way: {why}");
        let why = why.to_owned();
        // One that has gone meanwhile needs no answer.
        let _ = wire::send(&self.stream, &Said::Refuse { why }, &[]);
    }

    /// Hands over these sockets. From now on the locks are the other's.
    pub fn offer(&self, offer: Offer, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        wire::send(&self.stream, &Said::Offer(offer), sockets)
    }

    /// Waits a little for what comes of it.
    pub async fn answer(&self) -> Answer {
        let stream = match self.stream.try_clone() {
            Ok(stream) => stream,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let heard = blocking(move || {
            stream.set_read_timeout(Some(LOOK_UP))?;
            wire::receive(&stream)
        });
        match heard.await {
            Ok(Ok(Some((Said::Ready { taken }, _)))) => Answer::Ready(taken),
            Ok(Ok(Some((Said::Failed { why }, _)))) => Answer::Failed(why),
            Ok(Ok(Some((other, _)))) => Answer::Failed(format!("it said {other:?}")),
            Ok(Ok(None)) => Answer::Failed("it ended".to_owned()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Answer::Waiting,
            Ok(Err(error)) => Answer::Failed(error.to_string()),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    /// Nobody accepts here any more.
    pub fn gone(self) {
        if let Err(error) = wire::send(&self.stream, &Said::Gone, &[]) {
            tracing::warn!(%error, to = self.pid, "the new agent has ended right after it was ready: start it again");
        }
    }
}
