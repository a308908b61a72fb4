//! Flows that are ended because somebody asked for it: at the pace that was asked
//! for, with a RST that both ends take, and no other flow is touched.

use std::{
    thread,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings, number},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        hold::{Held, ask_all},
        server,
    },
};

const PATIENCE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);
/// Flows on each pool.
const FLOWS: u32 = 50;
/// Flows a second.
const PACE: u32 = 20;

/// Connections to the VIP, from different ports.
fn hold(lab: &Lab, family: Family, first: u32, count: u32) -> Vec<Held> {
    let vip = lab.vip(family);
    lab.client.run(|| {
        (first..first + count)
            .map(|number| Held::tcp(number, vip, None, PATIENCE).unwrap())
            .collect()
    })
}

/// An agent with the service `tcp4` or `tcp6`, and held flows on blue, then green.
struct Scene<'lab> {
    agent: Agent<'lab>,
    name: String,
    blue: Vec<Held>,
    green: Vec<Held>,
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab, settings: Settings, family: Family) -> Self {
        let agent = Agent::start(lab, settings).unwrap();
        let service = Service::of(lab, "tcp", family);
        agent.apply(std::slice::from_ref(&service)).unwrap();
        let blue = hold(lab, family, 0, FLOWS);
        agent.shift(&service.name, "100%").unwrap();
        let green = hold(lab, family, FLOWS, FLOWS);
        let name = service.name;
        // Counts are up to a second old.
        let carried = || agent.carried(&name).unwrap();
        let is_there = eventually(SOON, || carried() == [u64::from(FLOWS); 2]);
        assert!(is_there, "{:?}", carried());
        Self {
            agent,
            name,
            blue,
            green,
        }
    }

    fn roll_back(&self) {
        let pace = format!("{PACE}/s");
        self.agent
            .done(&["rollback", &self.name, "--cut", &pace])
            .unwrap();
    }

    fn green_flows(&self) -> u64 {
        self.agent.carried(&self.name).unwrap()[1]
    }

    /// Each of green's was reset, none of blue's noticed, and a client that connects
    /// anew is served by blue.
    fn assert_cut(mut self, lab: &Lab, family: Family, what: &str) {
        let lost = ask_all(&mut self.green);
        assert_eq!(lost.cut, u64::from(FLOWS), "{what}: {lost:?}");
        let is_reset = |error: &String| error.contains("reset") || error.contains("Broken pipe");
        assert!(lost.errors.iter().all(is_reset), "{what}: {lost:?}");
        let kept = ask_all(&mut self.blue);
        assert!(kept.is_nothing(), "{what}: {kept:?}");
        let vip = lab.vip(family);
        let again = || Held::tcp(9, vip, None, PATIENCE).unwrap().ask().unwrap();
        assert_eq!(lab.client.run(again), Side::Blue.identity(), "{what}");
    }
}

/// All of green's took as long as the pace wants.
fn assert_paced(began: Instant) {
    let least_s = f64::from(FLOWS) / f64::from(PACE) - 0.5;
    let took = began.elapsed().as_secs_f64();
    assert!(took >= least_s, "all of them after {took} s");
}

/// The service counts all of green's, and the audit tells of the end.
fn assert_ended(agent: &Agent, name: &str, cause: &str, what: &str) {
    let service = agent.service(name).unwrap();
    let ended = number(&service["ended_flows"][cause]);
    assert_eq!(ended, u64::from(FLOWS), "{what}: {service}");
    // The next look at the table finds that none is left.
    let audit = || agent.done(&["get", "audit", name]).unwrap();
    let is_told = eventually(SOON, || audit().contains("cut end"));
    assert!(is_told, "{what}: {}", audit());
}

