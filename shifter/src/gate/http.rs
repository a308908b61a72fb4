//! One request over HTTP/1.1, by TLS or without, on a connection of its own, with
//! bounds on time and size. Redirects are not followed: they could lead where the
//! agent may not go.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Asker;
use crate::{
    judge::{UrlError, host_of},
    tls::TlsError,
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("{0} is not in hosts of [gates] in the agent's file")]
    Host(String),
    #[error("connecting to {host} failed: {error}")]
    Connect { host: String, error: std::io::Error },
    #[error("{host}: {error}")]
    Tls { host: String, error: TlsError },
    #[error("{host}: {error}")]
    Http { host: String, error: hyper::Error },
    #[error("{host}: reading the answer failed: {text}")]
    Body { host: String, text: String },
    #[error("{host}: no whole answer within {} ms", timeout.as_millis())]
    Timeout { host: String, timeout: Duration },
    #[error("{url:?} makes no request: {error}")]
    Request {
        url: String,
        error: hyper::http::Error,
    },
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// What is sent.
pub(super) struct Call<'a> {
    pub url: &'a str,
    /// A path and query after the URL's own path.
    pub path: &'a str,
    /// A POST with a JSON body, else a GET.
    pub json: Option<String>,
    pub timeout: Duration,
    /// Bytes of an answer's body.
    pub most: usize,
}

impl Asker {
    /// Makes one request.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, HttpError> {
        let (host, is_tls) = host_of(call.url)?;
        if !self.is_allowed(&host) {
            return Err(HttpError::Host(host));
        }
        match tokio::time::timeout(call.timeout, self.connect(&host, is_tls, &call)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Timeout {
                host,
                timeout: call.timeout,
            }),
        }
    }

    async fn connect(
        &self,
        host: &str,
        is_tls: bool,
        call: &Call<'_>,
    ) -> Result<Answer, HttpError> {
        let request = request(host, is_tls, call)?;
        let failed = |error| HttpError::Connect {
            host: host.to_owned(),
            error,
        };
        let stream = TcpStream::connect(host).await.map_err(failed)?;
        if !is_tls {
            return exchange(stream, host, request, call.most).await;
        }
        let addr = stream.peer_addr().map_err(failed)?;
        let stream = self
            .trust
            .connect(&self.tls, "http/1.1", Some(host), addr, stream)
            .await
            .map_err(|error| HttpError::Tls {
                host: host.to_owned(),
                error,
            })?;
        exchange(stream, host, request, call.most).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Answer, HttpError> {
    let http = |error| HttpError::Http {
        host: host.to_owned(),
        error,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    // Both end with this future: a time-out closes the connection.
    let answered = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), most)
            .collect()
            .await
            .map_err(|error| HttpError::Body {
                host: host.to_owned(),
                text: error.to_string(),
            })?;
        Ok(Answer {
            status,
            body: body.to_bytes(),
        })
    };
    tokio::pin!(answered);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // It ended first: what it had is still to be taken.
        _ = &mut connection => answered.await,
    }
}

fn request(host: &str, is_tls: bool, call: &Call<'_>) -> Result<Request<Full<Bytes>>, HttpError> {
    let rest = call.url.split_once("://").map_or("", |(_, rest)| rest);
    // RFC 9110, 4.2: the port of the scheme is left out; some servers match the rest
    // letter by letter.
    let default_port = if is_tls { ":443" } else { ":80" };
    let host = host.strip_suffix(default_port).unwrap_or(host);
    let own = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    let target = if call.path.is_empty() {
        match own.strip_prefix('?') {
            Some(query) => format!("/?{query}"),
            None if own.is_empty() => "/".to_owned(),
            None => own.to_owned(),
        }
    } else {
        format!("{}{}", own.trim_end_matches('/'), call.path)
    };
    let method = if call.json.is_some() { "POST" } else { "GET" };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("shifter/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close");
    if call.json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = call.json.clone().unwrap_or_default();
    request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| HttpError::Request {
            url: call.url.to_owned(),
            error,
        })
}
