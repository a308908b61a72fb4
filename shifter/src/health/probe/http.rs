//! A GET over HTTP/1.1 (RFC 9112), and its status and body.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::Fault;
use crate::model::health::HttpCheck;

/// So much of a body is looked at, in bytes.
const MAX_BODY: usize = 65_536;

/// As servers see it in their logs.
pub(super) const AGENT: &str = concat!("shifter-health/", env!("CARGO_PKG_VERSION"));

/// Asks over a connection that is there.
pub(super) async fn ask<S>(check: &HttpCheck, addr: SocketAddr, stream: S) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| fault(&error))?;
    // Dropped, and with it ended, when this check ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender
        .send_request(request(check, addr)?)
        .await
        .map_err(|error| fault(&error))?;
    let status = answer.status().as_u16();
    if !check.takes(status) {
        let wanted = check.wanted();
        return Err(Fault::answer(format!("status {status}, wanted {wanted}")));
    }
    match &check.body_contains {
        Some(wanted) => look_for(wanted, answer.into_body()).await,
        None => Ok(()),
    }
}

fn request(check: &HttpCheck, addr: SocketAddr) -> Result<Request<Empty<Bytes>>, Fault> {
    let host = check.host.clone().unwrap_or_else(|| addr.to_string());
    let mut request = Request::get(check.path.as_str())
        .header(HOST, host)
        .header(CONNECTION, "close");
    let has_agent = |(name, _): &(String, String)| name.eq_ignore_ascii_case("user-agent");
    if !check.headers.iter().any(has_agent) {
        request = request.header(USER_AGENT, AGENT);
    }
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    request
        .body(Empty::new())
        .map_err(|error| Fault::new("config", format!("no request can be made of it: {error}")))
}

async fn look_for(wanted: &str, mut body: Incoming) -> Result<(), Fault> {
    let mut seen: Vec<u8> = Vec::new();
    let is_there = |seen: &[u8]| {
        seen.windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| fault(&error))?;
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY - seen.len();
            // What was looked at does not have to be again, but for what may begin there.
            let from = seen.len().saturating_sub(wanted.len());
            seen.extend_from_slice(&data[..data.len().min(room)]);
            if is_there(&seen[from..]) {
                return Ok(());
            }
            if seen.len() == MAX_BODY {
                return Err(Fault::answer(format!(
                    "the first {} KiB of the body do not contain {wanted:?}",
                    MAX_BODY / 1_024
                )));
            }
        }
    }
    Err(Fault::answer(format!(
        "the body does not contain {wanted:?}"
    )))
}

/// What hyper says, in a few words.
pub(super) fn fault(error: &hyper::Error) -> Fault {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Fault::new("closed", "the connection ended before the answer");
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    if error.is_parse() {
        return Fault::new("protocol", format!("no answer in HTTP: {text}"));
    }
    Fault::new("closed", format!("the connection failed: {text}"))
}
