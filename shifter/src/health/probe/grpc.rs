//! `grpc.health.v1.Health/Check` over HTTP/2: the health checking protocol of gRPC
//! (grpc/doc/health-checking.md), in the framing of grpc/doc/PROTOCOL-HTTP2.md.

use std::net::SocketAddr;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response,
    body::Incoming,
    client::conn::http2,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::{Fault, http};
use crate::model::health::GrpcCheck;

/// An answer is a few bytes.
const MAX_BODY: usize = 16_384;
const PATH: &str = "/grpc.health.v1.Health/Check";

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `ServingStatus`.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: i32 = 1;

/// Asks over a connection that is there.
pub(super) async fn ask<S>(check: &GrpcCheck, addr: SocketAddr, stream: S) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| http::fault(&error))?;
    // Dropped, and with it ended, when this check ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender
        .send_request(request(check, addr)?)
        .await
        .map_err(|error| http::fault(&error))?;
    judge(answer).await
}

fn request(check: &GrpcCheck, addr: SocketAddr) -> Result<Request<Full<Bytes>>, Fault> {
    let host = check.host.clone().unwrap_or_else(|| addr.to_string());
    let scheme = if check.tls.is_some() { "https" } else { "http" };
    let message = Asked {
        service: check.service.clone(),
    };
    let message = message.encode_to_vec();
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0); // not compressed
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    Request::builder()
        .method(Method::POST)
        .uri(format!("{scheme}://{host}{PATH}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, http::AGENT)
        .body(Full::new(body.freeze()))
        .map_err(|error| Fault::new("config", format!("no request can be made of it: {error}")))
}

async fn judge(answer: Response<Incoming>) -> Result<(), Fault> {
    let status = answer.status();
    if status != 200 {
        return Err(Fault::answer(format!("HTTP status {}", status.as_u16())));
    }
    let headers = answer.headers().clone();
    let body = Limited::new(answer.into_body(), MAX_BODY);
    let body = body.collect().await.map_err(|error| {
        let text = format!("reading the answer failed: {error}");
        Fault::new("closed", text)
    })?;
    // An answer of trailers alone has them where headers are.
    let trailers = body.trailers().unwrap_or(&headers);
    grpc_status(trailers)?;
    let mut data = body.to_bytes();
    let wrong = || Fault::new("protocol", "the answer is no message of grpc.health.v1");
    if data.len() < 5 || data.get_u8() != 0 {
        return Err(wrong());
    }
    let length = data.get_u32() as usize;
    if data.len() != length {
        return Err(wrong());
    }
    let answer = Answer::decode(data).map_err(|_| wrong())?;
    if answer.status == SERVING {
        return Ok(());
    }
    let word = usize::try_from(answer.status).ok();
    let word = word.and_then(|status| STATUSES.get(status));
    Err(Fault::answer(format!(
        "it says {}",
        word.unwrap_or(&"a status that is unknown")
    )))
}

fn grpc_status(trailers: &HeaderMap) -> Result<(), Fault> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some("5") => Err(Fault::answer("it does not know this service (NOT_FOUND)")),
        Some("12") => Err(Fault::answer(
            "it has no grpc.health.v1 (UNIMPLEMENTED): add it to the server, or check by tcp",
        )),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(Fault::answer(format!("gRPC status {code} {message}")))
        }
        None => Err(Fault::new("protocol", "the answer has no gRPC status")),
    }
}
