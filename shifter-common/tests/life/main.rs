//! The life of an entry, checked exhaustively: every interleaving of packets on
//! several CPUs, of the agent's sweep, release and reading, and of the clock, on
//! a table of two sets. The agent may die between any two steps.
//!
//! Packets end within a second of their start (they run with softirqs off), and
//! steps are sequentially consistent: every claim, publication and release is a
//! compare-and-swap, a full barrier.

mod model;
mod process;

use model::{End, Entry, Kind, Memory, Process, Searched, search};
use process::*;
use shifter_common::abi::flow::*;

/// Flows of the model; a flow's number is its tag as well.
const A: u64 = 1;
const B: u64 = 2;
/// In the table from the start, proven.
const P: u64 = 3;
/// In the table from the start, half open.
const H: u64 = 4;
/// In the table from the start, UDP with an answer, idle.
const U: u64 = 5;
/// Whose claim was left behind.
pub const LEFT: u64 = 6;

const NOW: u32 = 1_000_000;
/// A UDP flow's time without a packet, in ticks: 180 s.
const UDP: u32 = 180 * 60;

fn entry(flow: u64, state: u8, last_seen: u32) -> Entry {
    Entry {
        control: control_word(state, flow as u32, 1, last_seen as u16),
        who: flow,
        to: flow << 4,
        last_seen,
    }
}

fn table(sets: [[Entry; 2]; 2]) -> Memory {
    let used = |set: &[Entry; 2]| (0..2).fold(0, |mark, i| mark | u32::from(set[i].who != 0) << i);
    let overflow = if used(&sets[1]) != 0 {
        HOME_OVERFLOW
    } else {
        0
    };
    Memory {
        marks: [used(&sets[0]) | overflow, used(&sets[1])],
        sets,
        now: NOW,
    }
}

const EMPTY: Entry = Entry {
    control: 0,
    who: 0,
    to: 0,
    last_seen: 0,
};

fn proven(flow: u64) -> Entry {
    entry(flow, STATE_ESTABLISHED, NOW - 100)
}

/// Full but for one half-open flow.
fn full_but_one() -> Memory {
    let half = entry(H, STATE_HALF_OPEN, NOW - 30);
    table([[proven(P), half], [proven(P + 100), proven(P + 101)]])
}

fn packet<'a>(code: impl Fn(&mut model::View) -> Result<End, model::Asked> + 'a) -> Process<'a> {
    Process {
        kind: Kind::Packet,
        code: Box::new(code),
    }
}

fn agent<'a>(code: impl Fn(&mut model::View) -> Result<End, model::Asked> + 'a) -> Process<'a> {
    Process {
        kind: Kind::Agent,
        code: Box::new(code),
    }
}

/// Time goes on by so many ticks, once.
fn clock<'a>(ticks: u32) -> Process<'a> {
    Process {
        kind: Kind::Clock,
        code: Box::new(move |view| {
            view.ask(model::Op::Advance(ticks))?;
            Ok(End::Nothing)
        }),
    }
}

fn live_of(memory: &Memory, flow: u64) -> Vec<&Entry> {
    // What the agent holds has another tag.
    let is_it = |entry: &&Entry| {
        entry.who == flow
            && is_live(control_state(entry.control))
            && u64::from(control_tag(entry.control)) == flow & 0xff_ffff
    };
    memory.entries().filter(is_it).collect()
}

/// What holds whatever ran: no flow has two entries, and what was proven and
/// fresh is still there, with its backend.
fn lasting(memory: &Memory, ends: &[Option<End>]) -> Result<(), String> {
    for flow in [A, B, P, H, U] {
        if live_of(memory, flow).len() > 1 {
            return Err(format!("flow {flow} has two entries"));
        }
    }
    for end in ends.iter().flatten() {
        if let End::Read(who, to) = end
            && *who != to >> 4
        {
            return Err(format!("the agent read a torn entry: {who} {to:x}"));
        }
    }
    Ok(())
}

