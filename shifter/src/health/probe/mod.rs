//! One check of one backend: what is asked, and what its answer says.

mod exec;
mod grpc;
mod http;

use std::{io, net::SocketAddr};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    gate::RunnerAt,
    model::{
        HealthSpec, PoolName,
        health::{self, Check},
    },
    tls::{TlsError, Trust},
};

/// How a check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Passed,
    Failed {
        /// One of [`KINDS`], for metrics.
        kind: &'static str,
        /// What to show: "connection refused".
        text: String,
    },
}

/// Kinds of failures.
pub const KINDS: [&str; 8] = [
    "refused", "connect", "timeout", "closed", "protocol", "tls", "answer", "config",
];

/// Why a check failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Fault {
    kind: &'static str,
    text: String,
}

impl Fault {
    fn new(kind: &'static str, text: impl Into<String>) -> Self {
        debug_assert!(KINDS.contains(&kind));
        let text = text.into();
        Self { kind, text }
    }

    /// The backend said what it should not.
    fn answer(text: impl Into<String>) -> Self {
        Self::new("answer", text)
    }
}

impl From<TlsError> for Fault {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Config(_) => "config",
            TlsError::Handshake(_) => "tls",
        };
        Self::new(kind, error.to_string())
    }
}

/// What is checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    pub service: String,
    pub pool: PoolName,
    pub backend: SocketAddr,
}

/// Asks backends.
#[derive(Default)]
pub struct Prober {
    trust: Trust,
    /// Who runs programs; `None` without an `exec_dir`.
    runner: Option<RunnerAt>,
}

impl Prober {
    /// One whose programs are run there.
    pub fn new(runner: Option<RunnerAt>) -> Self {
        let trust = Trust::default();
        Self { trust, runner }
    }

    /// One check; ends within the timeout, and one by a program a second later at most.
    pub async fn probe(&self, spec: &HealthSpec, about: &About) -> Outcome {
        if let Check::Exec(check) = &spec.check {
            let runner = self.runner.as_ref();
            return match exec::ask(runner, check, spec.timeout, about).await {
                Ok(()) => Outcome::Passed,
                Err(fault) => failed(fault),
            };
        }
        let addr = match spec.port {
            Some(port) => SocketAddr::new(about.backend.ip(), port),
            None => about.backend,
        };
        let deadline = Instant::now() + spec.timeout;
        let stream = match timeout_at(deadline, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return failed(connect_fault(&error)),
            Err(_) => {
                let text = format!("no connection within {}", health::show(spec.timeout));
                return failed(Fault::new("timeout", text));
            }
        };
        match timeout_at(deadline, self.ask(spec, addr, stream)).await {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(fault)) => failed(fault),
            Err(_) => {
                let text = format!("no answer within {}", health::show(spec.timeout));
                failed(Fault::new("timeout", text))
            }
        }
    }

    async fn ask(
        &self,
        spec: &HealthSpec,
        addr: SocketAddr,
        stream: TcpStream,
    ) -> Result<(), Fault> {
        match &spec.check {
            // A program connects for itself.
            Check::Tcp | Check::Exec(_) => Ok(()),
            Check::Http(check) => match &check.tls {
                None => http::ask(check, addr, stream).await,
                Some(tls) => {
                    let host = check.host.as_deref();
                    let trust = &self.trust;
                    let stream = trust.connect(tls, "http/1.1", host, addr, stream).await?;
                    http::ask(check, addr, stream).await
                }
            },
            Check::Grpc(check) => match &check.tls {
                None => grpc::ask(check, addr, stream).await,
                Some(tls) => {
                    let host = check.host.as_deref();
                    let stream = self.trust.connect(tls, "h2", host, addr, stream).await?;
                    grpc::ask(check, addr, stream).await
                }
            },
        }
    }
}

fn failed(Fault { kind, text }: Fault) -> Outcome {
    Outcome::Failed { kind, text }
}

fn connect_fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::new("refused", "connection refused"),
        _ => Fault::new("connect", format!("connecting failed: {error}")),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
