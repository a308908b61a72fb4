//! The checker over loopback, and one who is told.

use std::sync::Mutex;

use tokio::net::TcpListener;

use super::{super::Look, *};
use crate::model::health::Written;

/// Keeps what it is told.
struct Teller {
    services: Mutex<Vec<CheckedService>>,
    changes: watch::Sender<u64>,
    told: Mutex<Vec<(String, BTreeSet<SocketAddr>)>>,
    checks: Mutex<HashMap<SocketAddr, u64>>,
    /// So many changes of rings fail.
    failing: Mutex<u32>,
}

impl Teller {
    fn new(services: Vec<CheckedService>) -> Arc<Self> {
        Arc::new(Self {
            services: Mutex::new(services),
            changes: watch::Sender::new(0),
            told: Mutex::default(),
            checks: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    fn told(&self) -> Vec<(String, BTreeSet<SocketAddr>)> {
        self.told.lock().unwrap().clone()
    }

    fn set(&self, services: Vec<CheckedService>) {
        *self.services.lock().unwrap() = services;
        self.changes.send_modify(|version| *version += 1);
    }

    fn checks(&self, addr: SocketAddr) -> u64 {
        self.checks.lock().unwrap().get(&addr).copied().unwrap_or(0)
    }
}

impl Watched for Teller {
    fn look(&self, _since: u64) -> Look {
        Look {
            is_whole: true,
            services: self.services.lock().unwrap().clone(),
            ..Look::default()
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn note(&self, checked: &Checked) {
        *self
            .checks
            .lock()
            .unwrap()
            .entry(checked.backend)
            .or_default() += 1;
    }

    fn settle(&self, service: &str, down: &BTreeSet<SocketAddr>) -> bool {
        let mut failing = self.failing.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return false;
        }
        let mut services = self.services.lock().unwrap();
        if let Some(checked) = services.iter_mut().find(|t| t.service == service) {
            checked.down = down.clone();
        }
        self.told
            .lock()
            .unwrap()
            .push((service.to_owned(), down.clone()));
        true
    }
}

fn checked(service: &str, backends: &[SocketAddr]) -> CheckedService {
    let written = Written {
        kind: Some("tcp".into()),
        interval: Some("100ms".into()),
        timeout: Some("100ms".into()),
        ..Written::default()
    };
    CheckedService {
        service: service.into(),
        spec: written.read().unwrap(),
        backends: backends.iter().copied().collect(),
        green: BTreeSet::new(),
        down: BTreeSet::new(),
    }
}

fn start(teller: &Arc<Teller>) -> (watch::Sender<bool>, JoinHandle<Result<()>>) {
    let (stop, stopped) = watch::channel(false);
    let watched = Arc::clone(teller) as Arc<dyn Watched>;
    (stop, tokio::spawn(run(watched, None, stopped, 1)))
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A port on which nobody listens.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn what_refuses_is_told_once_and_what_listens_again_too() {
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (good, bad) = (
        good.local_addr().map(|a| (good, a)).unwrap(),
        closed_port().await,
    );
    let teller = Teller::new(vec![checked("web", &[good.1, bad])]);
    let (stop, task) = start(&teller);
    until("it is down", || !teller.told().is_empty()).await;
    assert_eq!(teller.told(), [("web".to_owned(), BTreeSet::from([bad]))]);
    until("checks go on", || {
        teller.checks(bad) > 8 && teller.checks(good.1) > 8
    })
    .await;
    assert_eq!(teller.told().len(), 1);
    let _listener = TcpListener::bind(bad).await.unwrap();
    until("it is up", || teller.told().len() > 1).await;
    assert_eq!(teller.told()[1].1, BTreeSet::new());
    stop.send_replace(true);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_change_that_fails_is_tried_again() {
    let bad = closed_port().await;
    let teller = Teller::new(vec![checked("web", &[bad])]);
    *teller.failing.lock().unwrap() = 1;
    let (_stop, _task) = start(&teller);
    until("it is told", || !teller.told().is_empty()).await;
    assert_eq!(*teller.failing.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_service_that_goes_is_checked_no_more_and_one_that_comes_is() {
    let (first, second) = (closed_port().await, closed_port().await);
    let teller = Teller::new(vec![checked("web", &[first])]);
    let (_stop, _task) = start(&teller);
    until("the first", || teller.told().len() == 1).await;
    teller.set(vec![checked("api", &[second])]);
    until("the second", || teller.told().len() == 2).await;
    assert_eq!(
        teller.told()[1],
        ("api".to_owned(), BTreeSet::from([second]))
    );
    let before = teller.checks(first);
    let other = teller.checks(second);
    until("more", || teller.checks(second) > other + 5).await;
    assert!(teller.checks(first) <= before + 1);
}

#[tokio::test]
async fn what_was_down_at_the_start_is_so_until_its_checks_pass() {
    let (was_down, listener) = (closed_port().await, TcpListener::bind("127.0.0.1:0").await);
    let listener = listener.unwrap();
    let healed = listener.local_addr().unwrap();
    let mut checked = checked("web", &[was_down, healed]);
    checked.down = BTreeSet::from([was_down, healed]);
    let teller = Teller::new(vec![checked]);
    let (_stop, _task) = start(&teller);
    until("one is healed", || !teller.told().is_empty()).await;
    assert_eq!(teller.told()[0].1, BTreeSet::from([was_down]));
}

#[tokio::test]
async fn backends_that_go_together_leave_in_few_changes() {
    // All bound at once, so that none gets the port of another.
    let mut listeners = Vec::new();
    for _ in 0..50 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addr = |listener: TcpListener| listener.local_addr().unwrap();
    let backends: Vec<SocketAddr> = listeners.into_iter().map(addr).collect();
    let teller = Teller::new(vec![checked("web", &backends)]);
    let (_stop, _task) = start(&teller);
    until("all are down", || {
        teller
            .told()
            .last()
            .is_some_and(|(_, down)| down.len() == 50)
    })
    .await;
    let changes = teller.told().len();
    assert!(changes <= 8, "{changes} changes for 50 backends");
}

/// A runner of programs that takes its time; the most that ran at once.
async fn slow_runner() -> (RunnerAt, Arc<Mutex<(usize, usize)>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let path = std::env::temp_dir().join(format!("shifter-checker-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let running = Arc::new(Mutex::new((0, 0)));
    let counted = Arc::clone(&running);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                {
                    let mut counts = counted.lock().unwrap();
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                }
                let mut bytes = [0; 4_096];
                let Ok(1..) = stream.read(&mut bytes).await else {
                    panic!("it is asked nothing");
                };
                tokio::time::sleep(Duration::from_millis(100)).await;
                counted.lock().unwrap().0 -= 1;
                let answer = r#"{"ended":{"code":0,"output":""}}"#;
                stream.write_all(answer.as_bytes()).await.ok();
            });
        }
    });
    (RunnerAt::Unit(path), running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_wait_for_each_other_and_nobody_waits_for_them() {
    let (runner, running) = slow_runner().await;
    let all: Vec<SocketAddr> = (1..=40)
        .map(|port| SocketAddr::from(([127, 0, 0, 2], port)))
        .collect();
    let written = Written {
        kind: Some("exec".into()),
        file: Some("well.sh".into()),
        interval: Some("100ms".into()),
        ..Written::default()
    };
    let programs = CheckedService {
        spec: written.read().unwrap(),
        ..checked("programs", &all)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = listener.local_addr().unwrap();
    let teller = Teller::new(vec![programs, checked("plain", &[plain])]);
    let (stop, stopped) = watch::channel(false);
    let watched = Arc::clone(&teller) as Arc<dyn Watched>;
    let task = tokio::spawn(run(watched, Some(runner), stopped, 1));
    let asked = |most: u64| all.iter().all(|addr| teller.checks(*addr) >= most);
    // Forty that take 100 ms, eight at once: more than the interval has room for.
    until("each has its turn, again and again", || asked(3)).await;
    assert_eq!(running.lock().unwrap().1, PROGRAMS_AT_ONCE);
    let others = all.iter().map(|addr| teller.checks(*addr)).max().unwrap();
    assert!(
        teller.checks(plain) > others,
        "{} checks of it, {others} of one that waits",
        teller.checks(plain)
    );
    stop.send(true).unwrap();
    task.await.unwrap().unwrap();
}
