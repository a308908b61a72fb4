//! Why a command failed, what a person reads about it, and the exit code.

use std::{io, time::Duration};

use tonic::{Code, Status};

use crate::proto::error::Reason;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Whoever read the output has gone, as `head` does.
    #[error("the output was closed")]
    OutputClosed,
    #[error(
        "no agent answers on {endpoint} ({cause}): is it running? `shifter agent` starts it, and --endpoint must be what `unix` in [api] of its configuration says"
    )]
    Unreachable { endpoint: String, cause: String },
    #[error("{endpoint} may not be opened by this user: run the command as root (sudo)")]
    Closed { endpoint: String },
    #[error(
        "the agent did not answer within {} s: --timeout waits longer; the change may have been made, `shifter get services` shows it",
        .0.as_secs_f64()
    )]
    Timeout(Duration),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("{0}")]
    Usage(String),
    #[error("{0:#}")]
    Local(anyhow::Error),
}

impl Failure {
    /// As README lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Unreachable { .. } => 8,
            Self::Closed { .. } => 9,
            Self::Timeout(_) => 6,
            Self::Usage(_) => 64,
            Self::Local(_) => 1,
            Self::Refused(status) => match (Reason::of(status), status.code()) {
                (Some(reason), _) => reason.exit_code(),
                (None, Code::PermissionDenied | Code::Unauthenticated) => 9,
                (None, Code::DeadlineExceeded) => 6,
                (None, _) => 1,
            },
        }
    }

    /// Whether the request was not sent, or sent away by an agent that leaves.
    pub fn has_done_nothing(&self) -> bool {
        match self {
            Self::Refused(status) => Reason::of(status) == Some(Reason::AgentLeaving),
            // Said by the HTTP/2 client of what it still has when a connection ends.
            Self::Unreachable { cause, .. } => cause == "operation was canceled",
            _ => false,
        }
    }

    /// A status as a failure; without a reason of ours it may say that the
    /// connection broke.
    pub fn from_status(status: Status, endpoint: &str) -> Self {
        use std::error::Error as _;
        let broken = status.code() == Code::Unavailable
            || status
                .source()
                .is_some_and(|source| source.is::<tonic::transport::Error>());
        if broken && Reason::of(&status).is_none() {
            return Self::Unreachable {
                endpoint: endpoint.to_owned(),
                cause: status.message().to_owned(),
            };
        }
        Self::Refused(Box::new(status))
    }
}

/// Errors of writing the output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Local(anyhow::Error::new(error).context("writing the output failed")),
        }
    }
}
