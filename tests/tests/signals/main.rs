//! What the kernel says of pools agrees with what clients saw; and the breaker
//! acts without an agent.

mod breaker;
mod server;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use server::{End, Server, visit};
use shifter_tests::{
    agent::{Agent, Settings, number},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Netns, Placement, Side},
    traffic::tunnel::Tunnel,
};

/// What a busy machine may take to bring figures up to date.
const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(10);
/// Half-open entries go after so many seconds.
const HALF_OPEN_S: u64 = 4;

/// Every flow is watched.
fn settings(hook: &'static str) -> Settings {
    let mut settings = Settings::hook(hook);
    settings.more += &format!("watch_one_in = 1\n[agent.timeouts]\nhalf_open = {HALF_OPEN_S}\n");
    settings
}

/// Signals of one pool as the command line shows them.
struct Signals(serde_json::Value);

impl Signals {
    fn of(agent: &Agent<'_>, service: &str, side: Side) -> Self {
        let answer = agent.json(&["get", "signals", service]).unwrap();
        let rows = answer["signals"].as_array().unwrap();
        let row = rows.iter().find(|row| row["pool"] == side.name());
        Self(
            row.unwrap_or_else(|| panic!("no {side:?} in {answer}"))
                .clone(),
        )
    }

    fn count(&self, name: &str) -> u64 {
        number(&self.0[name])
    }

    fn times(&self, name: &str) -> u64 {
        number(&self.0[name]["count"])
    }

    /// In ms.
    fn p50(&self, name: &str) -> f64 {
        let seconds = self.0[name]["p50_seconds"].as_f64();
        seconds.unwrap_or_else(|| panic!("no {name} in {}", self.0)) * 1e3
    }
}

/// Everything to green.
fn services(lab: &Lab) -> [Service; 2] {
    Family::BOTH.map(|family| Service::of(lab, "tcp", family).with_green("100%"))
}

fn visit_all(lab: &Lab, to: SocketAddr, count: usize, limit: Duration) -> Vec<End> {
    lab.client
        .run(|| (0..count).map(|_| visit(to, limit)).collect())
}

fn count_of(ends: &[End], end: End) -> u64 {
    ends.iter().filter(|e| **e == end).count() as u64
}

/// Waits until a figure is as clients have it, then asserts it.
fn agrees(agent: &Agent<'_>, service: &str, figures: &[(&str, u64)]) {
    let read = || {
        let signals = Signals::of(agent, service, Side::Green);
        let read = figures.iter().map(|(name, _)| signals.count(name));
        read.collect::<Vec<_>>()
    };
    let wanted: Vec<u64> = figures.iter().map(|(_, count)| *count).collect();
    eventually(SOON, || read() == wanted);
    let names: Vec<&str> = figures.iter().map(|(name, _)| *name).collect();
    assert_eq!(read(), wanted, "{service}: {names:?}");
}

/// A server that resets 2% of its connections before data and 2% after.
fn resets_are_told_apart(lab: &Lab, agent: &Agent<'_>, service: &Service, family: Family) {
    const VISITS: usize = 300;
    let at = lab.listen(Side::Green, family);
    let _server = Server::start(lab.server_ns(Side::Green), at, |number| match number % 50 {
        7 => End::ResetBeforeData,
        31 => End::ResetAfterData,
        _ => End::Served,
    });
    let ends = visit_all(lab, lab.vip(family), VISITS, PATIENCE);
    let (before, after) = (
        count_of(&ends, End::ResetBeforeData),
        count_of(&ends, End::ResetAfterData),
    );
    assert_eq!((before, after), (6, 6), "{ends:?}");
    agrees(
        agent,
        &service.name,
        &[
            ("attempts", VISITS as u64),
            ("answered", VISITS as u64),
            ("ended", VISITS as u64),
            ("resets_before_data", before),
            ("resets_after_data", after),
            ("failures", before + after),
            ("refused", 0),
            ("unanswered", 0),
            ("client_resets", 0),
            ("syn_retransmits", 0),
        ],
    );
    let signals = Signals::of(agent, &service.name, Side::Green);
    let times = ["handshake", "first_byte", "duration"].map(|name| signals.times(name));
    assert_eq!(times, [300, 300 - before, 300], "{}", signals.0);
    let page = agent.service(&service.name).unwrap();
    assert_eq!(number(&page["green_signals"]["attempts"]), VISITS as u64);
    let blue = Signals::of(agent, &service.name, Side::Blue);
    assert_eq!((blue.count("attempts"), blue.times("handshake")), (0, 0));
}

