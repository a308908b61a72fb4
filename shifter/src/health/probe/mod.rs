//! One check of one backend: what is asked, and what its answer says.

mod grpc;
mod http;
mod tls;

use std::{io, net::SocketAddr};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::model::{
    HealthSpec,
    health::{self, Check},
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

/// Asks backends.
#[derive(Default)]
pub struct Prober {
    trust: tls::Trust,
}

impl Prober {
    /// One check; ends within the timeout.
    pub async fn probe(&self, spec: &HealthSpec, backend: SocketAddr) -> Outcome {
        let addr = match spec.port {
            Some(port) => SocketAddr::new(backend.ip(), port),
            None => backend,
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
            Check::Tcp => Ok(()),
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
