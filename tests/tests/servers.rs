//! Servers that people run: nginx under wrk, and a Redis transaction and
//! subscription that outlive the shift.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use shifter_tests::{
    agent::Settings,
    command::{Process, eventually},
    evidence,
    mover::{Mover, Service},
    need,
    need::scaled,
    stat,
    topology::{Family, Lab, Placement, Side},
};

/// nginx with a page that says which side it is. `/short` and `/long` are
/// logged apart, two bytes a request.
fn nginx(lab: &Lab, side: Side) -> Process {
    let name = side.name();
    let dir = lab.dir().join(format!("nginx-{name}"));
    fs::create_dir_all(&dir).unwrap();
    let path = |file: &str| dir.join(file).display().to_string();
    let listen: String = Family::BOTH
        .map(|family| format!("listen {};", lab.listen(side, family)))
        .concat();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {};", path(what)))
        .concat();
    let config = format!(
        "daemon off; master_process off; user root; pid {}; error_log {};
         events {{ worker_connections 4096; }}
         http {{ {temp} log_format dot '.'; keepalive_requests 100000000; access_log off;
           server {{ {listen}
             location /short {{ access_log {} dot; return 200 '{name}'; }}
             location /long {{ access_log {} dot; return 200 '{name}'; }} }} }}",
        path("pid"),
        path("error"),
        path("short"),
        path("long"),
    );
    fs::write(dir.join("nginx.conf"), config).unwrap();
    let mut command = lab.server_ns(side).command("nginx");
    command.arg("-p").arg(&dir).args(["-c", "nginx.conf", "-e"]);
    command.arg(dir.join("error"));
    let mut process = Process::start(command, dir.join("output")).unwrap();
    let addr = lab.listen(side, Family::V4);
    let up = eventually(Duration::from_secs(5), || {
        process.ended().is_none() && lab.server_ns(side).run(|| TcpStream::connect(addr)).is_ok()
    });
    assert!(up, "nginx is not up: {}", process.output());
    process
}

fn requests(lab: &Lab, side: Side, kind: &str) -> u64 {
    let dir: PathBuf = lab.dir().join(format!("nginx-{}", side.name()));
    fs::metadata(dir.join(kind)).map_or(0, |file| file.len() / 2)
}

/// What the two nginx say went wrong.
fn complaints(lab: &Lab) -> String {
    Side::BOTH
        .map(|side| {
            let log = lab
                .dir()
                .join(format!("nginx-{}", side.name()))
                .join("error");
            let text = fs::read_to_string(log).unwrap_or_default();
            format!("nginx {}:\n{text}", side.name())
        })
        .concat()
}

fn wrk(lab: &Lab, family: Family, kind: &str, seconds: u64) -> Process {
    let mut command = lab.client.command("wrk");
    command.args(["-t1", "-c16", &format!("-d{seconds}s"), "--timeout", "5s"]);
    if kind == "short" {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}/{kind}", lab.vip(family)));
    let log = lab.dir().join(format!("wrk-{kind}"));
    Process::start(command, log).unwrap()
}

fn assert_no_error(lab: &Lab, mut wrk: Process, what: &str) {
    let status = wrk.wait(Duration::from_secs(30)).expect("wrk ends");
    let output = wrk.output();
    assert!(
        status.success() && output.contains("requests in"),
        "{output}"
    );
    for bad in ["Socket errors", "Non-2xx", "unable"] {
        assert!(
            !output.contains(bad),
            "{what}: {output}{}{}",
            evidence::of(lab),
            complaints(lab)
        );
    }
}

fn ramp_nginx(hook: &'static str, family: Family) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = Side::BOTH.map(|side| nginx(&lab, side));
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let service = Service::of(&lab, "tcp", family);
    mover.apply(std::slice::from_ref(&service)).unwrap();
    let step = scaled(Duration::from_secs(2), Duration::from_secs(10));
    let seconds = 5 * (step.as_secs() + 1) + 1;
    let long = wrk(&lab, family, "long", seconds);
    let short = wrk(&lab, family, "short", seconds);
    for (weight, share) in [
        ("0%", 0.0),
        ("5%", 0.05),
        ("50%", 0.5),
        ("100%", 1.0),
        ("", 0.0),
    ] {
        match weight {
            "" => mover.rollback(&service.name).unwrap(),
            _ => mover.shift(&service.name, weight).unwrap(),
        }
        // Connections chosen under the weight before come to their end.
        thread::sleep(Duration::from_millis(500));
        let before = Side::BOTH.map(|side| requests(&lab, side, "short"));
        thread::sleep(step);
        let after = Side::BOTH.map(|side| requests(&lab, side, "short"));
        let [blue, green] = [0, 1].map(|i| after[i] - before[i]);
        let what = format!("{hook}, {family:?}, nginx at {weight:?}");
        println!("{what}: {green} of {} requests", blue + green);
        assert!(blue + green > 100, "{what}: hardly a request is answered");
        stat::assert_share(&what, green, blue + green, share, stat::FRESH_SEEDS);
    }
    assert_no_error(&lab, long, "connections kept alive");
    assert_no_error(&lab, short, "a connection for each request");
    assert_eq!(
        requests(&lab, Side::Green, "long"),
        0,
        "connections begun on blue stay there"
    );
}