/// Rolled back with a cut; the flows are idle meanwhile.
fn ends_at_its_pace(placement: Placement, settings: Settings, family: Family) {
    let what = format!("{placement:?} {family:?} {}", settings.confined);
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let scene = Scene::new(&lab, settings, family);
    let began = Instant::now();
    scene.roll_back();
    let mut seen = Vec::new();
    let is_done = eventually(SOON, || {
        let left = scene.green_flows();
        seen.push((began.elapsed().as_secs_f64(), left));
        left == 0
    });
    assert!(is_done, "{what}: {seen:?}\n{}", scene.agent.log());
    for (at_s, left) in &seen {
        // Counts are up to a second old, so they are late, never early.
        let ended = f64::from(FLOWS) - *left as f64;
        let most = f64::from(PACE) * at_s + 2.0;
        assert!(ended <= most, "{what}: {ended} after {at_s} s: {seen:?}");
    }
    let least_s = f64::from(FLOWS) / f64::from(PACE) - 0.5;
    assert!(seen.last().unwrap().0 >= least_s, "{what}: {seen:?}");
    assert_ended(&scene.agent, &scene.name, "rollback", &what);
    scene.assert_cut(&lab, family, &what);
}

#[test]
fn a_rollback_with_a_cut_ends_greens_flows_at_its_pace_wherever_green_is() {
    need!();
    thread::scope(|scope| {
        let tc = || Settings::hook("tc");
        for (placement, settings, family) in [
            (Placement::HostPorts, tc(), Family::V4),
            (Placement::Container, tc(), Family::V6),
            (Placement::RemoteOther, tc(), Family::V4),
            (Placement::RemoteSame, tc().confined(), Family::V6),
        ] {
            scope.spawn(move || ends_at_its_pace(placement, settings, family));
        }
    });
}

#[test]
fn an_aborted_rollout_with_a_cut_ends_what_the_candidate_carries() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let name = service.name;
    let blue = hold(&lab, Family::V4, 0, FLOWS);
    let pace = format!("{PACE}/s");
    let start = ["rollout", "start", &name, "--strategy", "blue-green"];
    let more = ["--bake", "1h", "--cut", &pace];
    agent.done(&[&start[..], &more].concat()).unwrap();
    let green_has_all = || agent.service(&name).unwrap()["spec"]["green"] == "100%";
    assert!(eventually(SOON, green_has_all), "{}", agent.log());
    let green = hold(&lab, Family::V4, FLOWS, FLOWS);
    let carried = || agent.carried(&name).unwrap();
    let is_there = eventually(SOON, || carried() == [u64::from(FLOWS); 2]);
    assert!(is_there, "{:?}", carried());
    let began = Instant::now();
    agent.done(&["rollout", "abort", &name]).unwrap();
    assert!(eventually(SOON, || carried()[1] == 0), "{}", agent.log());
    assert_paced(began);
    assert_ended(&agent, &name, "rollback", "aborted");
    let scene = Scene {
        agent,
        name,
        blue,
        green,
    };
    scene.assert_cut(&lab, Family::V4, "aborted");
}

