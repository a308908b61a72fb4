//! An agent of another layout or table size takes over: no flow is lost, moved
//! or answered by another address, wherever it is killed on the way.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings},
    mover::Service,
    need,
    need::{long, scaled},
    next::next_binary,
    records::assert_as_stored,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server, storm::Storm},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Every point of a migration at which an agent can be killed.
const POINTS: [&str; 12] = [
    "maps-pinned",
    "migrate-filled",
    "migrate-begun",
    "attach-egress:1",
    "attach-ingress:1",
    "migrate-moving",
    "migrate-copied",
    "migrate-opening",
    "migrate-client",
    "migrate-replies",
    "migrate-moved",
    "migrate-exchanged",
];

/// An emulated CPU is ten times slower.
fn is_emulated() -> bool {
    std::env::var_os("SHIFTER_TEST_EMULATED").is_some()
}

/// Traffic of which each packet is watched, and new connections all the time.
struct Watched {
    storm: Storm,
    requests: Requests,
}

impl Watched {
    fn start(lab: &Lab) -> Self {
        let flows = if is_emulated() {
            40
        } else {
            scaled(200, 2_000)
        };
        Self::with(lab, flows, 10)
    }

    /// So many TCP flows, with so many frames a second each.
    fn with(lab: &Lab, flows: u32, rate: u32) -> Self {
        let vips = Family::BOTH.map(|family| lab.vip(family));
        let storm = Storm::answered(lab, flows, flows / 4, rate).unwrap();
        let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
        Self { storm, requests }
    }

    fn assert_well(&self, what: &str) {
        std::thread::sleep(Duration::from_millis(300));
        let progress = self.storm.progress();
        let bad = progress.failures.load(Relaxed) + progress.moved.load(Relaxed);
        assert_eq!(bad, 0, "{what}: {progress:?}");
    }

    fn finish(self, what: &str) {
        let tally = self.requests.finish().unwrap();
        let report = self.storm.finish().unwrap();
        println!("{what}: {} new connections, {report:?}", tally.answered);
        report.assert_untouched(what);
        assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
        assert!(tally.answered > 5, "{what}: {} answered", tally.answered);
        assert_eq!(report.tcp_by_identity.len(), 2, "{what}: {report:?}");
    }
}

fn start<'lab>(lab: &'lab Lab, settings: Settings) -> Agent<'lab> {
    let agent = Agent::start(lab, settings).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

/// How an agent follows another.
#[derive(Clone, Copy, Debug)]
enum By {
    Stop,
    Kill,
    Replace,
}

fn follow(lab: &Lab, agent: &mut Agent<'_>, by: By, what: &str) {
    let begun = Instant::now();
    let started = match by {
        By::Stop => {
            agent.stop();
            agent.restart()
        }
        By::Kill => {
            agent.kill();
            agent.restart()
        }
        By::Replace => agent.replace(),
    };
    started.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert!(
        agent.log().contains("flows have moved"),
        "{what}: {}",
        agent.log()
    );
    println!("{what}: {:.0?}", begun.elapsed());
    assert_as_stored(lab, what);
    let root = lab.bpffs().join("shifter");
    for left in ["next", "migration"] {
        assert!(!root.join(left).exists(), "{what}: {left} is left");
    }
}

/// Room for so many flows, in the later layout or not, and how that agent comes.
type Step = (u64, bool, By);

/// Sizes up and down, then a later layout, then another size of that one.
const ALL: [Step; 4] = [
    (131_072, false, By::Stop),
    (32_768, false, By::Replace),
    (32_768, true, By::Kill),
    (65_536, true, By::Replace),
];
/// A later layout, then another size of that one.
const LAYOUTS: [Step; 2] = [(65_536, true, By::Kill), (131_072, true, By::Replace)];
/// Sizes alone: other kernels have no agent of a later layout.
const SIZES: [Step; 2] = [(131_072, false, By::Replace), (32_768, false, By::Kill)];

/// Before any flow waits for it: it takes minutes the first time.
fn build_next() {
    next_binary().unwrap();
}

