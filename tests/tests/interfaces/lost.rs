//! More notices than the agent's socket holds: it reads everything anew, ends up
//! with the right picture, and does not burn a CPU over it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    need,
    topology::{Lab, Placement},
    traffic::server,
};

use crate::{goes_on, ip, start, storm, turn, watch::Watch};

/// Two links each.
const PAIRS: u32 = 1_000;
/// `ip link del group N` takes all of them in one go.
const GROUP: u32 = 77;
/// Of one CPU, while notices come as fast as the kernel makes links.
const MOST_CPU: f64 = 0.7;

fn make_links(lab: &Lab) {
    let lines: Vec<String> = (0..PAIRS)
        .map(|n| format!("link add n{n} up group {GROUP} type veth peer name m{n}"))
        .collect();
    lab.host.ip(&lines).unwrap();
}

fn delete_links(lab: &Lab) {
    lab.host.ip(&[format!("link del group {GROUP}")]).unwrap();
}

/// CPU time of the agent so far.
fn cpu(agent: &Agent<'_>) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid().unwrap())).unwrap();
    // After the name, which may hold anything: utime and stime are 12th and 13th.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Ticks of 10 ms.
    Duration::from_millis((fields[11] + fields[12]) * 10)
}

#[test]
fn notices_that_are_lost_are_made_up_for_by_reading_everything_anew() {
    need!();
    let _turn = turn();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("tc"), "50%");
    let storm = storm(&lab, 0);
    let mut watch = Watch::start("lost notices", &lab, &agent);

    // While it cannot read, and with a change of its own in the midst of the others.
    agent.signal(libc::SIGSTOP);
    make_links(&lab);
    ip(&lab.host, &["link set h0 name old0"]);
    delete_links(&lab);
    agent.signal(libc::SIGCONT);
    let is_followed = eventually(Duration::from_secs(3), || {
        watch.is_whole("old0") && watch.is_loud("interface h0 is not there")
    });
    assert!(is_followed, "{:#?}\n{}", watch.info(), agent.log());
    let read_anew = |agent: &Agent<'_>| agent.log().matches("reading all anew").count();
    assert!(read_anew(&agent) > 0, "nothing was lost: {}", agent.log());
    watch.followed(
        "renamed after lost notices",
        "Appeared",
        || ip(&lab.host, &["link set old0 name h0"]),
        |watch| watch.is_whole("h0") && !watch.is_loud("interface"),
    );
    goes_on(&storm);

    // While it does.
    let (begun, before) = (Instant::now(), cpu(&agent));
    for _ in 0..2 {
        make_links(&lab);
        delete_links(&lab);
    }
    let (took, used) = (begun.elapsed(), cpu(&agent) - before);
    let share = used.as_secs_f64() / took.as_secs_f64();
    println!(
        "lost notices: {} links made and deleted in {took:.1?}, the agent used {:.0}% of a CPU and read everything anew {} times",
        4 * PAIRS,
        share * 100.0,
        read_anew(&agent)
    );
    assert!(share < MOST_CPU, "{used:?} of {took:?}");
    watch.followed(
        "renamed after a storm of notices",
        "Renamed",
        || ip(&lab.host, &["link set h0 name old0"]),
        |watch| watch.is_whole("old0") && watch.is_loud("interface h0 is not there"),
    );
    ip(&lab.host, &["link set old0 name h0"]);
    let is_back = eventually(Duration::from_secs(1), || watch.is_whole("h0"));
    assert!(is_back, "{:#?}", watch.info());

    let (idle, before) = (Duration::from_secs(2), cpu(&agent));
    thread::sleep(idle);
    let used = cpu(&agent) - before;
    assert!(used < idle / 4, "it is at rest again: {used:?} of {idle:?}");
    storm.finish().unwrap().assert_untouched("lost notices");
    watch.finish();
}
