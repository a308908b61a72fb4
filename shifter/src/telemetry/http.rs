//! The HTTP server of the metrics: read-only, GET /metrics and GET /healthz.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::{Receipts, render, text::CONTENT_TYPE};
use crate::reconcile::Controller;

/// Connections served at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long a client may take to send its request, and a connection to last.
const HEADER_WAIT: Duration = Duration::from_secs(10);
const CONNECTION_LIFE: Duration = Duration::from_secs(300);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "listening on {addr} for metrics failed: {source}; set a free address of this host as [metrics] listen"
    )]
    Listen { addr: SocketAddr, source: io::Error },
}

/// Listens on `addr`; port 0 takes any.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, TelemetryError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| TelemetryError::Listen { addr, source })
}

/// Serves metrics until `shutdown` is true or its sender is gone.
pub async fn serve(
    listener: TcpListener,
    controller: Arc<dyn Controller>,
    receipts: Arc<Receipts>,
    mut shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match stream {
            Ok((stream, _)) => {
                let (controller, receipts) = (Arc::clone(&controller), Arc::clone(&receipts));
                tokio::spawn(async move {
                    serve_connection(stream, controller, receipts).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: wait for some to come free.
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    controller: Arc<dyn Controller>,
    receipts: Arc<Receipts>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (controller, receipts) = (Arc::clone(&controller), Arc::clone(&receipts));
        async move { Ok::<_, Infallible>(respond(&request, controller, receipts).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIFE, connection).await {
        tracing::debug!(%error, "a connection for metrics ended early");
    }
}

async fn respond(
    request: &Request<Incoming>,
    controller: Arc<dyn Controller>,
    receipts: Arc<Receipts>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        response
            .headers_mut()
            .insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let page = tokio::task::spawn_blocking(move || render(&*controller, &receipts)).await;
            match page {
                Ok(Ok(text)) => plain(StatusCode::OK, text),
                Ok(Err(error)) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(CONTENT_TYPE),
    );
    response
}
