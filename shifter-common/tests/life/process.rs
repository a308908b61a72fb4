//! What packets and the agent do to the table, line for line as
//! shifter-ebpf/src/flow_table/, stage/track.rs and shifter/src/datapath/flows.rs
//! do it, over the same pure functions.

use shifter_common::{
    abi::{
        config::{DEFAULT_TIMEOUTS_S, TIMEOUTS, ticks_of_seconds},
        flow::*,
    },
    life::*,
    table::*,
};

use super::model::{Asked, End, Op, PLACES, Place, View};

/// Faults that were there, or might be: the search must find each.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// A packet goes on over a rival that does not give up.
    pub goes_on: bool,
    /// A packet of a flow that was idle for long leaves the control word alone.
    pub no_stamp: bool,
    /// A packet does not look whether the entry is still its flow's.
    pub no_tag: bool,
    /// A packet takes the place it found free though an entry was made there since.
    pub no_look: bool,
    /// A claim is taken for a rival however old it is.
    pub no_age: bool,
    /// The agent writes an entry under a claim, which packets take after a second.
    pub fills_under_claim: bool,
}

pub fn timeouts() -> [u32; TIMEOUTS] {
    DEFAULT_TIMEOUTS_S.map(ticks_of_seconds)
}

/// Inserts that a packet tries, as INSERT_TRIES.
const TRIES: u32 = 3;

/// `score`: rank from bit 40, time idle from bit 8, distance below.
fn score(control: u64, last_seen: u32, now: u32, distance: usize) -> u64 {
    match rank(control, last_seen, now, &timeouts()) {
        RANK_NONE => 0,
        rank => {
            u64::from(rank) << 40 | u64::from(idle_ticks(last_seen, now)) << 8 | distance as u64
        }
    }
}

/// `best_place`.
fn best_place(view: &mut View, set: usize, now: u32) -> Result<u64, Asked> {
    view.part("best place", |view| best_of(view, set, now))
}

fn best_of(view: &mut View, set: usize, now: u32) -> Result<u64, Asked> {
    let mut best = 0;
    for distance in 0..PLACES {
        let at = (set, distance);
        let control = view.ask(Op::Control(at))?;
        // Of what is not live it makes no difference.
        let last_seen = match is_live(control_state(control)) {
            true => view.ask(Op::LastSeen(at))? as u32,
            false => now,
        };
        let score = score(control, last_seen, now, distance);
        best = best.max(score);
        if score >> 40 == u64::from(RANK_FREE) {
            return Ok(score);
        }
    }
    Ok(best)
}

/// `find_place`: the first by place.
fn find(view: &mut View, flow: u64) -> Result<Option<Place>, Asked> {
    const NONE: u64 = u64::MAX;
    let found = view.part("find", |view| {
        let found = find_in(view, flow)?;
        Ok(found.map_or(NONE, number_of))
    })?;
    Ok((found != NONE).then(|| place_of(found)))
}

fn find_in(view: &mut View, flow: u64) -> Result<Option<Place>, Asked> {
    for set in 0..2 {
        let mark = view.ask(Op::Mark(set))? as u32;
        for distance in (0..PLACES).filter(|distance| mark >> distance & 1 != 0) {
            let at = (set, distance);
            let control = view.ask(Op::Control(at))?;
            if u64::from(control_tag(control)) == flow
                && is_live(control_state(control))
                && view.ask(Op::To(at))? >> 4 == flow
                && view.ask(Op::Who(at))? == flow
            {
                return Ok(Some(at));
            }
        }
        if mark & HOME_OVERFLOW == 0 {
            break;
        }
    }
    Ok(None)
}

/// `rival_of`.
fn rival_of(
    view: &mut View,
    flow: u64,
    now: u32,
    own: Place,
    faults: Faults,
) -> Result<u32, Asked> {
    let mut higher = RIVAL_NONE;
    for set in 0..2 {
        let mark = view.ask(Op::Mark(set))? as u32;
        for distance in (0..PLACES).filter(|distance| mark >> distance & 1 != 0) {
            let at = (set, distance);
            if at == own {
                continue;
            }
            let control = view.ask(Op::Control(at))?;
            let now = match faults.no_age {
                true => u32::from(control_stamp(control)),
                false => now,
            };
            match rival(control, flow as u32, now, at < own) {
                RIVAL_LIVE
                    if view.ask(Op::To(at))? >> 4 == flow && view.ask(Op::Who(at))? == flow =>
                {
                    return Ok(RIVAL_LIVE);
                }
                RIVAL_LOWER => return Ok(RIVAL_LOWER),
                RIVAL_HIGHER => higher = RIVAL_HIGHER,
                _ => {}
            }
        }
        if mark & HOME_OVERFLOW == 0 {
            break;
        }
    }
    Ok(higher)
}

