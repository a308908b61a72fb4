//! The one table from the agent's errors to statuses.

use tonic::Status;

use crate::{proto::error::Reason, reconcile::controller::ControlError};

/// The reason a client is given for an error.
pub(super) const fn reason(error: &ControlError) -> Reason {
    match error {
        ControlError::Invalid(_) => Reason::Invalid,
        ControlError::NotFound { .. } => Reason::ServiceNotFound,
        ControlError::Precondition(_) => Reason::Precondition,
        ControlError::Conflict { .. } => Reason::EtagStale,
        ControlError::Exhausted(_) => Reason::LimitReached,
        ControlError::Internal(_) => Reason::Internal,
        ControlError::Frozen(_) => Reason::Frozen,
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        let text = error.to_string();
        match &error {
            ControlError::NotFound { name, .. } => {
                reason(&error).status(text, &[("service", name)])
            }
            ControlError::Conflict { service, is, .. } => {
                reason(&error).status(text, &[("service", service), ("etag", is)])
            }
            _ => reason(&error).status(text, &[]),
        }
    }
}
