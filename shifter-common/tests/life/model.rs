//! Shared memory of the model, and the search over every interleaving.
//!
//! A process is straight-line code that asks the memory for one operation at a
//! time. It is run again from its start for every step, with the answers it had
//! so far, until it asks for something new: that is its next step.

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher as _},
};

use shifter_common::abi::flow::{CLAIM_TICKS, STATE_CLAIMING, control_state, control_tag, is_live};

/// Entries of a set in the model.
pub const PLACES: usize = 2;

/// A place in the table: set and position.
pub type Place = (usize, usize);

/// The words of an entry; `who` and `to` stand for what is written in two halves:
/// the client, and service with backend. `to` is 16 × flow + choice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Entry {
    pub control: u64,
    pub who: u64,
    pub to: u64,
    pub last_seen: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Memory {
    pub sets: [[Entry; PLACES]; 2],
    /// `home` words of the first place of each set, where every flow has its home.
    pub marks: [u32; 2],
    pub now: u32,
}

/// One step of a process: a load, a store or an atomic operation.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Now,
    Control(Place),
    Who(Place),
    To(Place),
    LastSeen(Place),
    Mark(usize),
    SetWho(Place, u64),
    SetTo(Place, u64),
    SetLastSeen(Place, u32),
    Or(usize, u32),
    /// Word seen, word wanted; gives what was there.
    Swap(Place, u64, u64),
    /// The same with when it was last seen.
    SwapLastSeen(Place, u32, u32),
    /// Time goes on by so many ticks.
    Advance(u32),
}

impl Memory {
    pub fn at(&self, place: Place) -> &Entry {
        &self.sets[place.0][place.1]
    }

    fn at_mut(&mut self, place: Place) -> &mut Entry {
        &mut self.sets[place.0][place.1]
    }

    /// All entries with their places.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.sets.iter().flatten()
    }

    fn apply(&mut self, op: Op) -> u64 {
        match op {
            Op::Now => return u64::from(self.now),
            Op::Control(at) => return self.at(at).control,
            Op::Who(at) => return self.at(at).who,
            Op::To(at) => return self.at(at).to,
            Op::LastSeen(at) => return u64::from(self.at(at).last_seen),
            Op::Mark(set) => return u64::from(self.marks[set]),
            Op::SetWho(at, value) => self.at_mut(at).who = value,
            Op::SetTo(at, value) => self.at_mut(at).to = value,
            Op::SetLastSeen(at, value) => self.at_mut(at).last_seen = value,
            Op::Or(set, bits) => self.marks[set] |= bits,
            Op::Advance(ticks) => self.now += ticks,
            Op::Swap(at, seen, wanted) => {
                let was = self.at(at).control;
                if was == seen {
                    self.at_mut(at).control = wanted;
                }
                return was;
            }
            Op::SwapLastSeen(at, seen, wanted) => {
                let was = self.at(at).last_seen;
                if was == seen {
                    self.at_mut(at).last_seen = wanted;
                }
                return u64::from(was);
            }
        }
        0
    }
}

/// A process has asked for something it has no answer to yet.
pub struct Asked(pub Op);

/// What a process has learnt: the answer to one step, or what a finished part of
/// its code came to, which stands for all answers it had in there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Learnt {
    Answer(u64),
    Part(&'static str, u64),
}

/// What a process has learnt so far.
pub struct View<'a> {
    log: &'a [Learnt],
    next: usize,
    /// The part that was finished last: where it began, and what it came to.
    finished: Option<(usize, Learnt)>,
}

impl<'a> View<'a> {
    fn new(log: &'a [Learnt]) -> Self {
        Self {
            log,
            next: 0,
            finished: None,
        }
    }

    pub fn ask(&mut self, op: Op) -> Result<u64, Asked> {
        match self.log.get(self.next) {
            Some(Learnt::Answer(answer)) => {
                self.next += 1;
                Ok(*answer)
            }
            _ => Err(Asked(op)),
        }
    }

    /// Runs a part of a process of which only the result matters later: how it
    /// came to that is forgotten, so that there are fewer states to tell apart.
    pub fn part(
        &mut self,
        name: &'static str,
        code: impl FnOnce(&mut Self) -> Result<u64, Asked>,
    ) -> Result<u64, Asked> {
        if let Some(Learnt::Part(of, result)) = self.log.get(self.next)
            && *of == name
        {
            self.next += 1;
            return Ok(*result);
        }
        let start = self.next;
        let result = code(self)?;
        self.finished = Some((start, Learnt::Part(name, result)));
        Ok(result)
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A packet made its flow's entry.
    Pinned,
    /// A packet follows an entry that was there; where it was sent.
    Followed(u64),
    /// A packet went by choice alone, or found no room.
    Unpinned,
    /// A packet brought its flow's entry to this state, or kept it; where it was sent.
    Tracked(u64),
    /// The agent brought a flow of the table before here.
    Moved,
    /// The agent freed an entry of the flow.
    Freed(u64),
    /// The agent read an entry: client, and service with backend.
    Read(u64, u64),
    Nothing,
}

/// Who runs: packets end within a second of their start, the agent may stop for
/// ever between any two steps, the clock runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Packet,
    Agent,
    Clock,
}

