//! The agent is killed again and again, at random moments and in the middle of
//! whatever it does: no flow notices, and after each start the kernel is as the
//! store says and as clients were told.

use std::{
    collections::BTreeMap,
    env, fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use shifter::{
    model::{Affinity, Weight},
    proto::{BackendSpec, Pool, Receipt, ServiceSpec},
    store::Loaded,
};
use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::Service,
    need,
    need::scaled,
    records::assert_as_stored,
    rpc::Rpc,
    topology::{Family, Lab, Placement},
    traffic::{requests::Requests, server, storm::Storm},
};

/// When the agent dies.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// By SIGKILL from outside, so many ms into its work.
    After(u64),
    /// At a point in its own code, `NAME` or `NAME:PASS`.
    At(&'static str),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(ms) => write!(f, "killed after {ms} ms"),
            Self::At(point) => write!(f, "killed at {point}"),
        }
    }
}

/// In the middle of a write.
const IN_WRITES: [&str; 10] = [
    "pending",
    "rings-written",
    "rings-written:3",
    "before-head:2",
    "after-head:3",
    "apply:1",
    "apply:3",
    "commit:2",
    "committed:3",
    "sweep",
];

/// In the middle of an attach, on two interfaces.
const IN_ATTACH: [&str; 3] = ["attach-egress:1", "attach-egress:2", "attach-ingress:1"];

/// Until the agent has come to a point, at the latest.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest time into its work.
const LATEST_MS: u64 = 400;

/// Numbers that a seed gives, by splitmix64.
struct Random(u64);

impl Random {
    /// Of a seed that is printed, or given by `SHIFTER_TEST_SEED`.
    fn new(what: &str) -> Self {
        let asked = env::var("SHIFTER_TEST_SEED").ok();
        let seed = asked.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_nanos() as u64
        });
        println!("{what}: SHIFTER_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % limit
    }
}

/// What a service shall be, as far as the writes here change it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Wish {
    green: Weight,
    affinity: Affinity,
}

/// The services as clients were told, and what the last request without an
/// answer asked for: all of it came about, or nothing.
#[derive(Default)]
struct Told {
    wishes: BTreeMap<String, Wish>,
    generations: BTreeMap<String, u32>,
    unanswered: BTreeMap<String, Wish>,
    writes: u64,
}

/// The same for a share as a client wrote it and as the kernel tells it.
fn plain(green: Weight) -> Weight {
    Weight::from_threshold(green.threshold())
}

impl Told {
    fn of(loaded: &Loaded) -> Self {
        let mut told = Self::default();
        for service in &loaded.services {
            let spec = &service.spec;
            let wish = Wish {
                green: plain(spec.green),
                affinity: spec.affinity,
            };
            told.wishes.insert(spec.name.clone(), wish);
            told.generations
                .insert(spec.name.clone(), service.generation);
        }
        told
    }

    fn acknowledge(&mut self, receipts: &[Receipt]) {
        self.writes += 1;
        self.wishes.append(&mut self.unanswered);
        for receipt in receipts {
            self.generations
                .insert(receipt.service.clone(), receipt.generation);
        }
    }

    /// Asserts that nothing that was acknowledged is lost.
    fn assert_kept(&self, now: &Self, what: &str) {
        for (name, generation) in &self.generations {
            assert!(
                now.generations[name] >= *generation,
                "{what}: {name} has generation {} and {generation} was acknowledged",
                now.generations[name]
            );
        }
        let mut asked = self.wishes.clone();
        asked.extend(self.unanswered.clone());
        assert!(
            now.wishes == self.wishes || now.wishes == asked,
            "{what}: acknowledged {:?}, unanswered {:?}, and there is {:?}",
            self.wishes,
            self.unanswered,
            now.wishes
        );
    }
}

/// Writes until the agent is gone or `stop` holds: weights, and each fourth
/// time all services at once.
fn write(
    rpc: &mut Rpc,
    services: &[Service],
    random: &mut Random,
    told: &mut Told,
    stop: &AtomicBool,
) {
    let names: Vec<String> = told.wishes.keys().cloned().collect();
    for i in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        let percent = format!("{}%", random.below(101));
        let green = plain(percent.parse().unwrap());
        let answer = if i % 4 == 3 {
            let affinity = [Affinity::Flow, Affinity::Client(None)][random.below(2) as usize];
            let wish = Wish { green, affinity };
            told.unanswered = names.iter().map(|name| (name.clone(), wish)).collect();
            rpc.apply(services.iter().map(|s| message(s, wish)).collect())
        } else {
            let name = &names[random.below(names.len() as u64) as usize];
            let wish = Wish {
                green,
                ..told.wishes[name]
            };
            told.unanswered = [(name.clone(), wish)].into();
            rpc.set_weight(name, &percent).map(|receipt| vec![receipt])
        };
        match answer {
            Ok(receipts) => told.acknowledge(&receipts),
            Err(_) => return,
        }
        thread::sleep(Duration::from_millis(random.below(15)));
    }
}

