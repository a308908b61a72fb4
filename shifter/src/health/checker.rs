//! Checks all backends in turn, so many at once, and tells what they are.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::{
    Checked, CheckedService, Watched,
    probe::{About, Outcome, Prober},
    schedule::Lots,
    state::{Health, State},
};
use crate::{
    gate::RunnerAt,
    model::{HealthSpec, PoolName, health::Check},
};

/// Checks under way at once.
pub const AT_ONCE: usize = 256;
/// Of which so many run a program: the runner has room for twice as many, and gates
/// and hooks want some.
pub const PROGRAMS_AT_ONCE: usize = 8;
/// Services are looked at anew at most this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The rings of one service are changed at most this often: backends that go
/// together leave together.
const SETTLE_EVERY: Duration = Duration::from_millis(250);
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `stopped`; programs of checks are run by `runner`.
pub async fn run(
    watched: Arc<dyn Watched>,
    runner: Option<RunnerAt>,
    mut stopped: watch::Receiver<bool>,
    seed: u64,
) -> Result<()> {
    let mut changes = watched.changes();
    let mut checker = Checker::new(watched, runner, seed);
    checker.look();
    let mut look_at = None;
    loop {
        checker.begin_due();
        checker.begin_settling();
        tokio::select! {
            () = at(checker.next_due()) => {}
            () = at(look_at) => {
                look_at = None;
                checker.look();
            }
            changed = changes.changed() => match changed {
                Ok(()) => {
                    let soon = Instant::now() + LOOK_EVERY;
                    look_at = look_at.or(Some(soon));
                }
                Err(_) => bail!("whose backends are checked is gone"),
            },
            Some(ended) = checker.under_way.join_next() => checker.end(ended?),
            settled = settled(&mut checker.settling) => checker.end_settling(settled?),
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    // Another agent may be about to write.
    if let Some((_, task)) = checker.settling.take() {
        task.await?;
    }
    Ok(())
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A service whose rings are being changed.
type Settling = Option<(String, JoinHandle<bool>)>;

async fn settled(settling: &mut Settling) -> Result<(String, bool)> {
    match settling {
        Some((service, task)) => {
            let is_done = task.await;
            let service = std::mem::take(service);
            *settling = None;
            Ok((service, is_done?))
        }
        None => std::future::pending().await,
    }
}

/// A number for each backend of a service that is checked, never used twice.
type Number = u64;

struct Backend {
    service: String,
    addr: SocketAddr,
    state: State,
    lots: Lots,
    /// Its program could not be run the last time.
    is_unasked: bool,
}

struct Service {
    spec: Arc<HealthSpec>,
    backends: HashMap<SocketAddr, Number>,
    green: BTreeSet<SocketAddr>,
    settle_from: Instant,
}

struct Ended {
    number: Number,
    began: Instant,
    took: Duration,
    outcome: Outcome,
    is_program: bool,
}

struct Checker {
    watched: Arc<dyn Watched>,
    prober: Arc<Prober>,
    services: HashMap<String, Service>,
    /// Services of which what was told is not what is.
    dirty: BTreeSet<String>,
    /// Up to which changes of services are known.
    version: u64,
    backends: HashMap<Number, Backend>,
    /// When each is due; those that are under way are not in it, and those that
    /// are not checked any more are passed over.
    due: BinaryHeap<Reverse<(Instant, Number)>>,
    under_way: JoinSet<Ended>,
    /// Of which programs.
    programs: usize,
    /// Due, and waiting for a program to end.
    waiting: VecDeque<Number>,
    settling: Settling,
    seed: u64,
    given: Number,
}

impl Checker {
    fn new(watched: Arc<dyn Watched>, runner: Option<RunnerAt>, seed: u64) -> Self {
        Self {
            watched,
            prober: Arc::new(Prober::new(runner)),
            services: HashMap::new(),
            dirty: BTreeSet::new(),
            version: 0,
            backends: HashMap::new(),
            due: BinaryHeap::new(),
            under_way: JoinSet::new(),
            programs: 0,
            waiting: VecDeque::new(),
            settling: None,
            seed,
            given: 0,
        }
    }

    /// Takes in which backends are to be checked. What is known of a backend
    /// outlives an apply that does not change its check.
    fn look(&mut self) {
        let look = self.watched.look(self.version);
        self.version = look.version;
        let mut gone = look.without;
        if look.is_whole {
            let named: BTreeSet<&str> = look.services.iter().map(|t| t.service.as_str()).collect();
            let is_gone = |name: &&String| !named.contains(name.as_str());
            gone.extend(self.services.keys().filter(is_gone).cloned());
        }
        for name in gone {
            self.dirty.remove(&name);
            if let Some(service) = self.services.remove(&name) {
                self.forget(service.backends);
            }
        }
        for checked in look.services {
            let old = self.services.remove(&checked.service);
            let service = self.follow(&checked, old);
            if self.down(&service.backends) == checked.down {
                self.dirty.remove(&checked.service);
            } else {
                self.dirty.insert(checked.service.clone());
            }
            self.services.insert(checked.service, service);
        }
    }

    fn forget(&mut self, backends: HashMap<SocketAddr, Number>) {
        for number in backends.into_values() {
            self.backends.remove(&number);
        }
    }

    fn follow(&mut self, checked: &CheckedService, old: Option<Service>) -> Service {
        let now = Instant::now();
        let settle_from = old.as_ref().map_or(now, |old| old.settle_from);
        let mut known = HashMap::new();
        if let Some(old) = old {
            if old.spec.asks_the_same(&checked.spec) {
                known = old.backends;
            } else {
                self.forget(old.backends);
            }
        }
        let mut backends = HashMap::new();
        for addr in &checked.backends {
            let number = match known.remove(addr) {
                Some(number) => number,
                None => self.add(checked, *addr, now),
            };
            backends.insert(*addr, number);
        }
        self.forget(known);
        Service {
            spec: Arc::new(checked.spec.clone()),
            backends,
            green: checked.green.clone(),
            settle_from,
        }
    }

    fn add(&mut self, checked: &CheckedService, addr: SocketAddr, now: Instant) -> Number {
        self.given += 1;
        let health = if checked.down.contains(&addr) {
            Health::Down
        } else {
            Health::Unknown
        };
        let mut lots = Lots::new([self.seed, self.given]);
        let first = lots.first(checked.spec.interval);
        self.due.push(Reverse((now + first, self.given)));
        let backend = Backend {
            service: checked.service.clone(),
            addr,
            state: State::new(health),
            lots,
            is_unasked: false,
        };
        self.backends.insert(self.given, backend);
        self.given
    }

    fn down(&self, backends: &HashMap<SocketAddr, Number>) -> BTreeSet<SocketAddr> {
        let is_down = |number| {
            let backend: Option<&Backend> = self.backends.get(number);
            backend.is_some_and(|backend| backend.state.health() == Health::Down)
        };
        let down = backends.iter().filter(|(_, number)| is_down(number));
        down.map(|(addr, _)| *addr).collect()
    }

    /// When to begin the next check or change the next rings, if that is known.
    fn next_due(&self) -> Option<Instant> {
        let check = match self.due.peek() {
            Some(Reverse((at, _))) if self.under_way.len() < AT_ONCE => Some(*at),
            _ => None,
        };
        let dirty = self.dirty.iter().filter_map(|name| self.services.get(name));
        let settle = dirty.map(|service| service.settle_from).min();
        let settle = settle.filter(|_| self.settling.is_none());
        check.into_iter().chain(settle).min()
    }

    fn begin_due(&mut self) {
        while self.under_way.len() < AT_ONCE
            && self.programs < PROGRAMS_AT_ONCE
            && let Some(number) = self.waiting.pop_front()
        {
            self.begin(number);
        }
        let now = Instant::now();
        while self.under_way.len() < AT_ONCE
            && let Some(Reverse((at, number))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            self.begin(number);
        }
    }

    /// Begins a check, if it is still wanted; one by a program when there is room.
    fn begin(&mut self, number: Number) {
        let Some(backend) = self.backends.get(&number) else {
            return;
        };
        let Some(service) = self.services.get(&backend.service) else {
            return;
        };
        let is_program = matches!(service.spec.check, Check::Exec(_));
        if is_program && self.programs >= PROGRAMS_AT_ONCE {
            // They hold nobody else up.
            self.waiting.push_back(number);
            return;
        }
        self.programs += usize::from(is_program);
        let about = About {
            service: backend.service.clone(),
            pool: match service.green.contains(&backend.addr) {
                true => PoolName::Green,
                false => PoolName::Blue,
            },
            backend: backend.addr,
        };
        let spec = Arc::clone(&service.spec);
        let prober = Arc::clone(&self.prober);
        self.under_way.spawn(async move {
            let began = Instant::now();
            let outcome = prober.probe(&spec, &about).await;
            Ended {
                number,
                began,
                took: began.elapsed(),
                outcome,
                is_program,
            }
        });
    }

    fn end(&mut self, ended: Ended) {
        self.programs -= usize::from(ended.is_program);
        let Some(backend) = self.backends.get_mut(&ended.number) else {
            return;
        };
        let Some(service) = self.services.get(&backend.service) else {
            return;
        };
        let spec = &service.spec;
        let passed = ended.outcome == Outcome::Passed;
        let was = backend.state.health();
        // A program that cannot be run says nothing of the backend.
        let is_unasked =
            ended.is_program && matches!(&ended.outcome, Outcome::Failed { kind: "config", .. });
        if is_unasked && !backend.is_unasked {
            tracing::warn!(service = backend.service, backend = %backend.addr, outcome = ?ended.outcome, "its check cannot be made: it stays what it was");
        }
        backend.is_unasked = is_unasked;
        let is_news = !is_unasked && backend.state.note(passed, spec.rise, spec.fall);
        let health = backend.state.health();
        if (was == Health::Down) != (health == Health::Down) {
            self.dirty.insert(backend.service.clone());
        }
        let next = ended.began + backend.lots.next(spec.interval);
        self.due.push(Reverse((next, ended.number)));
        self.watched.note(&Checked {
            service: backend.service.clone(),
            backend: backend.addr,
            outcome: ended.outcome,
            took: ended.took,
            age: ended.began.elapsed(),
            health,
            is_news,
        });
    }

    /// Has one service's rings changed, off this thread.
    fn begin_settling(&mut self) {
        if self.settling.is_some() {
            return;
        }
        let now = Instant::now();
        let settle_from = |name: &String| self.services.get(name).map(|s| s.settle_from);
        let due = self
            .dirty
            .iter()
            .filter_map(|name| Some((settle_from(name)?, name)));
        let Some((_, name)) = due.filter(|(from, _)| *from <= now).min() else {
            return;
        };
        let name = name.clone();
        self.dirty.remove(&name);
        let Some(service) = self.services.get(&name) else {
            return;
        };
        let down = self.down(&service.backends);
        let watched = Arc::clone(&self.watched);
        let service = name.clone();
        let task = tokio::task::spawn_blocking(move || watched.settle(&service, &down));
        self.settling = Some((name, task));
    }

    fn end_settling(&mut self, (name, is_done): (String, bool)) {
        if let Some(service) = self.services.get_mut(&name) {
            let pause = if is_done { SETTLE_EVERY } else { RETRY };
            service.settle_from = Instant::now() + pause;
            if !is_done {
                self.dirty.insert(name);
            }
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