type Code<'a> = Box<dyn Fn(&mut View) -> Result<End, Asked> + 'a>;

pub struct Process<'a> {
    pub kind: Kind,
    pub code: Code<'a>,
}

/// What was looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Searched {
    pub states: u64,
    pub steps: u64,
    /// States in which all packets have ended and the agent, dead or slow, has not.
    pub deaths: u64,
    pub ends: u64,
}

/// Says what is wrong with a table in which no packet is under way.
pub type Judge<'a> = dyn Fn(&Memory, &[Option<End>]) -> Result<(), String> + 'a;

#[derive(Clone, Hash)]
struct State {
    memory: Memory,
    logs: Vec<Vec<Learnt>>,
}

/// Follows every interleaving. `judge` sees each state in which all packets have
/// ended, with how the processes ended (`None`: the agent has not).
pub fn search(memory: Memory, processes: &[Process], judge: &Judge) -> Result<Searched, String> {
    let logs = vec![Vec::new(); processes.len()];
    let mut open = vec![State { memory, logs }];
    let mut seen = HashSet::new();
    let mut searched = Searched::default();
    while let Some(state) = open.pop() {
        if !seen.insert(digest(&state)) {
            continue;
        }
        searched.states += 1;
        never_torn(&state.memory)?;
        let nexts: Vec<Result<End, Asked>> = processes
            .iter()
            .zip(&state.logs)
            .map(|(process, log)| (process.code)(&mut View::new(log)))
            .collect();
        let is_busy = |i: usize| processes[i].kind == Kind::Packet && nexts[i].is_err();
        let is_under_way = (0..processes.len()).any(|i| is_busy(i) && !state.logs[i].is_empty());
        for (i, next) in nexts.iter().enumerate() {
            let Err(Asked(op)) = next else { continue };
            let is_long = matches!(op, Op::Advance(ticks) if *ticks > u32::from(CLAIM_TICKS));
            if is_long && is_under_way {
                continue;
            }
            let mut after = state.clone();
            let answer = after.memory.apply(*op);
            learn(&processes[i], &mut after.logs[i], answer);
            searched.steps += 1;
            open.push(after);
        }
        if !(0..processes.len()).any(is_busy) {
            let ends: Vec<Option<End>> = nexts.into_iter().map(Result::ok).collect();
            searched.deaths += u64::from(ends.contains(&None));
            searched.ends += u64::from(!ends.contains(&None));
            no_claim(&state.memory, &ends)?;
            judge(&state.memory, &ends)
                .map_err(|why| format!("{why}: {ends:?} {:#x?}", state.memory))?;
        }
    }
    Ok(searched)
}

/// Adds an answer, and shortens what it completes to its result.
fn learn(process: &Process, log: &mut Vec<Learnt>, answer: u64) {
    log.push(Learnt::Answer(answer));
    let mut view = View::new(log);
    // What it asks for next is not of interest here.
    let _ = (process.code)(&mut view);
    if let Some((start, result)) = view.finished {
        log.truncate(start);
        log.push(result);
    }
}

/// Two hashes of 64 bits: states that differ are not taken for one another.
fn digest(state: &State) -> (u64, u64) {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, state).hash(&mut hasher);
        hasher.finish()
    };
    (hash(1), hash(2))
}

/// Tags of an entry that the agent holds: none of a flow here.
const NOBODY: u32 = 0xff_0000;

/// What is visible is whole, in every state.
fn never_torn(memory: &Memory) -> Result<(), String> {
    let torn = memory.entries().find(|entry| {
        is_live(control_state(entry.control))
            && control_tag(entry.control) < NOBODY
            && (entry.who != entry.to >> 4 || u64::from(control_tag(entry.control)) != entry.who)
    });
    match torn {
        Some(entry) => Err(format!("a torn entry is visible: {entry:x?}")),
        None => Ok(()),
    }
}

/// What ended holds nothing. An agent that died may: a claim is free after a second,
/// and what else it held is freed by the next start.
fn no_claim(memory: &Memory, ends: &[Option<End>]) -> Result<(), String> {
    let is_held = |control| is_live(control_state(control)) && control_tag(control) >= NOBODY;
    let leaked = |entry: &Entry| {
        (control_state(entry.control) == STATE_CLAIMING && entry.who != super::LEFT)
            || is_held(entry.control)
    };
    if ends.contains(&None) {
        return Ok(());
    }
    match memory.entries().any(leaked) {
        true => Err(format!("a claim has leaked: {memory:x?}")),
        false => Ok(()),
    }
}