/// A closed port, then a black hole. Counts go on from what was there.
fn what_never_stands_is_counted(lab: &Lab, agent: &Agent<'_>, service: &Service, family: Family) {
    let before = Signals::of(agent, &service.name, Side::Green);
    let attempts = before.count("attempts");
    let vip = lab.vip(family);
    let refused = count_of(&visit_all(lab, vip, 40, PATIENCE), End::Refused);
    assert_eq!(refused, 40);
    agrees(
        agent,
        &service.name,
        &[("refused", 40), ("attempts", attempts + 40)],
    );
    let green = lab.server_ns(Side::Green);
    green
        .nft(&dropping("hole", "input", "tcp flags & (syn|ack) == syn"))
        .unwrap();
    // Two that ask once more after a second, and twenty that do not.
    let patient = visit_all(lab, vip, 2, Duration::from_millis(1_500));
    let hasty = visit_all(lab, vip, 20, Duration::from_millis(30));
    green.nft("delete table inet hole\n").unwrap();
    assert_eq!(count_of(&patient, End::TimedOut), 2);
    assert_eq!(count_of(&hasty, End::TimedOut), 20);
    agrees(
        agent,
        &service.name,
        &[
            ("attempts", attempts + 62),
            ("syn_retransmits", 2),
            ("unanswered", 22),
            ("refused", 40),
        ],
    );
}

/// A table that drops what matches on its way in or out.
fn dropping(table: &str, hook: &str, what: &str) -> String {
    format!(
        "table inet {table} {{\nchain c {{\ntype filter hook {hook} priority 0;\n{what} drop\n}}\n}}\n"
    )
}

