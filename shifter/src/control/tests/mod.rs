//! Tests of the server over a real unix socket.

mod calls;
mod events;
mod leaving;
mod refusals;
mod socket;
mod watch;

use tonic::{Code, Status};

use crate::proto::error::Reason;

/// Asserts code and reason of a refusal, and that its text helps.
fn assert_refused(status: &Status, code: Code, reason: Reason, helps: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert_eq!(Reason::of(status), Some(reason), "{status}");
    assert!(status.message().contains(helps), "{status}");
}
