//! A green that resets some of its connections.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings, number},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{frame, requests::Requests, server},
};

use super::{NAME, begin, report, service, text};

/// An echo server that resets every `one_in`-th connection once it has read a request.
pub struct Resetting {
    stop: Arc<AtomicBool>,
    reset: Arc<AtomicU64>,
    addr: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Resetting {
    pub fn start(lab: &Lab, side: Side, family: Family, one_in: u64) -> Self {
        let addr = lab.listen(side, family);
        let (stop, reset) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (until, counted) = (Arc::clone(&stop), Arc::clone(&reset));
        let identity = side.identity();
        let ns = lab.server_ns(side);
        let listener = ns.run(|| TcpListener::bind(addr)).unwrap();
        let serve = move || {
            for (number, stream) in listener.incoming().enumerate() {
                if until.load(Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let resets = (number as u64).is_multiple_of(one_in);
                counted.fetch_add(u64::from(resets), Relaxed);
                std::thread::spawn(move || answer(stream, identity, resets));
            }
        };
        let thread = Some(ns.spawn(serve).unwrap());
        Self {
            stop,
            reset,
            addr,
            thread,
        }
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Whoever waits for a connection gets one more.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_millis(100));
        drop(self.thread.take());
    }
}

/// Answers a connection's requests, or resets it after the first.
fn answer(mut stream: TcpStream, identity: u8, resets: bool) {
    let mut buffer = [0u8; frame::FRAME];
    while stream.read_exact(&mut buffer).is_ok() {
        if resets {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: the option takes a linger of this size, and the socket is open.
            unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of_val(&linger) as libc::socklen_t,
                );
            }
            return;
        }
        frame::stamp(&mut buffer, identity);
        if stream.write_all(&buffer).is_err() {
            return;
        }
    }
}

#[test]
fn a_green_that_resets_one_connection_in_fifty_is_rolled_back_by_the_judge() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let green = Resetting::start(&lab, Side::Green, Family::V4, 50);
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&[service(&lab)]).unwrap();
    let requests = Requests::start(&lab.client, &[lab.vip(Family::V4)], 4, 1_000).unwrap();
    begin(
        &agent,
        r#"canary --steps 10%,50% --interval 10m --gates [{"judge":"sequential"}]"#,
    );
    let begun = Instant::now();
    let watched = agent.cli(&["rollout", "watch", NAME]).unwrap();
    let took = begun.elapsed();
    assert_eq!(watched.status.code(), Some(5), "{}", text(&watched));
    assert!(
        text(&watched).contains("gate \"sequential\" failed"),
        "{}",
        text(&watched)
    );
    let report = report(&agent);
    println!(
        "detected after {took:?}: {}\nrollback: {}\nserver resets: {}",
        report["detection"],
        report["rollback"],
        green.reset.load(Relaxed)
    );
    let times = &report["rollback"];
    assert!(number(&times["programmed_ns"]) < 50_000_000, "{times}");
    assert_eq!(number(&times["candidate_flows_after"]), 0, "{times}");
    assert!(number(&report["pools"][1]["failures"]) > 0, "{report}");
    assert_eq!(number(&report["pools"][0]["failures"]), 0, "{report}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
    drop(requests);
}
