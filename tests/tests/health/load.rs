//! Backends and pools that go down and come back under traffic.

use std::{
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings},
    command::{Process, eventually},
    need,
    topology::{Family, Lab, Placement, Side},
};

use crate::{
    SOON, apply, backend, becomes, health, metrics, programmed,
    server::{Server, answers, ask, exchange},
    toml,
};

/// New connections at a steady rate, and what became of each.
struct Clients {
    stop: AtomicBool,
}

/// `(begun, who answered)` of one connection.
type Answered = (Instant, Result<String, String>);

impl Clients {
    fn run<T>(lab: &Lab, during: impl FnOnce() -> T) -> (Vec<Answered>, T) {
        let clients = Self {
            stop: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut answered = Vec::new();
                while !clients.stop.load(Relaxed) {
                    answered.push((Instant::now(), ask(lab)));
                    thread::sleep(Duration::from_millis(10));
                }
                answered
            });
            let done = during();
            clients.stop.store(true, Relaxed);
            (asking.join().unwrap(), done)
        })
    }
}

/// Connections that stay, and who has them.
fn hold(lab: &Lab, count: usize) -> Vec<(TcpStream, String)> {
    let vip = lab.vip(Family::V4);
    lab.client.run(|| {
        (0..count)
            .map(|_| {
                let mut stream = TcpStream::connect(vip).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                let name = exchange(&mut stream).unwrap();
                (stream, name)
            })
            .collect()
    })
}

/// Many connections under load, for so many seconds.
fn wrk(lab: &Lab, seconds: u32) -> Process {
    let mut command = lab.client.command("wrk");
    command.args(["-t1", "-c16", &format!("-d{seconds}s"), "--timeout", "5s"]);
    command.args(["-H", "Connection: close"]);
    command.arg(format!("http://{}/", lab.vip(Family::V4)));
    Process::start(command, lab.dir().join(format!("wrk-{seconds}"))).unwrap()
}

fn dies_under_load(hook: &'static str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let mut dying = Server::start(&lab, Side::Blue, 7_101);
    let living = Server::start(&lab, Side::Blue, 7_102);
    let green = Server::start(&lab, Side::Green, 7_201);
    let agent = Agent::start(&lab, Settings::hook(hook)).unwrap();
    let tcp = "type = \"tcp\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 3";
    let blue = [dying.addr, living.addr];
    let weight = "green = \"30%\"\n";
    apply(&agent, &toml(&lab, &blue, &[green.addr], weight, tcp));
    becomes(&agent, dying.addr, "up");
    let mut held = hold(&lab, 60);
    let loaded = wrk(&lab, 30);
    let (answered, (died, down)) = Clients::run(&lab, || {
        thread::sleep(Duration::from_millis(500));
        dying.kill();
        let died = Instant::now();
        becomes(&agent, dying.addr, "down");
        let down = Instant::now();
        thread::sleep(Duration::from_secs(1));
        (died, down)
    });
    drop(loaded);
    let mut after = wrk(&lab, 2);
    after.wait(Duration::from_secs(30)).expect("wrk ends");
    let said = after.output();
    assert!(said.contains("requests in"), "{hook}: {said}");
    assert!(!said.contains("errors"), "{hook}: {said}");
    let failed: Vec<_> = answered
        .iter()
        .filter(|(_, answer)| answer.is_err())
        .collect();
    let (early, late) = (
        failed.iter().filter(|(at, _)| *at < died).count(),
        failed.iter().filter(|(at, _)| *at > down).count(),
    );
    assert_eq!((early, late), (0, 0), "{hook}: {failed:?}");
    assert!(!failed.is_empty(), "{hook}: it was not tried at all");
    let on_living = held.iter_mut().filter(|(_, name)| *name != dying.name);
    let mut kept = 0;
    for (stream, name) in on_living {
        assert_eq!(exchange(stream).unwrap(), *name, "{hook}: a pin has moved");
        kept += 1;
    }
    assert!(kept > 20, "{hook}: {kept}");
    println!(
        "{hook}: {} of {} connections failed, in {:?} until it was down",
        failed.len(),
        answered.len(),
        down - died
    );
    // Half of blue's clients have another backend, green's have theirs.
    assert!((programmed(&agent) - 0.3).abs() < 1e-6);
    dying.run("");
    becomes(&agent, dying.addr, "up");
    let back = eventually(SOON, || ask(&lab).unwrap() == dying.name);
    assert!(back, "{hook}: it gets new flows again");
}

