//! Cohorts: named client prefixes see a pool before anyone else does, whatever
//! the weight, and what becomes of them under load, rollbacks and crashes.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, lpm_trie::LpmTrie};
use shifter_tests::{
    agent::{Agent, Settings, number},
    command::eventually,
    mover::{Service, to_toml},
    need,
    need::scaled,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::{self, client_address},
        server,
        storm::{Plan, Storm},
    },
};

const BLUE: u8 = Side::Blue.identity();
const GREEN: u8 = Side::Green.identity();

/// Two prefixes, and one client of the first back to blue: of both families, so
/// that one text does for all services.
const STAFF: &str = r#"
[[service.cohort]]
name = "staff"
prefixes = ["10.82.1.0/24", "10.82.2.0/24", "fd82::100/120", "fd82::200/120"]
[[service.cohort]]
name = "not-me"
pool = "blue"
prefixes = ["10.82.1.7", "fd82::107"]
"#;

/// Services with cohorts, in one file.
fn with_cohorts(services: &[Service], cohorts: &str) -> String {
    let with = |service: &Service| to_toml(std::slice::from_ref(service)) + cohorts;
    services.iter().map(with).collect()
}

fn apply(agent: &Agent<'_>, text: &str) -> String {
    let path = agent.services_file(text).unwrap();
    agent
        .done(&["apply", "-f", path.to_str().unwrap()])
        .unwrap()
}

/// What an apply that must fail says.
fn refused(agent: &Agent<'_>, text: &str) -> String {
    let path = agent.services_file(text).unwrap();
    let output = agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    assert!(!output.status.success(), "it was to be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ask(service: &Service, client: u16) -> u8 {
    let source = Some(client_address(service.vip, client));
    match service.protocol {
        "udp" => requests::ask_udp(service.vip, source).unwrap(),
        _ => requests::ask(service.vip, source).unwrap(),
    }
}

/// Who answers the client that has this number.
fn asked(lab: &Lab, service: &Service, client: u16) -> u8 {
    lab.client.run(|| ask(service, client))
}

/// Ids of the sets in the kernel's trie and the number of its prefixes.
fn in_kernel(lab: &Lab) -> (BTreeSet<[u8; 2]>, usize) {
    let path = lab.bpffs().join("shifter/maps/COHORTS");
    let map = Map::LpmTrie(MapData::from_pin(path).unwrap());
    let trie: LpmTrie<_, [u8; 20], u32> = LpmTrie::try_from(map).unwrap();
    let keys: Vec<[u8; 20]> = trie.keys().map(|key| key.unwrap().data()).collect();
    let sets = keys.iter().map(|key| [key[0], key[1]]).collect();
    (sets, keys.len())
}

fn limit_used(agent: &Agent<'_>) -> u64 {
    let status = agent.json(&["status"]).unwrap();
    let limits = status["limits"].as_array().unwrap().clone();
    let is_it = |limit: &&serde_json::Value| limit["name"] == "cohort_prefixes";
    number(&limits.iter().find(is_it).unwrap()["used"])
}

/// Raised when it goes, after a panic too, so that nobody waits for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn seen_before_anyone_else(hook: &'static str) {
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook(hook)).unwrap();
    let services = Service::all_four(&lab);
    apply(&agent, &with_cohorts(&services, STAFF));
    for service in &services {
        let name = &service.name;
        for (client, is_staff, why) in [
            (0x100, true, "first of the first prefix"),
            (0x1ff, true, "last of the first prefix"),
            (0x255, true, "in the second prefix"),
            (0x107, false, "its longest prefix says blue"),
            (0x106, true, "right before that one"),
            (0x0ff, false, "right before the prefixes"),
            (0x300, false, "right behind them"),
            (0x001, false, "far from them"),
        ] {
            let must = if is_staff { GREEN } else { BLUE };
            for _ in 0..3 {
                let who = asked(&lab, service, client);
                assert_eq!(who, must, "{hook}, {name}, client {client:#x}: {why}");
            }
            let address = client_address(service.vip, client).to_string();
            let explained = agent.json(&["explain", name, &address]).unwrap();
            let pool = if is_staff { "green" } else { "blue" };
            assert_eq!(explained["pool"], pool, "{explained}");
            let cohort = match (is_staff, client) {
                (true, _) => "staff",
                (false, 0x107) => "not-me",
                _ => "",
            };
            assert_eq!(explained["cohort"], cohort, "{explained}");
        }
        let shown = agent.service(name).unwrap();
        assert_eq!(shown["cohorts"], "on");
        assert_eq!(number(&shown["green_counters"]["new_flows"]), 0, "{name}");
        assert_eq!(number(&shown["green_counters"]["cohort_flows"]), 4 * 3);
        assert_eq!(number(&shown["blue_counters"]["cohort_flows"]), 3);
        assert_eq!(number(&shown["blue_counters"]["new_flows"]), 3 * 3);
        let observed = &shown["weights"]["observed"];
        assert_eq!(
            (number(&observed["green"]), number(&observed["total"])),
            (0, 9)
        );
        assert_eq!(number(&observed["cohort"]), 15);
    }
    // What people see.
    let explained = agent.done(&["explain", "tcp4", "10.82.1.9:40000"]).unwrap();
    let line =
        "cohort \"staff\" holds 10.82.1.9 by its longest prefix 10.82.1.0/24: green, the candidate";
    assert!(explained.contains(line), "{explained}");
    let cohorts = agent.done(&["get", "cohorts", "tcp6"]).unwrap();
    for part in [
        "staff",
        "not-me",
        "green (candidate)",
        "staff: fd82::100/120",
    ] {
        assert!(cohorts.contains(part), "{cohorts}");
    }
    let services = agent.done(&["get", "services"]).unwrap();
    assert!(services.contains("15 by cohort"), "{services}");
}