/// `yields`.
fn yields(view: &mut View, flow: u64, now: u32, own: Place, faults: Faults) -> Result<bool, Asked> {
    let mut passes = 1;
    loop {
        let look = |view: &mut View| Ok(u64::from(rival_of(view, flow, now, own, faults)?));
        let rival = view.part("rival", look)? as u32;
        match gives_up(rival, passes) {
            Some(true) if faults.goes_on && rival == RIVAL_HIGHER => return Ok(false),
            Some(gives_up) => return Ok(gives_up),
            None => passes += 1,
        }
    }
}

/// How an insert ended; any other number is the place of the entry to follow.
const NEW: u64 = 100;
const PENDING: u64 = 101;
const FULL: u64 = 102;

fn number_of((set, distance): Place) -> u64 {
    (set * PLACES + distance) as u64
}

fn place_of(number: u64) -> Place {
    (number as usize / PLACES, number as usize % PLACES)
}

fn mark(view: &mut View, set: usize, bits: u32) -> Result<(), Asked> {
    if view.ask(Op::Mark(set))? as u32 & bits != bits {
        view.ask(Op::Or(set, bits))?;
    }
    Ok(())
}

/// `insert_at`.
fn insert(view: &mut View, flow: u64, choice: u64, now: u32, faults: Faults) -> Result<u64, Asked> {
    let mut best = best_place(view, 0, now)?;
    let mut which = 0;
    if best >> 40 < u64::from(RANK_CLOSING) {
        let other = best_place(view, 1, now)?;
        if other >> 8 > best >> 8 {
            best = other;
            which = 1;
        }
    }
    if best >> 40 < u64::from(RANK_UNPROVEN) {
        return Ok(FULL);
    }
    let distance = best as usize & 15;
    let at = (which, distance);
    let control = view.ask(Op::Control(at))?;
    let last_seen = match is_live(control_state(control)) {
        true => view.ask(Op::LastSeen(at))? as u32,
        false => now,
    };
    let is_gone = match faults.no_look {
        true => rank(control, last_seen, now, &timeouts()) == RANK_NONE,
        false => score(control, last_seen, now, distance) < best,
    };
    if is_gone {
        return Ok(PENDING);
    }
    let claim = claimed(control, flow as u32, now);
    if view.ask(Op::Swap(at, control, claim))? != control {
        return Ok(PENDING);
    }
    view.ask(Op::SetWho(at, flow))?;
    view.ask(Op::SetTo(at, flow << 4 | choice))?;
    view.ask(Op::SetLastSeen(at, now))?;
    mark(view, which, 1 << distance)?;
    if which == 1 {
        mark(view, 0, HOME_OVERFLOW)?;
    }
    if yields(view, flow, now, at, faults)? {
        view.ask(Op::Swap(at, claim, freed(claim, now)))?;
        return Ok(match find(view, flow)? {
            Some(rival) => number_of(rival),
            None => PENDING,
        });
    }
    let live = moved(claim, STATE_HALF_OPEN, now);
    match view.ask(Op::Swap(at, claim, live))? == claim {
        true => Ok(NEW),
        false => Ok(PENDING),
    }
}

/// A packet that opens a flow, as `forward` and `pin`.
pub fn open(view: &mut View, flow: u64, choice: u64, faults: Faults) -> Result<End, Asked> {
    let now = view.ask(Op::Now)? as u32;
    if let Some(at) = find(view, flow)? {
        return Ok(End::Followed(view.ask(Op::To(at))?));
    }
    for _ in 0..TRIES {
        match view.part("insert", |view| insert(view, flow, choice, now, faults))? {
            NEW => return Ok(End::Pinned),
            PENDING => {}
            FULL => break,
            place => return Ok(End::Followed(view.ask(Op::To(place_of(place)))?)),
        }
    }
    Ok(End::Unpinned)
}

