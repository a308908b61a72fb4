//! Tests of gates against servers on loopback that hang, lie, close early or write
//! without end.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{judge, model::tree};

/// How a server answers.
#[derive(Clone, Copy)]
enum Manner {
    /// With these bytes, and closes.
    Bytes(&'static str),
    /// Not at all.
    Hangs,
    /// A head, and then a byte now and then.
    Drips,
    /// A body without end.
    Floods,
    /// Closes at once.
    Closes,
}

/// Address of a server, and what it was asked.
async fn server(manner: Manner) -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 * 1024];
            if matches!(manner, Manner::Closes) {
                continue;
            }
            let count = stream.read(&mut bytes).await.unwrap_or(0);
            *seen.lock().unwrap() += &String::from_utf8_lossy(&bytes[..count]);
            let head = "HTTP/1.1 200 OK\r\n\r\n";
            match manner {
                Manner::Bytes(text) => {
                    let _ = stream.write_all(text.as_bytes()).await;
                }
                Manner::Drips | Manner::Floods => {
                    let _ = stream.write_all(head.as_bytes()).await;
                    loop {
                        let chunk: &[u8] = match manner {
                            Manner::Drips => b"x",
                            _ => &bytes,
                        };
                        if stream.write_all(chunk).await.is_err() {
                            break;
                        }
                        if matches!(manner, Manner::Drips) {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
                _ => std::future::pending().await,
            }
        }
    });
    (host, asked)
}

fn gates(text: &str) -> Vec<GateSpec> {
    let root = tree::from_toml(&format!("gates = {text}")).unwrap();
    let tree::Value::Table(entries) = root.value else {
        panic!()
    };
    judge::gates(&entries[0]).unwrap()
}

fn asker(hosts: &[&str], runner: Option<RunnerAt>) -> Asker {
    let gates = GatesConfig {
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..GatesConfig::default()
    };
    Asker::new(&gates, runner)
}

async fn ask(host: &str, allowed: &str, gate: &str) -> Judgement {
    let asker = asker(&[allowed], None);
    let subject = Subject {
        service: "web".into(),
        rollout: 7,
        phase: "analyse".into(),
        ..Subject::default()
    };
    let gate = gate.replace("HOST", host);
    asker.ask(&gates(&gate)[0], &subject).await
}

const PROM: &str = r#"[{ judge = "prometheus", url = "http://HOST/", query = "up{a=\"b\"}", max = 1, timeout = "500ms" }]"#;
const HOOK: &str = r#"[{ judge = "webhook", url = "http://HOST/hook?x=1", type = "rollout", metadata = { k = "v" }, timeout = "500ms" }]"#;

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_misbehave_are_errors_within_their_time() {
    for (manner, part) in [
        (Manner::Hangs, "no whole answer within 500 ms"),
        (Manner::Drips, "no whole answer within 500 ms"),
        (Manner::Floods, "reading the answer failed"),
        (Manner::Closes, ""),
        (Manner::Bytes("not http\r\n\r\n"), ""),
        (
            Manner::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
            "reading the answer failed",
        ),
        (
            Manner::Bytes(
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            ),
            "302",
        ),
    ] {
        for gate in [PROM, HOOK] {
            let (host, _) = server(manner).await;
            let begun = Instant::now();
            let it = ask(&host, &host, gate).await;
            assert_eq!(it.outcome, Outcome::Error, "{}", it.reason);
            assert!(it.reason.contains(part), "{part}: {}", it.reason);
            assert!(begun.elapsed() < Duration::from_secs(5), "{}", it.reason);
        }
    }
}

#[tokio::test]
async fn nobody_there_and_a_host_that_is_not_listed_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let it = ask(&host, &host, PROM).await;
    assert_eq!(it.outcome, Outcome::Error);
    assert!(it.reason.contains("connecting to"), "{}", it.reason);

    let (host, asked) = server(Manner::Hangs).await;
    let it = ask(&host, "127.0.0.1:1", HOOK).await;
    assert_eq!(it.outcome, Outcome::Error);
    assert!(it.reason.contains("is not in hosts"), "{}", it.reason);
    assert_eq!(*asked.lock().unwrap(), "");
}

#[tokio::test]
async fn a_hook_is_told_what_it_is_asked_about() {
    let (host, asked) = server(Manner::Bytes(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ))
    .await;
    let it = ask(&host, &host, HOOK).await;
    assert_eq!(it.outcome, Outcome::Pass, "{}", it.reason);
    let asked = asked.lock().unwrap().clone();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1"), "{head}");
    assert!(head.contains(&format!("host: {host}")), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["name"], "web");
    assert_eq!(body["phase"], "analyse");
    assert_eq!(body["metadata"]["k"], "v");
    assert_eq!(body["shifter"]["rollout"], 7);
}

#[tokio::test]
async fn a_query_is_asked_by_its_path() {
    let (host, asked) = server(Manner::Bytes(
        "HTTP/1.1 200 OK\r\nContent-Length: 71\r\n\r\n{\"status\":\"success\",\"data\":{\"resultType\":\"scalar\",\"result\":[1,\"0.25\"]}}",
    ))
    .await;
    let it = ask(&host, &host, PROM).await;
    assert_eq!(it.outcome, Outcome::Pass, "{}", it.reason);
    assert_eq!(it.statistics[0], ("value".to_owned(), 0.25));
    let asked = asked.lock().unwrap().clone();
    let line = "GET /api/v1/query?query=up%7Ba%3D%22b%22%7D&timeout=500ms HTTP/1.1";
    assert!(asked.starts_with(line), "{asked}");
}

#[tokio::test]
async fn a_program_without_a_runner_is_an_error() {
    let it = ask("", "", r#"[{ judge = "exec", file = "a" }]"#).await;
    assert_eq!(it.outcome, Outcome::Error);
    assert!(it.reason.contains("no exec_dir"), "{}", it.reason);
    let nowhere = RunnerAt::Unit("/run/shifter-no-such/runner.sock".into());
    let asker = asker(&[], Some(nowhere));
    let gate = &gates(r#"[{ judge = "exec", file = "a" }]"#)[0];
    let it = asker.ask(gate, &Subject::default()).await;
    assert!(it.reason.contains("shifter-runner.socket"), "{}", it.reason);
}