#[test]
fn only_new_flows_to_a_dead_backend_fail_and_only_until_it_is_down_under_tc() {
    need!("nginx", "wrk");
    dies_under_load("tc");
}

#[test]
fn only_new_flows_to_a_dead_backend_fail_and_only_until_it_is_down_under_xdp() {
    need!("nginx", "wrk");
    dies_under_load("xdp");
}

#[test]
fn a_pool_that_is_down_gives_its_new_flows_to_the_other_and_has_them_back() {
    need!("nginx");
    let lab = Lab::new(Placement::Container).unwrap();
    let mut blue = Server::start(&lab, Side::Blue, 7_101);
    let green = Server::start(&lab, Side::Green, 7_201);
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let tcp = "type = \"tcp\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\nfall = 2";
    let text = toml(&lab, &[blue.addr], &[green.addr], "", tcp);
    apply(&agent, &text);
    becomes(&agent, blue.addr, "up");
    assert_eq!(answers(&lab, 10), [blue.name.as_str()]);
    let (answered, died) = Clients::run(&lab, || {
        blue.kill();
        let died = Instant::now();
        becomes(&agent, blue.addr, "down");
        thread::sleep(Duration::from_millis(500));
        died
    });
    let by_green = answered
        .iter()
        .find(|(_, answer)| *answer == Ok(green.name.clone()));
    let taken = by_green.expect("green answers").0 - died;
    // interval * fall + 1 s; twice that beside other load.
    assert!(taken < Duration::from_millis(2 * 1_600), "{taken:?}");
    println!("the other pool took over after {taken:?}");
    assert_eq!(programmed(&agent), 1.0);
    let configured = agent.service("web").unwrap()["weights"]["configured"].clone();
    assert_eq!(configured, "0%");
    let loud = agent.json(&["status"]).unwrap()["loud"].to_string();
    assert!(
        loud.contains("no backend of the live pool blue is up"),
        "{loud}"
    );
    assert!(metrics(&lab).contains("shifter_weight_programmed_ratio{service=\"web\"} 1\n"));
    let shown = agent.done(&["get", "backends", "web"]).unwrap();
    assert!(shown.contains("connection refused"), "{shown}");
    println!("{shown}{loud}");

    let refused = agent.cli(&["shift", "web", "--blue", "100%"]).unwrap();
    assert!(refused.status.success(), "it is what is there already");
    agent.shift("web", "50%").unwrap();
    let refused = agent.cli(&["shift", "web", "--blue", "90%"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("has 0 of 1 backend up"), "{said}");
    agent.done(&["rollback", "web"]).unwrap();
    assert_eq!(answers(&lab, 10), [green.name.as_str()]);

    // The agent is killed while blue is down, and stays away for a while.
    agent.kill();
    assert_eq!(answers(&lab, 10), [green.name.as_str()]);
    agent.restart().unwrap();
    let first = health(&agent, blue.addr);
    assert_eq!(first, "down", "{}", backend(&agent, blue.addr));
    assert_eq!(
        answers(&lab, 30),
        [green.name.as_str()],
        "no flow to a dead backend"
    );
    blue.run("");
    becomes(&agent, blue.addr, "up");
    let back = eventually(SOON, || answers(&lab, 5) == [blue.name.as_str()]);
    assert!(back, "blue has its new flows back");
    assert_eq!(programmed(&agent), 0.0);
    let loud = agent.json(&["status"]).unwrap()["loud"].to_string();
    assert!(!loud.contains("no backend of"), "{loud}");

    let hold = format!("{tcp}\non_pool_down = \"hold\"");
    apply(&agent, &toml(&lab, &[blue.addr], &[green.addr], "", &hold));
    blue.kill();
    becomes(&agent, blue.addr, "down");
    assert!(ask(&lab).is_err(), "new flows stay on a pool that holds");
    assert_eq!(programmed(&agent), 0.0);
}
