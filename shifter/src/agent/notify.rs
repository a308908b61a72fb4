//! Tells systemd how far the service is and that it lives (sd_notify(3));
//! without systemd, nobody.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    handover::Watched,
    panics,
    supervise::{KEEP_ALIVE, Stopped},
};

/// A maintenance pass is due every second; one that took longer than this and
/// longer than half of the watchdog's time has not answered.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);

/// The service manager that started this process, if one did.
pub struct Manager {
    to: Option<SocketAddr>,
    /// As it was given, for an agent that takes over.
    socket: Option<String>,
    /// Another process is the service's main one, and only that is heard.
    quiet: AtomicBool,
    /// Half of the time that it waits for a sign of life, if it does.
    every: Option<Duration>,
    status: Mutex<String>,
    answered: Mutex<Instant>,
}

impl Manager {
    /// As the environment names it: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID.
    /// An agent that takes over from another is not heard before it is ready,
    /// and where it has no manager of its own it takes over the other's too.
    pub fn from_environment(taking_over: Option<Option<&Watched>>) -> Arc<Self> {
        let text = |name| std::env::var(name).ok();
        let own = std::env::var_os("NOTIFY_SOCKET");
        let manager = match (own, taking_over.flatten()) {
            (None, Some(other)) => Self::new(
                Some(OsStr::new(&other.socket)),
                other.watchdog_usec.and_then(half_of),
            ),
            (own, _) => Self::new(
                own.as_deref(),
                watchdog_interval(
                    text("WATCHDOG_USEC").as_deref(),
                    text("WATCHDOG_PID").as_deref(),
                    std::process::id(),
                ),
            ),
        };
        manager
            .quiet
            .store(taking_over.is_some(), Ordering::Release);
        Arc::new(manager)
    }

    fn new(socket: Option<&OsStr>, every: Option<Duration>) -> Self {
        let to = socket.and_then(|path| {
            address(path)
                .inspect_err(|error| {
                    tracing::warn!(%error, ?path, "NOTIFY_SOCKET names no socket: systemd is told nothing");
                })
                .ok()
        });
        Self {
            socket: socket
                .filter(|_| to.is_some())
                .and_then(OsStr::to_str)
                .map(str::to_owned),
            to,
            quiet: AtomicBool::new(false),
            every,
            status: Mutex::default(),
            answered: Mutex::new(Instant::now()),
        }
    }

    /// One line on what the agent does, shown by `systemctl status`.
    pub fn status(&self, line: &str) {
        let mut said = lock(&self.status);
        // A line break would begin another variable.
        let line = line.replace('\n', " ");
        if *said != line && !self.quiet.load(Ordering::Acquire) {
            self.tell(&format!("STATUS={line}"));
            *said = line;
        }
    }

    /// Whether a service manager started this process.
    pub fn is_there(&self) -> bool {
        self.to.is_some()
    }

    /// What another agent needs to be heard.
    pub fn watched(&self) -> Option<Watched> {
        Some(Watched {
            socket: self.socket.clone()?,
            watchdog_usec: self.every.map(|half| 2 * half.as_micros() as u64),
        })
    }

    /// From now on another process is the service's main one. Said by this one,
    /// which still is: with NotifyAccess=main no other is heard.
    pub fn hand_to(&self, pid: i32) {
        self.tell(&format!("MAINPID={pid}"));
        self.quiet.store(true, Ordering::Release);
    }

    /// Attached and serving; from now on the control loop has to answer.
    pub fn ready(&self) {
        self.quiet.store(false, Ordering::Release);
        self.answer();
        self.tell("READY=1");
    }

