//! The sockets that the agent listens on. They outlive a handover.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::handover::{Handed, Offer, Watched};
use crate::{control::Socket, model::config::AgentConfig, telemetry};

/// What is bound, or was taken over.
pub struct Doors {
    pub api: Socket,
    pub handover: Socket,
    metrics: Option<(SocketAddr, TcpListener)>,
}

/// Where an agent is asked to make way.
pub fn handover_path(config: &AgentConfig) -> PathBuf {
    let mut path = config.unix.clone().into_os_string();
    path.push(".handover");
    path.into()
}

impl Doors {
    /// Takes over what the old agent has under the same names, and binds the rest.
    pub async fn open(config: &AgentConfig, mut handed: Option<&mut Handed>) -> Result<Self> {
        let mut unix = |path: &Path| {
            let taken = handed.as_deref_mut().and_then(|handed| handed.unix(path));
            taken.map_or_else(|| Socket::bind(path), Ok)
        };
        let (api, handover) = (unix(&config.unix)?, unix(&handover_path(config))?);
        let metrics = match config.metrics {
            None => None,
            Some(listen) => {
                let taken = handed.and_then(|handed| handed.metrics(listen));
                let listener = match taken {
                    Some(listener) => listener,
                    None => telemetry::bind(listen)
                        .await?
                        .into_std()
                        .context("keeping the metrics' listener")?,
                };
                Some((listen, listener))
            }
        };
        Ok(Self {
            api,
            handover,
            metrics,
        })
    }

    /// Another listener on the same queue of connections, if metrics are served.
    pub fn metrics(&self) -> Result<Option<TcpListener>> {
        let listener = self.metrics.as_ref();
        let shared = listener.map(|(_, listener)| listener.try_clone());
        shared.transpose().context("sharing the metrics' listener")
    }

    /// What another process may have of this.
    pub fn offer(&self, manager: Option<Watched>) -> (Offer, Vec<BorrowedFd<'_>>) {
        let unix = [&self.api, &self.handover];
        let mut sockets: Vec<_> = unix.map(|socket| socket.listener().as_fd()).into();
        sockets.extend(self.metrics.iter().map(|(_, listener)| listener.as_fd()));
        let offer = Offer {
            unix: unix
                .map(|socket| (socket.path().to_owned(), socket.inode()))
                .into(),
            metrics: self.metrics.as_ref().map(|(listen, _)| *listen),
            manager,
        };
        (offer, sockets)
    }

    /// The other process has left its paths to this one.
    pub fn own_all(&self) {
        self.api.own();
        self.handover.own();
    }

    /// All paths may be another process's by now.
    pub fn leave_all(&self) {
        self.api.leave();
        self.handover.leave();
    }

    /// These paths are another process's now.
    pub fn leave(&self, taken: &[PathBuf]) {
        for socket in [&self.api, &self.handover] {
            if taken.iter().any(|path| path == socket.path()) {
                socket.leave();
            }
        }
    }
}
