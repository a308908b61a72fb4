//! Who is at the other end of the socket: SO_PEERCRED, checked on every call.

use std::time::Instant;

use tonic::{Request, Status, transport::server::UdsConnectInfo};

use crate::proto::error::Reason;

/// The caller of a request, and when it called.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub arrived: Instant,
    /// "uid 0 pid 4242".
    pub actor: String,
}

/// Lets in root and the agent's own user, and notes when the call arrived.
pub(super) fn admit(mut request: Request<()>) -> Result<Request<()>, Status> {
    let arrived = Instant::now();
    let peer = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred)
        .map(|cred| (cred.uid(), cred.pid()));
    let actor = actor(peer, own_uid())?;
    request.extensions_mut().insert(Peer { arrived, actor });
    Ok(request)
}

fn actor(peer: Option<(u32, Option<i32>)>, own_uid: u32) -> Result<String, Status> {
    match peer {
        Some((uid, pid)) if uid == 0 || uid == own_uid => {
            Ok(format!("uid {uid} pid {}", pid.unwrap_or(0)))
        }
        Some((uid, _)) => Err(Reason::PeerNotAllowed.status(
            format!("uid {uid} may not use this agent: run the command as root (sudo)"),
            &[],
        )),
        None => Err(Reason::PeerNotAllowed.status(
            "the kernel does not say who is calling, so the call was refused",
            &[],
        )),
    }
}

fn own_uid() -> u32 {
    // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

impl Peer {
    /// The caller of a request that [`admit`] let in.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Reason::Internal.status("a call came past the check of its peer", &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_agents_own_user_are_let_in_and_nobody_else() {
        assert_eq!(actor(Some((0, Some(7))), 1000).unwrap(), "uid 0 pid 7");
        assert_eq!(
            actor(Some((1000, Some(8))), 1000).unwrap(),
            "uid 1000 pid 8"
        );
        for refused in [Some((1001, Some(9))), None] {
            let status = actor(refused, 1000).unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
            assert_eq!(Reason::of(&status), Some(Reason::PeerNotAllowed));
        }
    }
}