    /// On the way out.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping; the datapath stays in place");
    }

    /// The control loop has been round once more.
    pub fn answer(&self) {
        *lock(&self.answered) = Instant::now();
    }

    /// Says four times in the watchdog's time that the agent lives, as long as
    /// its control loop has answered in the last half of it. It runs on the runtime that serves the API:
    /// where either stands still, systemd starts the agent anew.
    pub async fn keep_alive(self: Arc<Self>, mut stopped: Stopped) -> Result<()> {
        panics::point(KEEP_ALIVE);
        let over = async move { drop(stopped.wait_for(|stop| *stop).await) };
        match self.every.filter(|_| self.to.is_some()) {
            None => over.await,
            Some(every) => tokio::select! {
                () = self.tell_all_the_time(every) => {}
                () = over => {}
            },
        }
        Ok(())
    }

    async fn tell_all_the_time(&self, every: Duration) {
        let mut stands_still = false;
        // One sign that is late or lost is not yet silence.
        let mut ticks = tokio::time::interval(every / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let silent = lock(&self.answered).elapsed();
            let is_alive = self.sign_of_life(every, silent);
            if !is_alive && !stands_still {
                tracing::error!(
                    silent_s = silent.as_secs(),
                    "the control loop does not answer: the watchdog will start the agent anew; the datapath goes on"
                );
            }
            stands_still = !is_alive;
        }
    }

    /// Tells the watchdog, unless the control loop was silent for too long.
    fn sign_of_life(&self, every: Duration, silent: Duration) -> bool {
        let is_alive = silent < every.max(SHORTEST_PATIENCE);
        if is_alive {
            self.tell("WATCHDOG=1");
        }
        is_alive
    }

    fn tell(&self, state: &str) {
        let Some(to) = &self.to else { return };
        if self.quiet.load(Ordering::Acquire) {
            return;
        }
        let told = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(state.as_bytes(), to).map(drop));
        if let Err(error) = told {
            tracing::warn!(%error, "telling systemd {state:?} failed");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path, or the name of an abstract socket after an `@`.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

/// Half of the time after which the watchdog gives up (sd_watchdog_enabled(3)).
fn watchdog_interval(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    // Meant for another process of the service.
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    half_of(usec?.parse().ok()?)
}

fn half_of(usec: u64) -> Option<Duration> {
    (usec > 0).then(|| Duration::from_micros(usec.div_ceil(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager, and the socket that hears it.
    fn heard(name: &str, every: Duration) -> (Arc<Manager>, UnixDatagram) {
        let name = format!("@shifter-notify-{name}-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&address(OsStr::new(&name)).unwrap()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let manager = Manager::new(Some(OsStr::new(&name)), Some(every));
        (Arc::new(manager), socket)
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_state_is_one_message_and_a_status_is_told_when_it_changes() {
        let (manager, socket) = heard("states", Duration::from_secs(1));
        manager.status("loading");
        manager.status("loading");
        manager.ready();
        manager.status("two\nlines");
        manager.stopping();
        let said: Vec<String> = (0..4).map(|_| next(&socket)).collect();
        assert_eq!(
            said,
            [
                "STATUS=loading",
                "READY=1",
                "STATUS=two lines",
                "STOPPING=1\nSTATUS=stopping; the datapath stays in place"
            ]
        );
    }

    #[test]
    fn an_agent_whose_control_loop_is_silent_gives_no_sign_of_life() {
        let every = Duration::from_secs(15);
        let (manager, socket) = heard("silent", every);
        assert!(!manager.sign_of_life(every, Duration::from_secs(15)));
        assert!(manager.sign_of_life(every, Duration::from_secs(14)));
        // A pass takes a second at least, whatever the watchdog asks for.
        let short = Duration::from_millis(10);
        assert!(manager.sign_of_life(short, Duration::from_secs(4)));
        assert!(!manager.sign_of_life(short, Duration::from_secs(5)));
        assert_eq!([next(&socket), next(&socket)], ["WATCHDOG=1"; 2]);
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 1]).is_err());
    }

    #[test]
    fn the_watchdog_is_told_again_and_again() {
        let (manager, socket) = heard("again", Duration::from_millis(20));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        runtime.spawn(Arc::clone(&manager).keep_alive(stopped));
        for _ in 0..3 {
            assert_eq!(next(&socket), "WATCHDOG=1");
        }
    }

    #[test]
    fn the_one_who_goes_names_the_next_and_is_silent_then() {
        let (manager, socket) = heard("next", Duration::from_secs(1));
        let watched = manager.watched().unwrap();
        assert_eq!(watched.watchdog_usec, Some(2_000_000));
        manager.hand_to(4242);
        manager.stopping();
        let next_one = Manager::new(
            Some(OsStr::new(&watched.socket)),
            watched.watchdog_usec.and_then(half_of),
        );
        next_one.quiet.store(true, Ordering::Release);
        next_one.status("loading");
        next_one.ready();
        assert_eq!([next(&socket), next(&socket)], ["MAINPID=4242", "READY=1"]);
    }

    #[test]
    fn the_interval_is_half_of_what_systemd_waits_and_only_for_this_process() {
        let half = Some(Duration::from_secs(15));
        assert_eq!(watchdog_interval(Some("30000000"), None, 7), half);
        assert_eq!(watchdog_interval(Some("30000000"), Some("7"), 7), half);
        assert_eq!(watchdog_interval(Some("30000000"), Some("8"), 7), None);
        for none in [None, Some("0"), Some("soon")] {
            assert_eq!(watchdog_interval(none, None, 7), None);
        }
    }

    #[test]
    fn without_a_manager_nothing_is_told() {
        let manager = Manager::new(None, None);
        manager.ready();
        manager.status("serving");
        assert!(manager.to.is_none());
    }
}
