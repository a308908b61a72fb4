//! Enums of the API as the words that JSON, tables and metrics show.

use serde::Serializer;

use super::{BackendState, Pool, Protocol};

impl Pool {
    /// "blue", "green", or "" where none is given.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

impl Protocol {
    /// "tcp", "udp", or "" where none is given.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl BackendState {
    /// "ready", "drain" or "maint"; none given is ready.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// JSON of a pool field.
pub fn pool<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(Pool::try_from(*value).unwrap_or_default().word())
}

/// JSON of a protocol field.
pub fn protocol<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(Protocol::try_from(*value).unwrap_or_default().word())
}

/// JSON of a backend's state.
pub fn backend_state<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(BackendState::try_from(*value).unwrap_or_default().word())
}
