//! Runs the long tasks of the agent: one that panics or ends is started again,
//! later each time, and is loud meanwhile. The datapath needs none of them.

use std::{
    any::Any,
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};

use crate::{control::Components, datapath::plural, store::EventQueue};

/// The API on its unix socket.
pub const API: &str = "api";
/// Metrics over HTTP.
pub const METRICS: &str = "metrics";
/// The loop that comes round every second: expiry, attached programs, counts.
pub const MAINTAIN: &str = "maintain";
/// Interfaces and next hops, as netlink tells of them.
pub const NETWORK: &str = "network";
/// Where backends are, after a change of the network.
pub const PLACEMENTS: &str = "placements";
/// Health checks of backends.
pub const HEALTH: &str = "health";
/// Rollouts of services.
pub const ROLLOUTS: &str = "rollouts";
/// Flows that somebody has asked to be ended.
pub const CUTS: &str = "cuts";
/// Signs of life for the service manager.
pub const KEEP_ALIVE: &str = "keep_alive";
/// The socket by which a new agent takes over.
pub const HANDOVER: &str = "handover";

const ALL: [&str; 10] = [
    API, METRICS, MAINTAIN, NETWORK, PLACEMENTS, HEALTH, ROLLOUTS, CUTS, KEEP_ALIVE, HANDOVER,
];

/// The longest pause before a task is started again, in seconds.
const LONGEST_PAUSE: u32 = 60;
/// A task that ran for so many seconds works.
const STEADY: u32 = 5;

/// Becomes true, or loses its sender, when tasks shall end.
pub type Stopped = watch::Receiver<bool>;

/// Which tasks fail, and why.
pub struct Supervisor {
    components: watch::Sender<Components>,
    failing: Mutex<BTreeMap<&'static str, String>>,
    /// Where events of this process are told, whatever engine it runs.
    events: Arc<EventQueue>,
    /// A second, but for tests.
    second: Duration,
}

impl Supervisor {
    pub fn new() -> Arc<Self> {
        Self::with_second(Duration::from_secs(1))
    }

    fn with_second(second: Duration) -> Arc<Self> {
        Arc::new(Self {
            second,
            components: watch::Sender::new(ALL.iter().map(|name| (*name, true)).collect()),
            failing: Mutex::default(),
            events: Arc::default(),
        })
    }

    /// Every task by name, and whether it does its work.
    pub fn components(&self) -> watch::Receiver<Components> {
        self.components.subscribe()
    }

    /// Where events of the agent are told.
    pub fn events(&self) -> Arc<EventQueue> {
        Arc::clone(&self.events)
    }

    /// One line for each task that fails.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.failing).values().cloned().collect()
    }

    /// Runs what `start` gives until `stopped`, which the task itself heeds;
    /// again and again where it ends before.
    pub fn run<F, T>(
        self: &Arc<Self>,
        name: &'static str,
        mut stopped: Stopped,
        mut start: F,
    ) -> JoinHandle<()>
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = Result<()>> + Send + 'static,
    {
        let supervisor = Arc::clone(self);
        let steady = self.second * STEADY;
        tokio::spawn(async move {
            let mut failures = 0;
            loop {
                let began = Instant::now();
                let mut task = tokio::spawn(start());
                let ended = tokio::select! {
                    ended = &mut task => ended,
                    () = tokio::time::sleep(steady) => {
                        supervisor.recovered(name);
                        task.await
                    }
                };
                if is_over(&stopped) {
                    supervisor.recovered(name);
                    return;
                }
                if began.elapsed() >= steady {
                    failures = 0;
                }
                failures += 1;
                let pause = pause_after(failures);
                supervisor.failed(name, failures, pause, &why(ended));
                tokio::select! {
                    () = tokio::time::sleep(supervisor.second * pause) => {}
                    _ = stopped.wait_for(|stop| *stop) => return,
                }
            }
        })
    }

    fn failed(&self, name: &'static str, failures: u32, pause: u32, why: &str) {
        let text = format!(
            "the agent's task {name:?} failed {} ({why}): it is started again in {pause} s; packets do not need it",
            plural(u64::from(failures), "time"),
        );
        tracing::error!("{text}");
        self.events.tell("agent", "task failed", "", text.clone());
        lock(&self.failing).insert(name, text);
        self.tell(name, false);
    }

    fn recovered(&self, name: &'static str) {
        if lock(&self.failing).remove(name).is_some() {
            let text = format!("the agent's task {name:?} works again");
            tracing::info!("{text}");
            self.events.tell("agent", "task works", "", text);
            self.tell(name, true);
        }
    }

    fn tell(&self, name: &'static str, works: bool) {
        self.components.send_modify(|components| {
            components.insert(name, works);
        });
    }
}

/// Runs what blocks off the runtime's threads; a panic in there is an error.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| anyhow!(said_by(error)))
}

/// Whether tasks shall end.
pub fn is_over(stopped: &Stopped) -> bool {
    *stopped.borrow() || stopped.has_changed().is_err()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 2, 4, 8 … 60 s.
fn pause_after(failures: u32) -> u32 {
    (1 << failures.min(6)).min(LONGEST_PAUSE)
}

fn why(ended: Result<Result<()>, JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "it ended by itself".to_owned(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(error) => said_by(error),
    }
}

fn said_by(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("it panicked: {}", panic_text(&*panic)),
        Err(error) => error.to_string(),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    /// So long lasts a second.
    const SECOND: Duration = Duration::from_millis(20);

    async fn until(done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let pauses = [1, 2, 3, 5, 6, 7, 90].map(pause_after);
        assert_eq!(pauses, [2, 4, 8, 32, 60, 60, 60]);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_loud_and_started_again_and_quiet_once_it_works() {
        let supervisor = Supervisor::with_second(SECOND);
        let (stop, stopped) = watch::channel(false);
        let starts = Arc::new(AtomicU32::new(0));
        let task = supervisor.run(MAINTAIN, stopped.clone(), {
            let starts = Arc::clone(&starts);
            move || {
                let start = starts.fetch_add(1, Relaxed);
                let mut stopped = stopped.clone();
                async move {
                    assert!(start > 1, "a fault in start {start}");
                    let _ = stopped.wait_for(|stop| *stop).await;
                    Ok(())
                }
            }
        });
        for (start, pause) in [(0, 2), (1, 4)] {
            let fault = format!("a fault in start {start}): it is started again in {pause} s");
            until(|| supervisor.warnings().iter().any(|w| w.contains(&fault))).await;
            assert!(!supervisor.components().borrow()[MAINTAIN]);
            assert!(supervisor.components().borrow()[API]);
        }
        until(|| supervisor.warnings().is_empty()).await;
        assert!(supervisor.components().borrow()[MAINTAIN]);
        assert_eq!(starts.load(Relaxed), 3);
        stop.send_replace(true);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_ends_with_an_error_says_why() {
        let supervisor = Supervisor::with_second(SECOND);
        let (_stop, stopped) = watch::channel(false);
        let _task = supervisor.run(METRICS, stopped, || async {
            Err(blocking(|| panic!("inner")).await.unwrap_err())
        });
        until(|| !supervisor.warnings().is_empty()).await;
        let loud = supervisor.warnings();
        assert!(
            loud[0].contains("failed 1 time (it panicked: inner)"),
            "{loud:?}"
        );
    }
}
