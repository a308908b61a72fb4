//! Errors on the wire: `google.rpc.ErrorInfo` inside `google.rpc.Status`, as
//! the trailer `grpc-status-details-bin` carries it (AIP-193).

use std::collections::HashMap;

use prost::Message;
use tonic::{Code, Status};

/// The domain of every [`ErrorInfo`] of this API.
pub const DOMAIN: &str = "shifter.v1";
const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// Why a request was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Invalid,
    ServiceNotFound,
    Precondition,
    EtagStale,
    LimitReached,
    PeerNotAllowed,
    Internal,
    AgentLeaving,
    Frozen,
}

/// Reason, its name on the wire, gRPC code, exit code of the command line.
pub const TABLE: [(Reason, &str, Code, u8); 9] = [
    (Reason::Invalid, "INVALID", Code::InvalidArgument, 1),
    (
        Reason::ServiceNotFound,
        "SERVICE_NOT_FOUND",
        Code::NotFound,
        1,
    ),
    (
        Reason::Precondition,
        "PRECONDITION",
        Code::FailedPrecondition,
        1,
    ),
    (Reason::EtagStale, "ETAG_STALE", Code::Aborted, 3),
    (
        Reason::LimitReached,
        "LIMIT_REACHED",
        Code::ResourceExhausted,
        1,
    ),
    (
        Reason::PeerNotAllowed,
        "PEER_NOT_ALLOWED",
        Code::PermissionDenied,
        9,
    ),
    (Reason::Internal, "INTERNAL", Code::Internal, 1),
    (Reason::AgentLeaving, "AGENT_LEAVING", Code::Unavailable, 8),
    (Reason::Frozen, "FROZEN", Code::FailedPrecondition, 7),
];

impl Reason {
    fn row(self) -> &'static (Self, &'static str, Code, u8) {
        &TABLE[self as usize]
    }

    /// Name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Exit code of the command line.
    pub fn exit_code(self) -> u8 {
        self.row().3
    }

    /// The status a client gets.
    pub fn status(self, message: impl Into<String>, metadata: &[(&str, &str)]) -> Status {
        let (_, name, code, _) = *self.row();
        let message = message.into();
        let info = ErrorInfo {
            reason: name.to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: metadata
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let details = RpcStatus {
            code: code as i32,
            message: message.clone(),
            details: vec![prost_types::Any {
                type_url: ERROR_INFO_URL.to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        Status::with_details(code, message, details.encode_to_vec().into())
    }

    /// The reason that a status of this API carries.
    pub fn of(status: &Status) -> Option<Self> {
        let info = ErrorInfo::of(status)?;
        let row = TABLE.iter().find(|row| row.1 == info.reason)?;
        (info.domain == DOMAIN).then_some(row.0)
    }
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(string, tag = "2")]
    pub domain: String,
    #[prost(map = "string, string", tag = "3")]
    pub metadata: HashMap<String, String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

impl ErrorInfo {
    /// The first ErrorInfo among a status' details.
    pub fn of(status: &Status) -> Option<Self> {
        let details = RpcStatus::decode(status.details()).ok()?.details;
        let any = details.iter().find(|any| any.type_url == ERROR_INFO_URL)?;
        Self::decode(any.value.as_slice()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_comes_back_from_its_status() {
        for (index, (reason, name, code, _)) in TABLE.iter().enumerate() {
            assert_eq!(*reason as usize, index, "rows are in the order of the enum");
            let status = reason.status("text", &[("service", "web")]);
            assert_eq!(status.code(), *code);
            assert_eq!(Reason::of(&status), Some(*reason));
            let info = ErrorInfo::of(&status).unwrap();
            assert_eq!(info.reason, *name);
            assert_eq!(info.metadata["service"], "web");
        }
    }

    #[test]
    fn a_status_without_details_has_no_reason() {
        assert_eq!(Reason::of(&Status::internal("from elsewhere")), None);
    }
}