#[test]
fn two_prefixes_see_green_at_weight_0_and_nobody_else_does_under_tc() {
    need!();
    seen_before_anyone_else("tc");
}

#[test]
fn two_prefixes_see_green_at_weight_0_and_nobody_else_does_under_xdp() {
    need!();
    seen_before_anyone_else("xdp");
}

/// A cohort of so many addresses that nobody has, beginning at one, and of the
/// clients 0x100 to 0x1ff.
fn crowd(first: u32, count: u32) -> String {
    let mut text = "[[service.cohort]]\nname = \"crowd\"\nprefixes = [\"10.82.1.0/24\"".to_owned();
    for bits in first..first + count {
        write!(text, ", \"{}\"", Ipv4Addr::from_bits(bits)).unwrap();
    }
    text + "]\n"
}

#[test]
fn a_change_of_10000_prefixes_under_load_moves_no_flow_and_is_never_half_there() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    let other = {
        let mut other = Service::of(&lab, "udp", Family::V4);
        other.green_weight = "30%".to_owned();
        other
    };
    let text = |first, count| {
        with_cohorts(std::slice::from_ref(&service), &crowd(first, count))
            + &to_toml(std::slice::from_ref(&other))
    };
    apply(&agent, &text(0x0b00_0000, 10_000));
    // Pinned flows of nobody in particular, on both pools.
    let plan = Plan {
        tcp_to: vec![service.vip],
        udp_to: vec![other.vip],
        tcp_flows: 100,
        udp_flows: 100,
        rate: 2,
    };
    let storm = Storm::start(&lab.client, plan).unwrap();
    assert!(
        storm.wait_for(200, Duration::from_secs(30)),
        "{:?}",
        storm.progress()
    );
    let (stop, member, stranger) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let changes: u32 = scaled(6, 40);
    let mut longest = Duration::ZERO;
    let keep_asking = |first: u16, must: u8, count: &AtomicU64| {
        let mut number = 0;
        while !stop.load(Relaxed) {
            number = (number + 1) % 200;
            let client = first + number;
            assert_eq!(ask(&service, client), must, "client {client:#x}");
            count.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        let askers = [
            scope.spawn(|| lab.client.run(|| keep_asking(0x100, GREEN, &member))),
            scope.spawn(|| lab.client.run(|| keep_asking(0x300, BLUE, &stranger))),
        ];
        let ending = Stop(&stop);
        for change in 0..changes {
            let begin = Instant::now();
            // Other numbers, so that each change has a place in the trie of its own.
            apply(&agent, &text(0x0c00_0000 + change * 5_000, 10_000 + change));
            longest = longest.max(begin.elapsed());
        }
        drop(ending);
        for asker in askers {
            asker.join().unwrap();
        }
    });
    let report = storm.finish().unwrap();
    report.assert_untouched("flows while cohorts changed");
    let (member, stranger) = (member.load(Relaxed), stranger.load(Relaxed));
    println!(
        "{changes} changes, the longest {longest:?}; {member} flows of members, {stranger} of strangers"
    );
    assert!(member > 100 && stranger > 100);
    // What was replaced goes.
    let is_clean = || in_kernel(&lab).0.len() == 1;
    assert!(
        eventually(Duration::from_secs(10), is_clean),
        "{:?}",
        in_kernel(&lab)
    );
    assert_eq!(in_kernel(&lab).1 as u64, limit_used(&agent));
}