/// Segments that TCP has sent again in a namespace, as /proc/net/snmp has it.
fn retransmitted(ns: &Netns) -> u64 {
    let text = ns.run(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|name| name == "RetransSegs");
    values
        .split(' ')
        .nth(place.unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

/// Every 20th segment with data is dropped behind the host, then in front of it:
/// both of them have passed it, and pass it again. One segment is under way at a
/// time, so that nothing aggregates any.
fn what_is_sent_again_is_counted(lab: &Lab, agent: &Agent<'_>, service: &Service) {
    let green = lab.server_ns(Side::Green);
    let at = lab.listen(Side::Green, Family::V4);
    let some = "tcp flags & (syn|fin|rst) == 0 meta length > 400 numgen inc mod 20 == 0";
    for (ns, sender, what) in [
        (green, &lab.client, "client_retransmits"),
        (&lab.client, green, "backend_retransmits"),
    ] {
        let seen = || Signals::of(agent, &service.name, Side::Green).count(what);
        let before = (retransmitted(sender), seen());
        ns.nft(&dropping("lossy", "input", some)).unwrap();
        let server = echo_server(green, at);
        let to = lab.vip(Family::V4);
        let echoed = lab.client.run(|| ask_echo(to));
        ns.nft("delete table inet lossy\n").unwrap();
        echoed.unwrap_or_else(|error| panic!("{what}: {error}"));
        server.join().unwrap().unwrap();
        let (sent, counted) = (retransmitted(sender) - before.0, seen() - before.1);
        assert!(sent >= 10, "{what}: only {sent} were sent again");
        // A FIN that is sent again has no data.
        assert!(
            (sent - 1..=sent).contains(&counted),
            "{what}: {counted} counted, {sent} sent"
        );
    }
}

/// Bytes of a message, in one segment.
const MESSAGE: usize = 600;
/// Messages each way.
const MESSAGES: usize = 300;

/// Sends back what one client sends.
fn echo_server(ns: &Netns, at: SocketAddr) -> std::thread::JoinHandle<std::io::Result<()>> {
    let listener = ns.run(|| TcpListener::bind(at)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut message = [0; MESSAGE];
        for _ in 0..MESSAGES {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        Ok(())
    })
}

fn ask_echo(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut answer = [0; MESSAGE];
    for _ in 0..MESSAGES {
        stream.write_all(&[7; MESSAGE])?;
        stream.read_exact(&mut answer)?;
    }
    Ok(())
}

/// What was counted of every flow stands for as much where one in four is watched.
fn another_watch_keeps_what_was_counted(agent: &mut Agent<'_>, service: &Service) {
    let counts = |agent: &Agent<'_>| {
        let signals = Signals::of(agent, &service.name, Side::Green);
        ["client_retransmits", "backend_retransmits"].map(|name| signals.count(name))
    };
    let before = counts(agent);
    assert!(before.iter().all(|count| *count >= 10), "{before:?}");
    for one_in in [4, 1] {
        agent.stop();
        agent
            .change(|settings| {
                let lines = settings.more.lines();
                let lines = lines.map(|line| match line.starts_with("watch_one_in") {
                    true => format!("watch_one_in = {one_in}\n"),
                    false => format!("{line}\n"),
                });
                settings.more = lines.collect();
            })
            .unwrap();
        agent.restart().unwrap();
        for (now, before) in counts(agent).into_iter().zip(before) {
            assert!(
                (before..before + 4).contains(&now),
                "one in {one_in}: {now} of {before}"
            );
        }
    }
}

fn agrees_with_clients(hook: &'static str) {
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let services = services(&lab);
    let mut agent = Agent::start(&lab, settings(hook)).unwrap();
    agent.apply(&services).unwrap();
    for (service, family) in services.iter().zip(Family::BOTH) {
        resets_are_told_apart(&lab, &agent, service, family);
        what_never_stands_is_counted(&lab, &agent, service, family);
    }
    what_is_sent_again_is_counted(&lab, &agent, &services[0]);
    another_watch_keeps_what_was_counted(&mut agent, &services[0]);
}

#[test]
fn the_kernel_says_what_clients_saw_under_tc() {
    need!("nft");
    agrees_with_clients("tc");
}

#[test]
fn the_kernel_says_what_clients_saw_under_xdp() {
    need!("nft");
    agrees_with_clients("xdp");
}

/// Both servers behind the same forwarder; green's holds SYN-ACKs for 3 ms more.
fn a_held_syn_ack_is_seen(hook: &'static str) {
    const HOLD: Duration = Duration::from_millis(3);
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let tunnel = Tunnel::behind(&lab, [Duration::ZERO, HOLD]).unwrap();
    let at = Side::BOTH.map(|side| tunnel.at(side, 7_000));
    let _servers = [0, 1].map(|i| Server::start(&tunnel.inner[i], at[i], |_| End::Served));
    let mut service = Service::of(&lab, "tcp", Family::V4).with_green("50%");
    (service.blue, service.green) = (vec![at[0]], vec![at[1]]);
    let agent = Agent::start(&lab, settings(hook)).unwrap();
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let ends = visit_all(&lab, lab.vip(Family::V4), 200, PATIENCE);
    assert_eq!(count_of(&ends, End::Served), 200);
    let [blue, green] = Side::BOTH.map(|side| Signals::of(&agent, &service.name, side));
    assert_eq!(blue.times("handshake") + green.times("handshake"), 200);
    let (blue_ms, green_ms) = (blue.p50("handshake"), green.p50("handshake"));
    // Buckets are an eighth wide, and a busy machine holds back both.
    assert!(
        (2.5..40.0).contains(&(green_ms - blue_ms)),
        "{hook}: blue {blue_ms} ms, green {green_ms} ms"
    );
    let metrics = metrics(&lab);
    let line = format!(
        "shifter_pool_handshake_seconds_bucket{{service=\"{}\",pool=\"green\",le=\"0.002097152\"}} 0",
        service.name
    );
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

/// The metrics page, over a connection inside the host's namespace.
fn metrics(lab: &Lab) -> String {
    lab.host.run(|| {
        let mut stream = TcpStream::connect(shifter_tests::agent::METRICS).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    })
}

#[test]
fn a_syn_ack_that_is_held_back_is_seen() {
    need!();
    std::thread::scope(|scope| {
        for hook in ["tc", "xdp"] {
            scope.spawn(move || a_held_syn_ack_is_seen(hook));
        }
    });
}
