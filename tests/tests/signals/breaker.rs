//! The breaker trips in the kernel while no agent lives.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, number},
    command::eventually,
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
};

use super::{
    Signals,
    server::{End, Server, visit},
    settings,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection on green that lives on.
struct Held(TcpStream, TcpStream);

impl Held {
    fn open(lab: &Lab, listener: &TcpListener) -> Self {
        let vip = lab.vip(Family::V4);
        let client = lab.client.run(|| TcpStream::connect(vip)).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut held = Self(client, server);
        held.exchange();
        held
    }

    fn exchange(&mut self) {
        let mut word = [0; 4];
        self.0.write_all(b"ping").unwrap();
        self.1.read_exact(&mut word).unwrap();
        self.1.write_all(b"pong").unwrap();
        self.0.read_exact(&mut word).unwrap();
    }
}

fn apply(agent: &Agent<'_>, service: &Service) {
    let text = to_toml(std::slice::from_ref(service))
        + "[service.breaker]\nwindow = \"60s\"\nmax_failures = 5\nmin_attempts = 10\nmax_ratio = \"20%\"\n";
    let path = agent.services_file(&text).unwrap();
    agent
        .done(&["apply", "-f", path.to_str().unwrap()])
        .unwrap();
}

fn trips_without_an_agent(hook: &'static str) {
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let at = |side| lab.listen(side, Family::V4);
    let _blue = Server::start(lab.server_ns(Side::Blue), at(Side::Blue), |_| End::Served);
    let green = lab.server_ns(Side::Green);
    let mut service = Service::of(&lab, "tcp", Family::V4).with_green("100%");
    let mut agent = Agent::start(&lab, settings(hook)).unwrap();
    apply(&agent, &service);
    let listener = green.run(|| TcpListener::bind(at(Side::Green))).unwrap();
    let mut held: Vec<Held> = (0..5).map(|_| Held::open(&lab, &listener)).collect();
    service = service.with_green("50%");
    agent.shift(&service.name, "50%").unwrap();

    agent.kill();
    drop(listener);
    let vip = lab.vip(Family::V4);
    let visits = |count: usize| -> Vec<End> {
        lab.client
            .run(|| (0..count).map(|_| visit(vip, PATIENCE)).collect())
    };
    let ends = visits(200);
    let refused = ends.iter().filter(|end| **end == End::Refused).count();
    // Six failures of at least ten attempts: the breaker trips at the tenth.
    assert_eq!(refused, 10, "{hook}: {ends:?}");
    let last = ends.iter().rposition(|end| *end == End::Refused).unwrap();
    assert!(ends[last + 1..].iter().all(|end| *end == End::Served));
    for held in &mut held {
        held.exchange();
    }

    agent.restart().unwrap();
    let view = agent.service(&service.name).unwrap();
    assert_eq!(view["weights"]["configured"], "0%", "{hook}: {view}");
    assert_eq!(view["breaker"]["tripped"], true);
    let audit = agent.json(&["get", "audit"]).unwrap();
    let newest = &audit["records"][0];
    assert_eq!(
        (newest["actor"].as_str(), newest["action"].as_str()),
        (Some("breaker"), Some("rollback")),
        "{audit}"
    );
    let reason = newest["reason"].as_str().unwrap();
    assert!(
        reason.contains("10 of 10 attempts on green within 1m"),
        "{reason}"
    );
    assert!(visits(50).iter().all(|end| *end == End::Served));
    let status = agent.json(&["status"]).unwrap();
    assert!(
        status["loud"].to_string().contains("breaker tripped"),
        "{status}"
    );

    // With green mended a shift is the next write, and arms it anew.
    let mended = Server::start(green, at(Side::Green), |_| End::Served);
    agent.shift(&service.name, "50%").unwrap();
    assert!(visits(100).iter().all(|end| *end == End::Served));
    let view = agent.service(&service.name).unwrap();
    assert_ne!(view["breaker"]["tripped"], true);
    assert!(number(&view["green_counters"]["new_flows"]) > 20);
    drop(held);
    // And a living agent sees it within seconds.
    drop(mended);
    let before = visits(100);
    assert!(before.contains(&End::Refused));
    let seen = eventually(Duration::from_secs(20), || {
        agent.service(&service.name).unwrap()["weights"]["configured"] == "0%"
    });
    assert!(seen, "{hook}: the agent does not record the trip");
}

#[test]
fn the_breaker_trips_without_an_agent_under_tc() {
    need!();
    trips_without_an_agent("tc");
}

#[test]
fn the_breaker_trips_without_an_agent_under_xdp() {
    need!();
    trips_without_an_agent("xdp");
}

/// The agent dies while flows move to another table: new flows are chosen by the
/// programs before, whose breaker trips, and the next agent ends the migration.
fn trips_while_flows_move(hook: &'static str) {
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let at = |side| lab.listen(side, Family::V4);
    let _blue = Server::start(lab.server_ns(Side::Blue), at(Side::Blue), |_| End::Served);
    let green = Server::start(lab.server_ns(Side::Green), at(Side::Green), |_| End::Served);
    let service = Service::of(&lab, "tcp", Family::V4).with_green("50%");
    let mut agent = Agent::start(&lab, settings(hook)).unwrap();
    apply(&agent, &service);
    let vip = lab.vip(Family::V4);
    let visits = |count: usize| -> Vec<End> {
        lab.client
            .run(|| (0..count).map(|_| visit(vip, PATIENCE)).collect())
    };
    assert!(visits(40).iter().all(|end| *end == End::Served));

    agent
        .change(|settings| settings.flow_capacity = 131_072)
        .unwrap();
    agent.kill();
    let started = agent.restart_with("SHIFTER_KILL_AT", "migrate-copied");
    assert!(started.is_err(), "{hook}: it was not killed");
    assert_eq!(agent.wait_for_signal(PATIENCE), Some(libc::SIGKILL));
    drop(green);
    let ends = visits(200);
    let refused = ends.iter().filter(|end| **end == End::Refused).count();
    assert!((6..40).contains(&refused), "{hook}: {ends:?}");
    let last = ends.iter().rposition(|end| *end == End::Refused).unwrap();
    assert!(ends[last + 1..].iter().all(|end| *end == End::Served));

    agent.restart().unwrap();
    let ends = visits(50);
    assert!(
        ends.iter().all(|end| *end == End::Served),
        "{hook}: {ends:?}"
    );
    let recorded = eventually(Duration::from_secs(20), || {
        agent.service(&service.name).unwrap()["weights"]["configured"] == "0%"
    });
    assert!(recorded, "{hook}: {}", agent.log());
    let audit = agent.json(&["get", "audit"]).unwrap();
    assert_eq!(audit["records"][0]["actor"], "breaker", "{audit}");
    // Nothing of what was counted on the way is lost or counted twice.
    let count = |side, name| Signals::of(&agent, &service.name, side).count(name);
    let attempts = Side::BOTH.map(|side| count(side, "attempts"));
    assert_eq!(attempts[0] + attempts[1], 290, "{hook}: {attempts:?}");
    assert_eq!(count(Side::Green, "refused"), refused as u64, "{hook}");
}

#[test]
fn a_breaker_that_trips_while_flows_move_has_tripped_after_it() {
    need!();
    std::thread::scope(|scope| {
        for hook in ["tc", "xdp"] {
            scope.spawn(move || trips_while_flows_move(hook));
        }
    });
}