/// A service as the API takes it; its backends' weights change with its own, so
/// that rings are written anew.
fn message(service: &Service, wish: Wish) -> ServiceSpec {
    let backends = |addrs: &[std::net::SocketAddr]| {
        let weight = 1 + u32::from(wish.affinity == Affinity::Flow);
        let backend = |addr: &std::net::SocketAddr| BackendSpec {
            address: addr.to_string(),
            weight,
            ..BackendSpec::default()
        };
        addrs.iter().map(backend).collect()
    };
    let affinity = match wish.affinity {
        Affinity::Flow => "flow",
        Affinity::Client(_) => "client",
    };
    ServiceSpec {
        name: service.name.clone(),
        vip: format!("{}/{}", service.vip, service.protocol),
        mode: "nat".to_owned(),
        live: Pool::Blue.into(),
        green: wish.green.to_string(),
        affinity: affinity.to_owned(),
        split: "hash".to_owned(),
        blue: backends(&service.blue),
        green_pool: backends(&service.green),
        ..ServiceSpec::default()
    }
}

/// Has the agent die at one moment and starts it again; writes that were
/// acknowledged meanwhile.
fn kill_and_start(
    lab: &Lab,
    agent: &mut Agent<'_>,
    services: &[Service],
    random: &mut Random,
    moment: Moment,
) -> u64 {
    let what = format!("{moment}");
    let mut told = Told::of(&assert_as_stored(lab, &what));
    let is_up = match moment {
        Moment::After(_) => true,
        Moment::At(point) => {
            agent.kill();
            // It may die before it answers: while it starts.
            agent.restart_with("SHIFTER_KILL_AT", point).is_ok()
        }
    };
    // A start that completes what was cut off is no write of ours.
    if is_up {
        let stop = AtomicBool::new(false);
        let rpc = Rpc::connect(agent);
        thread::scope(|scope| {
            let (told, stop) = (&mut told, &stop);
            let writer = scope.spawn(move || {
                if let Ok(mut rpc) = rpc {
                    write(&mut rpc, services, random, told, stop);
                }
            });
            match moment {
                Moment::After(ms) => {
                    thread::sleep(Duration::from_millis(ms));
                    agent.signal(libc::SIGKILL);
                }
                Moment::At(_) => {
                    eventually(LIMIT, || writer.is_finished());
                }
            }
            stop.store(true, Relaxed);
            writer.join().unwrap();
        });
    }
    let ended = agent.wait_for_signal(LIMIT);
    assert_eq!(ended, Some(libc::SIGKILL), "{what}: {}", agent.log());
    agent
        .restart()
        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let now = Told::of(&assert_as_stored(lab, &what));
    told.assert_kept(&now, &what);
    told.writes
}

fn survives_kills(
    placement: Placement,
    hook: &'static str,
    moments: &[Moment],
    mut random: Random,
) {
    let what = format!("{placement:?} under {hook}, {} kills", moments.len());
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook(hook)).unwrap();
    let services: Vec<Service> = Service::all_four(&lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let flows = scaled(400, 2_000);
    let storm = Storm::answered(&lab, flows, flows / 4, 4).unwrap();
    let requests = Requests::start(&lab.client, &vips, 2, 100).unwrap();
    let start = Instant::now();
    let mut writes = 0;
    for moment in moments {
        writes += kill_and_start(&lab, &mut agent, &services, &mut random, *moment);
        let progress = storm.progress();
        let bad = progress.failures.load(Relaxed) + progress.moved.load(Relaxed);
        assert_eq!(bad, 0, "{what}: {moment}: {progress:?}");
    }
    let tally = requests.finish().unwrap();
    let report = storm.finish().unwrap();
    println!(
        "{what} in {:.0?}: {writes} writes acknowledged, {} new connections, {report:?}",
        start.elapsed(),
        tally.answered
    );
    report.assert_untouched(&what);
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    assert_eq!(report.tcp_by_identity.len(), 2, "{what}: {report:?}");
    assert!(writes > moments.len() as u64, "{what}: {writes} writes");
}

/// Every point, and so many random moments, in a random order.
fn moments(points: &[&'static str], count: u64, random: &mut Random) -> Vec<Moment> {
    let mut moments: Vec<Moment> = points.iter().map(|point| Moment::At(point)).collect();
    moments.extend((0..count).map(|_| Moment::After(random.below(LATEST_MS))));
    for i in (1..moments.len()).rev() {
        moments.swap(i, random.below(i as u64 + 1) as usize);
    }
    moments
}

#[test]
fn no_flow_notices_an_agent_that_is_killed_in_the_middle_of_writes_under_tc() {
    need!();
    let mut random = Random::new("writes");
    let moments = moments(&IN_WRITES, scaled(12, 140), &mut random);
    survives_kills(Placement::Container, "tc", &moments, random);
}

#[test]
fn no_flow_notices_an_agent_that_is_killed_in_the_middle_of_attaching_under_xdp() {
    need!();
    let mut random = Random::new("attaching");
    let moments = moments(&IN_ATTACH, scaled(5, 60), &mut random);
    survives_kills(Placement::RemoteOther, "xdp", &moments, random);
}
