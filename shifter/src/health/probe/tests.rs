//! Checks against servers on loopback that answer right, wrong, late or never.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::model::health::Written;

fn spec(written: Written) -> HealthSpec {
    let written = Written {
        interval: Some("5s".into()),
        timeout: written.timeout.clone().or(Some("2s".into())),
        ..written
    };
    written.read().unwrap()
}

fn http() -> Written {
    Written {
        kind: Some("http".into()),
        ..Written::default()
    }
}

/// A server that sends this to whoever connects, part by part, and keeps what
/// was asked.
async fn server(parts: &'static [&'static str]) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4_096];
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            *heard.lock().unwrap() = String::from_utf8_lossy(&buffer[..count]).into_owned();
            for part in parts {
                if *part == "SLEEP" {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
                stream.write_all(part.as_bytes()).await.ok();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    (addr, asked)
}

async fn probe(written: Written, addr: SocketAddr) -> Result<(), (&'static str, String)> {
    let about = About {
        service: "web".into(),
        pool: PoolName::Blue,
        backend: addr,
    };
    match Prober::default().probe(&spec(written), &about).await {
        Outcome::Passed => Ok(()),
        Outcome::Failed { kind, text } => Err((kind, text)),
    }
}

const OK: &[&str] = &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"];

#[tokio::test]
async fn tcp_asks_only_for_a_connection() {
    let (addr, _) = server(&[]).await;
    let tcp = || Written {
        kind: Some("tcp".into()),
        ..Written::default()
    };
    assert_eq!(probe(tcp(), addr).await, Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let refused = Err(("refused", "connection refused".to_owned()));
    assert_eq!(probe(tcp(), closed).await, refused);
    let elsewhere = Written {
        port: Some(addr.port().into()),
        ..tcp()
    };
    assert_eq!(probe(elsewhere, closed).await, Ok(()));
}

#[tokio::test]
async fn a_get_says_what_it_was_told_to() {
    let (addr, asked) = server(OK).await;
    let written = Written {
        path: Some("/healthz?full=1".into()),
        host: Some("shop.example".into()),
        headers: vec![("X-Probe".into(), "yes please".into())],
        ..http()
    };
    assert_eq!(probe(written, addr).await, Ok(()));
    let text = asked.lock().unwrap().to_lowercase();
    assert!(
        text.starts_with("get /healthz?full=1 http/1.1\r\n"),
        "{text}"
    );
    for line in [
        "host: shop.example",
        "x-probe: yes please",
        "connection: close",
        concat!("user-agent: shifter-health/", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(
            text.matches(&format!("\r\n{line}\r\n")).count(),
            1,
            "{text}"
        );
    }
    let (addr, asked) = server(OK).await;
    assert_eq!(probe(http(), addr).await, Ok(()));
    let text = asked.lock().unwrap().to_lowercase();
    assert!(text.contains(&format!("\r\nhost: {addr}\r\n")), "{text}");
}

#[tokio::test]
async fn a_status_that_is_not_wanted_fails_and_says_which() {
    let (addr, _) = server(&["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"]).await;
    let fault = Err(("answer", "status 500, wanted 200-299".to_owned()));
    assert_eq!(probe(http(), addr).await, fault);
    let wanted = Written {
        status: Some("204, 400-503".into()),
        ..http()
    };
    assert_eq!(probe(wanted, addr).await, Ok(()));
}

#[tokio::test]
async fn a_body_is_looked_through_over_its_parts_and_to_a_limit() {
    let body = |text: &str| Written {
        body_contains: Some(text.into()),
        ..http()
    };
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let parts: &[&str] = Box::leak(Box::new([
        head,
        "3\r\nall\r\n",
        "6\r\n is we\r\n",
        "2\r\nll\r\n0\r\n\r\n",
    ]));
    let (addr, _) = server(parts).await;
    assert_eq!(probe(body("is well"), addr).await, Ok(()));
    let fault = Err(("answer", "the body does not contain \"sick\"".to_owned()));
    assert_eq!(probe(body("sick"), addr).await, fault);
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}sick", "x".repeat(70_000));
    let (addr, _) = server(Box::leak(Box::new([&*long.leak()]))).await;
    let fault = "the first 64 KiB of the body do not contain \"sick\"";
    assert_eq!(
        probe(body("sick"), addr).await,
        Err(("answer", fault.to_owned()))
    );
}

#[tokio::test]
async fn what_is_late_is_given_up_at_the_timeout() {
    for parts in [
        &["SLEEP"][..],
        &["HTTP/1.1 200 OK\r\n", "SLEEP"],
        &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "SLEEP"],
    ] {
        let (addr, _) = server(parts).await;
        let written = Written {
            timeout: Some("300ms".into()),
            body_contains: Some("never".into()),
            ..http()
        };
        let began = Instant::now();
        let fault = Err(("timeout", "no answer within 300ms".to_owned()));
        assert_eq!(probe(written, addr).await, fault);
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn what_is_no_http_or_ends_early_fails() {
    let (addr, _) = server(&["SSH-2.0-OpenSSH_9.2\r\n\r\n"]).await;
    let (kind, text) = probe(http(), addr).await.unwrap_err();
    assert_eq!(kind, "protocol", "{text}");
    assert!(text.starts_with("no answer in HTTP"), "{text}");
    let (addr, _) = server(&[]).await;
    let fault = "the connection ended before the answer".to_owned();
    assert_eq!(probe(http(), addr).await, Err(("closed", fault)));
}