fn is_proven_still(memory: &Memory, flow: u64) -> Result<(), String> {
    match live_of(memory, flow).as_slice() {
        [entry] if control_state(entry.control) == STATE_ESTABLISHED && entry.to == flow << 4 => {
            Ok(())
        }
        _ => Err(format!("flow {flow} has lost its pin")),
    }
}

/// Packets of A with different choices, as under the exact split.
fn one_flow_at_once(memory: Memory, faults: Faults) -> Result<Searched, String> {
    let processes: Vec<Process> = (0..2)
        .map(|choice| packet(move |view| open(view, A, choice, faults)))
        .collect();
    search(memory, &processes, &|memory, ends| {
        lasting(memory, ends)?;
        let pinned = ends.iter().filter(|end| **end == Some(End::Pinned)).count();
        match live_of(memory, A).as_slice() {
            [] if pinned > 0 => Err("the entry that was made is lost".to_owned()),
            [entry] => {
                let strays =
                    |end: &Option<End>| matches!(end, Some(End::Followed(to)) if *to != entry.to);
                match pinned > 1 || ends.iter().any(strays) {
                    true => Err("packets of one flow went to two backends".to_owned()),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    })
}

/// A's packets choose while an expired entry before them is swept.
fn one_flow_and_the_sweeper(faults: Faults) -> Result<Searched, String> {
    let expired = entry(U, STATE_UDP_ANSWERED, NOW - UDP - 1);
    let memory = table([[expired, EMPTY], [EMPTY, EMPTY]]);
    let processes = [
        packet(move |view| open(view, A, 0, faults)),
        packet(move |view| open(view, A, 1, faults)),
        agent(|view| sweep(view, (0, 0))),
    ];
    search(memory, &processes, &lasting)
}

/// B needs room, H is just being proven, and the agent reads.
fn proof_and_eviction(faults: Faults) -> Result<Searched, String> {
    let processes = [
        packet(move |view| open(view, B, 0, faults)),
        packet(move |view| track(view, H, (STATE_HALF_OPEN, STATE_ESTABLISHED), faults)),
        agent(|view| read(view, (0, 1))),
    ];
    search(full_but_one(), &processes, &|memory, ends| {
        lasting(memory, ends)?;
        if let [entry] = live_of(memory, B).as_slice()
            && control_state(entry.control) != STATE_HALF_OPEN
        {
            return Err("B was moved by a packet of another flow".to_owned());
        }
        is_proven_still(memory, P)?;
        if matches!(ends[1], Some(End::Tracked(_))) {
            is_proven_still(memory, H)?;
            if ends[0] != Some(End::Unpinned) {
                return Err("B has an entry where there is no room".to_owned());
            }
        }
        Ok(())
    })
}

/// U was idle for its whole timeout; its next packet comes while the agent
/// sweeps, or a new flow looks for room.
fn packet_and_expiry(faults: Faults, is_insert: bool) -> Result<Searched, String> {
    let idle = entry(U, STATE_UDP_ANSWERED, NOW - UDP - 1);
    let memory = table([[proven(P), idle], [proven(P + 100), proven(P + 101)]]);
    let expire = match is_insert {
        true => packet(move |view| open(view, B, 0, faults)),
        false => agent(|view| sweep(view, (0, 1))),
    };
    let track =
        packet(move |view| track(view, U, (STATE_UDP_ANSWERED, STATE_UDP_ANSWERED), faults));
    let processes = [track, expire, clock(1)];
    search(memory, &processes, &|memory, ends| {
        lasting(memory, ends)?;
        is_proven_still(memory, P)?;
        let was_kept = matches!(ends[0], Some(End::Tracked(_)));
        if was_kept && live_of(memory, U).is_empty() {
            return Err("U had a packet and was freed for being idle".to_owned());
        }
        Ok(())
    })
}

/// The agent gives up an idle flow by its socket, and the flow goes on.
fn packet_and_release(faults: Faults) -> Result<Searched, String> {
    let idle = entry(P, STATE_ESTABLISHED, NOW - 10_000);
    let memory = table([[idle, EMPTY], [EMPTY, EMPTY]]);
    let processes = [
        packet(move |view| track(view, P, (STATE_ESTABLISHED, STATE_ESTABLISHED), faults)),
        packet(move |view| open(view, A, 0, faults)),
        agent(|view| release(view, (0, 0), 3_600)),
    ];
    search(memory, &processes, &|memory, ends| {
        lasting(memory, ends)?;
        match ends[0] {
            Some(End::Tracked(to)) if to != P << 4 => Err("P was sent elsewhere".to_owned()),
            Some(End::Tracked(_)) => is_proven_still(memory, P),
            _ => Ok(()),
        }
    })
}

/// A flow closes, its port is used again, and room is sought, all at once.
fn close_and_open(faults: Faults) -> Result<Searched, String> {
    let processes = [
        packet(move |view| track(view, P, (STATE_ESTABLISHED, STATE_CLOSING), faults)),
        packet(move |view| open(view, B, 0, faults)),
        packet(move |view| track(view, H, (STATE_HALF_OPEN, STATE_RESET), faults)),
    ];
    search(full_but_one(), &processes, &|memory, ends| {
        lasting(memory, ends)?;
        if matches!(ends[1], Some(End::Pinned)) && live_of(memory, B).is_empty() {
            return Err("B's entry is lost".to_owned());
        }
        is_proven_still(memory, P + 100)
    })
}

/// A claim whose packet never came back stands in the way of its flow for a
/// second and no longer.
fn a_claim_left_behind(faults: Faults) -> Result<Searched, String> {
    let mut left = entry(LEFT, STATE_CLAIMING, NOW);
    left.control = control_word(STATE_CLAIMING, A as u32, 1, NOW as u16);
    let memory = table([[proven(P), EMPTY], [left, EMPTY]]);
    let processes = [
        clock(u32::from(CLAIM_TICKS) + 1),
        packet(move |view| {
            let late = view.ask(model::Op::Now)? as u32 > NOW;
            Ok(match open(view, A, 0, faults)? {
                End::Unpinned if late => End::Freed(A),
                end => end,
            })
        }),
    ];
    search(memory, &processes, &|memory, ends| {
        lasting(memory, ends)?;
        match ends[1] {
            Some(End::Freed(_)) => Err("a stale claim keeps its flow out".to_owned()),
            _ => is_proven_still(memory, P),
        }
    })
}

/// The agent moves A here while a packet opens B, and is kept from running for
/// longer than a claim lasts.
fn a_move_and_another_flow(faults: Faults) -> Result<Searched, String> {
    let memory = table([[proven(P), EMPTY], [proven(P + 100), EMPTY]]);
    let processes = [
        packet(move |view| open(view, B, 1, faults)),
        agent(move |view| take_in(view, A, 0, faults)),
        clock(u32::from(CLAIM_TICKS) + 1),
    ];
    search(memory, &processes, &|memory, ends| {
        lasting(memory, ends)?;
        is_proven_still(memory, P)?;
        if ends[1] == Some(End::Moved) && live_of(memory, A).len() != 1 {
            return Err("the flow that moved is lost".to_owned());
        }
        match (ends[0], live_of(memory, B).as_slice()) {
            (Some(End::Pinned), [entry]) if entry.to == B << 4 | 1 => Ok(()),
            (Some(End::Pinned), there) => Err(format!("B's entry is spoilt: {there:?}")),
            _ => Ok(()),
        }
    })
}

/// What holds where the agent moves A here, as process 1, and a packet of A, which the
/// programs before leave to these no more, opens it anew, as process 0.
fn a_move_ended_well(memory: &Memory, ends: &[Option<End>]) -> Result<(), String> {
    let there = live_of(memory, A).len();
    match ends[1] {
        // Dead right after the second became visible: the next start frees it.
        None if there <= 2 => {}
        _ => lasting(memory, ends)?,
    }
    let is_made = ends[0] == Some(End::Pinned) || ends[1] == Some(End::Moved);
    match is_made && there == 0 {
        true => Err("the entry that was made is lost".to_owned()),
        false => Ok(()),
    }
}

fn a_move_and_the_same_flow(faults: Faults) -> Result<Searched, String> {
    let processes = [
        packet(move |view| open(view, A, 1, faults)),
        agent(move |view| take_in(view, A, 0, faults)),
        clock(1),
    ];
    search(table([[EMPTY; 2]; 2]), &processes, &a_move_ended_well)
}

/// A scenario: it searches under these faults.
type Scenario = (&'static str, fn(Faults) -> Result<Searched, String>);

/// Every scenario, the small ones first.
const SCENARIOS: &[Scenario] = &[
    ("a claim left behind", a_claim_left_behind),
    ("packet and sweeper", |faults| {
        packet_and_expiry(faults, false)
    }),
    ("packet and insert", |faults| {
        packet_and_expiry(faults, true)
    }),
    ("packet and release", packet_and_release),
    ("a move and another flow", a_move_and_another_flow),
    ("a move and the same flow", a_move_and_the_same_flow),
    ("proof and eviction", proof_and_eviction),
    ("close and open", close_and_open),
    ("two packets of a flow", |faults| {
        one_flow_at_once(table([[EMPTY; 2]; 2]), faults)
    }),
    ("two packets in a full set", |faults| {
        let full = [proven(P), proven(P + 100)];
        one_flow_at_once(table([full, [EMPTY, EMPTY]]), faults)
    }),
    ("two packets that evict", |faults| {
        let old = entry(H, STATE_HALF_OPEN, NOW - 30);
        let older = entry(H + 100, STATE_HALF_OPEN, NOW - 40);
        let spread = table([[proven(P), old], [older, proven(P + 100)]]);
        one_flow_at_once(spread, faults)
    }),
    ("two packets and the sweeper", one_flow_and_the_sweeper),
];

#[test]
fn no_interleaving_tears_doubles_loses_or_leaks_an_entry() {
    let mut sum = Searched::default();
    for (name, scenario) in SCENARIOS {
        let searched = scenario(Faults::default()).unwrap_or_else(|why| panic!("{name}: {why}"));
        println!("{name}: {searched:?}");
        assert!(searched.ends > 0, "{name}: nothing ever ended");
        sum.states += searched.states;
        sum.steps += searched.steps;
        sum.deaths += searched.deaths;
        sum.ends += searched.ends;
    }
    println!("in all: {sum:?}");
    assert!(
        sum.states > FLOOR,
        "a search that finds so little looks at nothing: {sum:?}"
    );
    assert!(sum.deaths > 0, "the agent died nowhere");
}

/// States that the search has to come through at least.
const FLOOR: u64 = 150_000;

#[test]
fn the_search_finds_every_fault() {
    let none = Faults::default();
    let faults = [
        (
            Faults {
                goes_on: true,
                ..none
            },
            "two entries",
        ),
        (
            Faults {
                no_stamp: true,
                ..none
            },
            "freed for being idle",
        ),
        (
            Faults {
                no_tag: true,
                ..none
            },
            "packet of another flow",
        ),
        (
            Faults {
                no_look: true,
                ..none
            },
            "two backends",
        ),
        (
            Faults {
                no_age: true,
                ..none
            },
            "keeps its flow out",
        ),
        (
            Faults {
                fills_under_claim: true,
                ..none
            },
            "the flow that moved is lost",
        ),
    ];
    for (faults, wanted) in faults {
        let finds =
            |(_, scenario): &Scenario| scenario(faults).is_err_and(|why| why.contains(wanted));
        assert!(SCENARIOS.iter().any(finds), "{faults:?} is not found");
    }
}
