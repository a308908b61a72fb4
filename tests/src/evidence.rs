//! What the kernels of a lab counted: said when a scenario fails, because a
//! failure of one connection in a hundred thousand is not seen twice.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    agent::METRICS,
    topology::{Lab, Netns, Side},
};

/// The body of a GET inside a namespace.
pub fn get(ns: &Netns, addr: &str, path: &str) -> std::io::Result<String> {
    ns.run(|| {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok(body.to_owned())
    })
}

/// Verdicts, and the TCP counters of client, host and servers; zeros left out.
pub fn of(lab: &Lab) -> String {
    let mut text = String::from("--- what was counted ---\n");
    let page = get(&lab.host, METRICS, "/metrics").unwrap_or_else(|error| error.to_string());
    for line in page.lines() {
        if line.starts_with("shifter_verdict") && !line.ends_with(" 0") {
            let _ = writeln!(text, "{line}");
        }
    }
    let places = [
        ("client", &lab.client),
        ("host", &lab.host),
        ("blue", lab.server_ns(Side::Blue)),
        ("green", lab.server_ns(Side::Green)),
    ];
    for (name, ns) in places {
        let _ = writeln!(text, "{name}:{}", ns.run(tcp_counters));
    }
    text
}

/// Counters of the namespace that the thread is in: pairs of lines, the names
/// above the values.
fn tcp_counters() -> String {
    let mut counters = String::new();
    for file in [
        "/proc/thread-self/net/snmp",
        "/proc/thread-self/net/netstat",
    ] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2).filter(|p| p[0].starts_with("Tcp")) {
            let values = pair[1].split_whitespace().skip(1);
            for (name, value) in pair[0].split_whitespace().skip(1).zip(values) {
                if value != "0" {
                    let _ = write!(counters, " {name}={value}");
                }
            }
        }
    }
    counters
}