fn moves_over(placement: Placement, settings: Settings, steps: &[Step]) {
    let what = format!(
        "{placement:?} under {} {}",
        settings.hook,
        settings.more.trim()
    );
    if steps.iter().any(|(_, next, _)| *next) {
        build_next();
    }
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, settings);
    let watched = Watched::start(&lab);
    for (capacity, next, by) in steps.iter().copied() {
        let step = format!("{what}, to {capacity} flows, next: {next}, by {by:?}");
        agent
            .change(|settings| {
                settings.flow_capacity = capacity;
                settings.next = next;
            })
            .unwrap();
        follow(&lab, &mut agent, by, &step);
        watched.assert_well(&step);
    }
    watched.finish(&what);
}

#[test]
fn no_flow_notices_another_layout_under_tc() {
    need!();
    for _ in 0..scaled(1, 20) {
        moves_over(Placement::Container, Settings::hook("tc"), &LAYOUTS);
    }
}

#[test]
fn no_flow_notices_another_layout_under_xdp() {
    need!();
    moves_over(Placement::RemoteOther, Settings::hook("xdp"), &LAYOUTS);
}

#[test]
fn no_flow_notices_another_layout_or_size_under_clsact() {
    need!();
    moves_over(
        Placement::Container,
        Settings::hook("tc").with_clsact(),
        &ALL,
    );
}

#[test]
fn no_flow_notices_an_agent_with_three_capabilities_that_moves_flows() {
    need!();
    moves_over(Placement::Container, Settings::hook("tc").confined(), &ALL);
}

#[test]
fn no_flow_notices_another_size_under_tc() {
    need!();
    moves_over(Placement::Container, Settings::hook("tc"), &SIZES);
}

#[test]
fn no_flow_notices_another_size_under_xdp() {
    need!();
    moves_over(Placement::RemoteOther, Settings::hook("xdp"), &SIZES);
}

/// Between two sizes, and an agent dies at each point. In the short form each
/// hook has every second one.
fn survives_kills(placement: Placement, settings: Settings, first: usize) {
    let what = format!("{placement:?} under {}", settings.hook);
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, settings);
    let watched = Watched::start(&lab);
    let points = POINTS.iter().skip(if long() { 0 } else { first });
    for (turn, point) in points.step_by(scaled(2, 1)).enumerate() {
        let step = format!("{what}, killed at {point}");
        let capacity = [131_072, 65_536][turn % 2];
        agent
            .change(|settings| settings.flow_capacity = capacity)
            .unwrap();
        agent.kill();
        let started = agent.restart_with("SHIFTER_KILL_AT", point);
        assert!(started.is_err(), "{step}: it was not killed");
        let ended = agent.wait_for_signal(LIMIT);
        assert_eq!(ended, Some(libc::SIGKILL), "{step}: {}", agent.log());
        watched.assert_well(&step);
        agent
            .restart()
            .unwrap_or_else(|error| panic!("{step}: {error:#}"));
        assert_as_stored(&lab, &step);
        watched.assert_well(&step);
    }
    watched.finish(&what);
}

#[test]
fn no_flow_notices_an_agent_that_is_killed_while_flows_move_under_tc() {
    need!();
    survives_kills(Placement::Container, Settings::hook("tc"), 0);
}

#[test]
fn no_flow_notices_an_agent_that_is_killed_while_flows_move_under_xdp() {
    need!();
    survives_kills(Placement::RemoteOther, Settings::hook("xdp"), 1);
}

/// A start that is refused, and why.
fn assert_refused(agent: &mut Agent<'_>, words: &[&str]) {
    agent.stop();
    let error = format!("{:#}", agent.restart().unwrap_err());
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn what_cannot_move_is_refused_and_goes_on() {
    need!();
    build_next();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    // More than the smallest table has room for.
    let watched = Watched::with(&lab, 1_200, 2);
    agent
        .change(|settings| settings.flow_capacity = 1_024)
        .unwrap();
    assert_refused(&mut agent, &["flow_capacity = 1024 has no room"]);
    watched.assert_well("too small a table");
    agent
        .change(|settings| {
            settings.flow_capacity = 65_536;
            settings.next = true;
        })
        .unwrap();
    agent.restart().unwrap();
    watched.assert_well("a later layout");
    agent.change(|settings| settings.next = false).unwrap();
    let words = ["from an older version of shifter to a newer one only"];
    assert_refused(&mut agent, &words);
    watched.assert_well("back to an older layout");
    agent.change(|settings| settings.next = true).unwrap();
    agent.restart().unwrap();
    watched.finish("after both");
}