#[test]
fn a_rollback_a_promote_and_the_dead_man_suspend_cohorts() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V6);
    let text = with_cohorts(std::slice::from_ref(&service), STAFF);
    let staff = |who: u8, what: &str| assert_eq!(asked(&lab, &service, 0x142), who, "{what}");
    let state = |agent: &Agent<'_>| agent.service("tcp6").unwrap()["cohorts"].clone();
    apply(&agent, &text);
    staff(GREEN, "applied");

    let told = agent.done(&["rollback", "tcp6"]).unwrap();
    assert!(told.contains("the cohorts are suspended"), "{told}");
    staff(BLUE, "rolled back");
    assert_eq!(state(&agent), "suspended");
    let shown = agent.done(&["get", "services"]).unwrap();
    assert!(shown.contains("suspended"), "{shown}");
    let why = agent.done(&["explain", "tcp6", "fd82::142"]).unwrap();
    assert!(why.contains("but cohorts are suspended"), "{why}");
    agent.stop();
    agent.restart().unwrap();
    staff(BLUE, "suspended over a restart");

    let told = apply(&agent, &text);
    assert!(told.contains("cohorts: suspended -> on"), "{told}");
    staff(GREEN, "applied again");

    // Weight 0, yet cohorts give the candidate flows: the dead-man guards that.
    agent
        .done(&["shift", "tcp6", "--candidate", "0%", "--revert-after", "6s"])
        .unwrap();
    agent.kill();
    staff(GREEN, "before the deadline");
    thread::sleep(Duration::from_secs(6));
    staff(BLUE, "past the deadline, no agent alive");
    agent.restart().unwrap();
    assert!(eventually(Duration::from_secs(5), || state(&agent) == "suspended"));
    staff(BLUE, "recorded as a rollback");

    agent
        .done(&["shift", "tcp6", "--candidate", "0%", "--cohorts", "on"])
        .unwrap();
    staff(GREEN, "put in force by hand");
    agent.done(&["promote", "tcp6"]).unwrap();
    staff(GREEN, "green is live now and has everything");
    assert_eq!(state(&agent), "suspended");
    agent
        .done(&["shift", "tcp6", "--candidate", "0%", "--cohorts", "on"])
        .unwrap();
    staff(BLUE, "blue is the candidate now");
    agent
        .done(&["shift", "tcp6", "--candidate", "0%", "--cohorts", "off"])
        .unwrap();
    staff(GREEN, "and off again");
}