#[test]
fn wrk_sees_no_error_while_nginx_is_shifted_and_rolled_back_under_tc() {
    need!("nginx", "wrk");
    ramp_nginx("tc", Family::V4);
}

#[test]
fn wrk_sees_no_error_while_nginx_is_shifted_and_rolled_back_under_xdp() {
    need!("nginx", "wrk");
    ramp_nginx("xdp", Family::V6);
}

fn redis(lab: &Lab, side: Side) -> Process {
    let addr = lab.listen(side, Family::V4);
    let dir = lab.dir().join(format!("redis-{}", side.name()));
    fs::create_dir_all(&dir).unwrap();
    let mut command = lab.server_ns(side).command("redis-server");
    command
        .args(["--port", &addr.port().to_string(), "--bind"])
        .arg(addr.ip().to_string())
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
        .arg("--dir")
        .arg(&dir);
    let mut process = Process::start(command, dir.join("output")).unwrap();
    process
        .wait_for("eady to accept connections", Duration::from_secs(10))
        .unwrap();
    let mut direct = Redis::connect_in(lab, Some(side), addr);
    assert_eq!(direct.ask(&["SET", "who", side.name()]), "+OK");
    process
}

/// A connection that speaks as much RESP as the scenario needs.
struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// From the client's namespace, or from a server's.
    fn connect_in(lab: &Lab, at: Option<Side>, to: SocketAddr) -> Self {
        let ns = at.map_or(&lab.client, |side| lab.server_ns(side));
        let stream = ns.run(|| TcpStream::connect(to)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// One answer, its parts joined by blanks.
    fn answer(&mut self) -> String {
        let line = self.line();
        match line.split_at_checked(1) {
            Some(("$", "-1")) => "(nil)".to_owned(),
            Some(("$", _)) => self.line(),
            Some(("*", count)) => {
                let count = count.parse().unwrap();
                let parts: Vec<String> = (0..count).map(|_| self.answer()).collect();
                parts.join(" ")
            }
            _ => line,
        }
    }

    fn ask(&mut self, words: &[&str]) -> String {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        self.answer()
    }
}

fn redis_stays(hook: &'static str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = Side::BOTH.map(|side| redis(&lab, side));
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    mover.apply(std::slice::from_ref(&service)).unwrap();
    let vip = lab.vip(Family::V4);
    let mut subscriber = Redis::connect_in(&lab, None, vip);
    assert_eq!(subscriber.ask(&["SUBSCRIBE", "news"]), "subscribe news :1");
    let mut transaction = Redis::connect_in(&lab, None, vip);
    assert_eq!(transaction.ask(&["MULTI"]), "+OK");
    assert_eq!(transaction.ask(&["GET", "who"]), "+QUEUED");

    mover.shift(&service.name, "100%").unwrap();
    let mut newcomer = Redis::connect_in(&lab, None, vip);
    assert_eq!(newcomer.ask(&["GET", "who"]), "green");
    assert_eq!(
        newcomer.ask(&["PUBLISH", "news", "x"]),
        ":0",
        "nobody listens on green"
    );

    let blue = lab.listen(Side::Blue, Family::V4);
    let mut on_blue = Redis::connect_in(&lab, Some(Side::Blue), blue);
    assert_eq!(on_blue.ask(&["PUBLISH", "news", "still-blue"]), ":1");
    assert_eq!(subscriber.answer(), "message news still-blue");
    assert_eq!(transaction.ask(&["SET", "ended", "here"]), "+QUEUED");
    assert_eq!(transaction.ask(&["EXEC"]), "blue +OK");
    assert_eq!(on_blue.ask(&["GET", "ended"]), "here");

    mover.rollback(&service.name).unwrap();
    assert_eq!(
        newcomer.ask(&["GET", "who"]),
        "green",
        "begun on green, stays there"
    );
    let mut last = Redis::connect_in(&lab, None, vip);
    assert_eq!(last.ask(&["GET", "who"]), "blue");
}

#[test]
fn a_subscription_and_a_transaction_begun_on_blue_end_on_blue_under_tc() {
    need!("redis-server");
    redis_stays("tc");
}

#[test]
fn a_subscription_and_a_transaction_begun_on_blue_end_on_blue_under_xdp() {
    need!("redis-server");
    redis_stays("xdp");
}
