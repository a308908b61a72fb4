//! Cuts as messages.

use super::pool_message;
use crate::{proto, reconcile::controller::CutView};

pub(super) fn status(view: &CutView) -> proto::CutStatus {
    let pool = view.pool.map_or(proto::Pool::Unspecified, pool_message);
    proto::CutStatus {
        cause: view.cause.to_owned(),
        pool: pool.into(),
        backend: view.backend.map_or(String::new(), |addr| addr.to_string()),
        per_second: view.rate.get(),
        ended: view.ended,
        left: view.left,
        begins_in_seconds: view.begins_in_s,
        actor: view.actor.clone(),
        reason: view.reason.clone(),
    }
}