/// A packet of a flow that has its entry, as `go_on` and `track`: it brings the
/// entry from the state in which it is to `to` where `from` is that state.
pub fn track(
    view: &mut View,
    flow: u64,
    (from, to): (u8, u8),
    faults: Faults,
) -> Result<End, Asked> {
    let now = view.ask(Op::Now)? as u32;
    let Some(at) = find(view, flow)? else {
        return Ok(End::Unpinned);
    };
    let sent = view.ask(Op::To(at))?;
    let mut control = view.ask(Op::Control(at))?;
    let mut was_stamped = false;
    let is_of = |control| {
        is_live(control_state(control)) && (faults.no_tag || control_tag(control) == flow as u32)
    };
    if !is_of(control) {
        return Ok(End::Followed(sent));
    }
    let last_seen = view.ask(Op::LastSeen(at))? as u32;
    if last_seen != now {
        view.ask(Op::SetLastSeen(at, now))?;
        if needs_stamp(last_seen, now) {
            let stamped = moved(control, control_state(control), now);
            was_stamped = faults.no_stamp || view.ask(Op::Swap(at, control, stamped))? == control;
            control = view.ask(Op::Control(at))?;
            if !is_of(control) {
                return Ok(End::Followed(sent));
            }
        }
    }
    if control_state(control) != from || from == to {
        // A packet that changes no word may come an instant too late.
        return Ok(match was_stamped {
            true => End::Tracked(sent),
            false => End::Followed(sent),
        });
    }
    let word = moved(control, to, now);
    match view.ask(Op::Swap(at, control, word))? == control {
        true => Ok(End::Tracked(sent)),
        false => Ok(End::Followed(sent)),
    }
}

/// Times that the agent tries, as TRIES of migrate/flows.rs but fewer.
const MOVES: u32 = 2;
/// A packet was at it, to be tried again.
const AGAIN: u64 = 101;

/// The agent takes a flow over from the table before, as `NewTable::take_in`.
pub fn take_in(view: &mut View, flow: u64, choice: u64, faults: Faults) -> Result<End, Asked> {
    for _ in 0..MOVES {
        match view.part("put", |view| put(view, flow, choice, faults))? {
            NEW => return Ok(End::Moved),
            AGAIN => {}
            FULL => break,
            place => return Ok(End::Followed(view.ask(Op::To(place_of(place)))?)),
        }
    }
    Ok(End::Unpinned)
}

/// `NewTable::put`.
fn put(view: &mut View, flow: u64, choice: u64, faults: Faults) -> Result<u64, Asked> {
    if let Some(at) = other_of(view, flow, None, false)? {
        return Ok(number_of(at));
    }
    let now = view.ask(Op::Now)? as u32;
    let mut best = (0, (0, 0));
    for at in (0..2).flat_map(|set| (0..PLACES).map(move |distance| (set, distance))) {
        let rank = rank(view.ask(Op::Control(at))?, now, now, &timeouts());
        if rank > best.0 {
            best = (rank, at);
        }
    }
    let (rank, at) = best;
    if rank < RANK_UNPROVEN {
        return Ok(FULL);
    }
    let seen = view.ask(Op::Control(at))?;
    let now = view.ask(Op::Now)? as u32;
    if control_state(seen) != STATE_FREE {
        if rank_of_place(seen, now) >= rank {
            view.ask(Op::Swap(at, seen, freed(seen, now)))?;
        }
        return Ok(AGAIN);
    }
    let Some(claim) = fill(view, flow, choice, (at, seen, now), faults)? else {
        return Ok(AGAIN);
    };
    if other_of(view, flow, Some(at), true)?.is_some() {
        view.ask(Op::Swap(at, claim, freed(claim, now)))?;
        return Ok(AGAIN);
    }
    let live = moved(claim, STATE_HALF_OPEN, now);
    if view.ask(Op::Swap(at, claim, live))? != claim {
        return Ok(AGAIN);
    }
    if other_of(view, flow, Some(at), true)?.is_none() {
        return Ok(NEW);
    }
    loop {
        let word = view.ask(Op::Control(at))?;
        let is_own =
            is_live(control_state(word)) && control_sequence(word) == control_sequence(live);
        if !is_own || view.ask(Op::Swap(at, word, freed(word, now)))? == word {
            return Ok(AGAIN);
        }
    }
}

fn rank_of_place(control: u64, now: u32) -> u32 {
    rank(control, now, now, &timeouts())
}