/// Nothing resets a UDP flow: its entry is released, and its client's next datagram
/// is a new flow.
#[test]
fn udp_flows_that_are_cut_are_new_ones_to_the_live_pool() {
    need!();
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "udp", Family::V4);
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let vip = lab.vip(Family::V4);
    let hold = |first: u32| -> Vec<Held> {
        let all = first..first + FLOWS;
        lab.client
            .run(|| all.map(|number| Held::udp(number, vip).unwrap()).collect())
    };
    let mut blue = hold(0);
    agent.shift(&service.name, "100%").unwrap();
    let mut green = hold(FLOWS);
    let carried = || agent.carried(&service.name).unwrap();
    let is_there = eventually(SOON, || carried() == [u64::from(FLOWS); 2]);
    assert!(is_there, "{:?}", carried());
    let pace = format!("{PACE}/s");
    let began = Instant::now();
    agent
        .done(&["rollback", &service.name, "--cut", &pace])
        .unwrap();
    assert!(eventually(SOON, || carried()[1] == 0), "{}", agent.log());
    assert_paced(began);
    assert_ended(&agent, &service.name, "rollback", "udp");
    let moved = ask_all(&mut green);
    assert_eq!((moved.moved, moved.cut), (u64::from(FLOWS), 0), "{moved:?}");
    let kept = ask_all(&mut blue);
    assert!(kept.is_nothing(), "{kept:?}");
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_cut_goes_on_with_it() {
    need!();
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut scene = Scene::new(&lab, Settings::hook("tc"), Family::V4);
    scene.roll_back();
    thread::sleep(Duration::from_secs(1));
    scene.agent.kill();
    thread::sleep(Duration::from_secs(1));
    scene.agent.restart().unwrap();
    let left = scene.green_flows();
    assert!(left > 0, "nothing was left to go on with");
    assert!(left < u64::from(FLOWS), "nothing was ended before");
    let is_done = eventually(SOON, || scene.green_flows() == 0);
    assert!(
        is_done,
        "{} left\n{}",
        scene.green_flows(),
        scene.agent.log()
    );
    scene.assert_cut(&lab, Family::V4, "killed");
}

#[test]
fn a_drain_resets_at_its_deadline_what_is_left() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let scene = Scene::new(&lab, Settings::hook("tc"), Family::V4);
    scene.agent.shift(&scene.name, "0%").unwrap();
    let target = format!("{}/green", scene.name);
    let began = Instant::now();
    let words = [
        "drain",
        &target,
        "--wait",
        "--deadline",
        "3s",
        "--on-deadline",
        "reset",
    ];
    scene.agent.done(&words).unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}");
    assert!(took < SOON, "{took:?}");
    assert_ended(&scene.agent, &scene.name, "drain", "drained");
    scene.assert_cut(&lab, Family::V4, "drained");
}

#[test]
fn flows_of_a_backend_that_is_down_end_where_the_service_says_so() {
    need!("nft");
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let scene = Scene::new(&lab, Settings::hook("tc"), Family::V4);
    let Scene {
        agent,
        name,
        mut blue,
        mut green,
    } = scene;
    let text = format!(
        "[[service]]\nname = \"{name}\"\nvip = \"{}/tcp\"\ngreen = \"100%\"\n\
         pools = {{ blue = [\"{}\"], green = [\"{}\"] }}\n[service.health]\ntype = \"tcp\"\n\
         interval = \"300ms\"\ntimeout = \"250ms\"\nrise = 1\nfall = 2\non_down = \"cut\"\n",
        lab.vip(Family::V4),
        lab.backend(Side::Blue, Family::V4),
        lab.backend(Side::Green, Family::V4),
    );
    let path = agent.services_file(&text).unwrap();
    agent
        .done(&["apply", "-f", path.to_str().unwrap()])
        .unwrap();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(agent.carried(&name).unwrap(), [u64::from(FLOWS); 2]);
    // It answers nothing more: neither checks nor clients, and sends no RST.
    let far = lab.server_ns(Side::Green);
    far.nft("table inet silent { chain in { type filter hook input priority 0; drop; }\n chain out { type filter hook output priority 0; drop; }\n}")
        .unwrap();
    let is_done = eventually(SOON, || agent.carried(&name).unwrap()[1] == 0);
    assert!(is_done, "{}", agent.log());
    let lost = ask_all(&mut green);
    assert_eq!(lost.cut, u64::from(FLOWS), "{lost:?}");
    let is_reset = |error: &String| error.contains("reset") || error.contains("Broken pipe");
    assert!(lost.errors.iter().all(is_reset), "{lost:?}");
    let kept = ask_all(&mut blue);
    assert!(kept.is_nothing(), "{kept:?}");
    let vip = lab.vip(Family::V4);
    let again = || Held::tcp(9, vip, None, PATIENCE).unwrap().ask().unwrap();
    assert_eq!(lab.client.run(again), Side::Blue.identity());
}