#[test]
fn an_agent_that_dies_between_set_and_service_leaves_no_prefix_behind() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4);
    let text = |count| with_cohorts(std::slice::from_ref(&service), &crowd(0x0b00_0000, count));
    let mut count = 1_000;
    apply(&agent, &text(count));
    for point in [
        "cohorts-half",
        "cohorts-half:3",
        "cohorts-written",
        "pending",
        "before-head",
        "after-head",
        "apply",
        "commit",
        "committed",
        "cohorts-out",
    ] {
        agent.stop();
        agent.restart_with("SHIFTER_KILL_AT", point).unwrap();
        count += 100;
        let path = agent.services_file(&text(count)).unwrap();
        let _ = agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap();
        let signal = agent.wait_for_signal(Duration::from_secs(20));
        assert_eq!(signal, Some(libc::SIGKILL), "it was to die at {point}");
        assert_eq!(
            asked(&lab, &service, 0x101),
            GREEN,
            "after {point}, no agent"
        );
        agent.restart().unwrap();
        assert_eq!(asked(&lab, &service, 0x101), GREEN, "after {point}");
        assert_eq!(asked(&lab, &service, 0x301), BLUE, "after {point}");
        // The old set or the new one, whole, and nothing else.
        let is_whole = || {
            let (sets, prefixes) = in_kernel(&lab);
            let stored = limit_used(&agent);
            let wanted = [u64::from(count) - 99, u64::from(count) + 1];
            sets.len() == 1 && prefixes as u64 == stored && wanted.contains(&stored)
        };
        let whole = eventually(Duration::from_secs(10), is_whole);
        assert!(
            whole,
            "after {point} with {count}: {:?}, {}",
            in_kernel(&lab),
            limit_used(&agent)
        );
        apply(&agent, &text(count));
    }
    agent.stop();
    agent.restart().unwrap();
    agent.done(&["delete", "tcp4", "--force"]).unwrap();
    assert!(eventually(Duration::from_secs(10), || in_kernel(&lab).1 == 0));
}

#[test]
fn too_many_prefixes_are_refused_and_change_nothing() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let services = [
        Service::of(&lab, "tcp", Family::V4),
        Service::of(&lab, "udp", Family::V4),
    ];
    // From files, as one keeps such lists.
    let file = |name: &str, first: u32, count: u32| {
        let path = lab.dir().join(name);
        let mut text = "# clients\n10.82.1.0/24\n".to_owned();
        for bits in first..first + count {
            writeln!(text, "{} # one", Ipv4Addr::from_bits(bits)).unwrap();
        }
        fs::write(&path, text).unwrap();
        format!(
            "[[service.cohort]]\nname = \"crowd\"\nprefixes_file = \"{}\"\n",
            path.display()
        )
    };
    let one = |service: &Service, cohort: &str| with_cohorts(std::slice::from_ref(service), cohort);
    let text = one(&services[0], &file("a.txt", 0x0b00_0000, 40_000));
    let begin = Instant::now();
    apply(&agent, &text);
    println!(
        "40,001 prefixes from a file applied in {:?}",
        begin.elapsed()
    );
    assert_eq!(asked(&lab, &services[0], 0x101), GREEN);
    let told = refused(
        &agent,
        &one(&services[1], &file("b.txt", 0x0c00_0000, 40_000)),
    );
    assert!(
        told.contains("the limit of 65536 cohort prefixes"),
        "{told}"
    );
    let told = refused(
        &agent,
        &one(&services[1], &file("c.txt", 0x0c00_0000, 70_000)),
    );
    assert!(
        told.contains("c.txt has more than 65,536 prefixes"),
        "{told}"
    );
    assert_eq!(limit_used(&agent), 40_001);
    assert!(agent.service("udp4").is_err(), "it was not made");
    assert_eq!(asked(&lab, &services[0], 0x101), GREEN);
    // A rollback of another service waits for no such apply.
    apply(&agent, &to_toml(&services[1..]));
    let stop = AtomicBool::new(false);
    let mut worst = 0;
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let _ending = Stop(&stop);
            // More than fit beside each other: what was replaced has to make room.
            for change in 0..6 {
                let cohort = file("a.txt", 0x0d00_0000 + change * 100, 40_000);
                let path = lab.dir().join("changing.toml");
                fs::write(&path, one(&services[0], &cohort)).unwrap();
                agent
                    .done(&["apply", "-f", path.to_str().unwrap()])
                    .unwrap();
            }
        });
        while !stop.load(Relaxed) {
            agent.shift("udp4", "10%").unwrap();
            let receipt = agent.json(&["rollback", "udp4"]).unwrap();
            worst = worst.max(number(&receipt["programmed_ns"]));
        }
        changes.join().unwrap();
    });
    println!("slowest rollback beside applies of 40,001 prefixes: {worst} ns");
}