/// `NewTable::fill_held`: the claim of the flow over its whole entry.
fn fill(
    view: &mut View,
    flow: u64,
    choice: u64,
    (at, seen, now): (Place, u64, u32),
    faults: Faults,
) -> Result<Option<u64>, Asked> {
    let (tag, idle_since) = (flow as u32, now - 50);
    if faults.fills_under_claim {
        let claim = claimed(seen, tag, now);
        if view.ask(Op::Swap(at, seen, claim))? != seen {
            return Ok(None);
        }
        view.ask(Op::SetWho(at, flow))?;
        view.ask(Op::SetTo(at, flow << 4 | choice))?;
        mark_place(view, at)?;
        return Ok(Some(claim));
    }
    let before = view.ask(Op::LastSeen(at))? as u32;
    if before != now && view.ask(Op::SwapLastSeen(at, before, now))? as u32 != before {
        return Ok(None);
    }
    let held = held(seen, tag, now);
    if view.ask(Op::Swap(at, seen, held))? != seen {
        return Ok(None);
    }
    view.ask(Op::SetWho(at, flow))?;
    view.ask(Op::SetTo(at, flow << 4 | choice))?;
    mark_place(view, at)?;
    let claim = offered(held, tag, view.ask(Op::Now)? as u32);
    if view.ask(Op::Swap(at, held, claim))? != held {
        return Ok(None);
    }
    view.ask(Op::SwapLastSeen(at, now, idle_since))?;
    Ok(Some(claim))
}

fn mark_place(view: &mut View, (set, distance): Place) -> Result<(), Asked> {
    view.ask(Op::Or(set, 1 << distance))?;
    if set == 1 {
        view.ask(Op::Or(0, HOME_OVERFLOW))?;
    }
    Ok(())
}

/// `NewTable::find`: another entry of the flow, or a claim of its tag.
fn other_of(
    view: &mut View,
    flow: u64,
    but: Option<Place>,
    with_claims: bool,
) -> Result<Option<Place>, Asked> {
    const NONE: u64 = u64::MAX;
    let found = view.part("other", |view| {
        for at in (0..2).flat_map(|set| (0..PLACES).map(move |distance| (set, distance))) {
            let control = view.ask(Op::Control(at))?;
            if Some(at) == but || u64::from(control_tag(control)) != flow {
                continue;
            }
            let is_it = match is_live(control_state(control)) {
                true => view.ask(Op::Who(at))? == flow && view.ask(Op::To(at))? >> 4 == flow,
                false => {
                    with_claims && {
                        let now = view.ask(Op::Now)? as u32;
                        rival(control, flow as u32, now, true) != RIVAL_NONE
                    }
                }
            };
            if is_it {
                return Ok(number_of(at));
            }
        }
        Ok(NONE)
    })?;
    Ok((found != NONE).then(|| place_of(found)))
}

/// `FlowTable::sweep` on one entry.
pub fn sweep(view: &mut View, at: Place) -> Result<End, Asked> {
    let now = view.ask(Op::Now)? as u32;
    let word = view.ask(Op::Control(at))?;
    let last_seen = view.ask(Op::LastSeen(at))? as u32;
    if !is_due(control_state(word), last_seen, now, &timeouts()) {
        return Ok(End::Nothing);
    }
    free(view, at, word, now)
}

/// `FlowTable::idle`, then `FlowTable::release` of what it found.
pub fn release(view: &mut View, at: Place, least: u32) -> Result<End, Asked> {
    let Some((word, _, _)) = read_whole(view, at)? else {
        return Ok(End::Nothing);
    };
    let now = view.ask(Op::Now)? as u32;
    let same = read_whole(view, at)?.is_some_and(|(again, _, _)| again == word);
    let last_seen = view.ask(Op::LastSeen(at))? as u32;
    if !same || idle_ticks(last_seen, now) <= least {
        return Ok(End::Nothing);
    }
    free(view, at, word, now)
}

fn free(view: &mut View, at: Place, word: u64, now: u32) -> Result<End, Asked> {
    match view.ask(Op::Swap(at, word, freed(word, now)))? == word {
        true => Ok(End::Freed(u64::from(control_tag(word)))),
        false => Ok(End::Nothing),
    }
}

/// `FlowTable::read`, as the agent's lists and counts do.
pub fn read(view: &mut View, at: Place) -> Result<End, Asked> {
    Ok(match read_whole(view, at)? {
        Some((_, who, to)) => End::Read(who, to),
        None => End::Nothing,
    })
}

fn read_whole(view: &mut View, at: Place) -> Result<Option<(u64, u64, u64)>, Asked> {
    let before = view.ask(Op::Control(at))?;
    if !is_live(control_state(before)) {
        return Ok(None);
    }
    let who = view.ask(Op::Who(at))?;
    let to = view.ask(Op::To(at))?;
    let after = view.ask(Op::Control(at))?;
    let same = control_sequence(before) == control_sequence(after)
        && control_tag(before) == control_tag(after)
        && is_live(control_state(after));
    Ok(same.then_some((after, who, to)))
}
