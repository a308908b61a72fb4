//! From the start of the process to its end, by a signal or a handover.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    doors::Doors,
    engine::{Claim, Engine},
    handover::{self, Answer, Asked, Handed},
    keepers,
    notify::Manager,
    panics, privilege,
    serving::Serving,
    successor::Successor,
    supervise::{HANDOVER, KEEP_ALIVE, Supervisor, blocking},
};
use crate::{
    datapath::noted, fault, gate::Asker, model::config::AgentConfig, network::Network,
    reconcile::Reconciler, telemetry::Receipts,
};

/// How long writes under way may hold a handover up.
const WRITES_WAIT: Duration = Duration::from_secs(20);
/// How long locks that were given up may take to come free.
const LOCKS_WAIT: Duration = Duration::from_secs(5);
/// A new agent that is not ready by then gives up, and the old one goes on.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(120);

/// What stays the same in this process, whatever engine it runs.
struct Life {
    /// How long the locks may be another's at the start.
    patience: Duration,
    config: AgentConfig,
    /// Who asks gates that reach out of the agent.
    asker: Arc<Asker>,
    network: Arc<Network>,
    manager: Arc<Manager>,
    supervisor: Arc<Supervisor>,
    receipts: Arc<Receipts>,
    signals: Signals,
    successor: Successor,
}

/// An engine at work.
struct Run {
    reconciler: Arc<Reconciler>,
    claim: Option<Claim>,
    rest: watch::Sender<bool>,
    keepers: Vec<JoinHandle<()>>,
    serving: Serving,
}

/// Why an engine is followed no longer.
enum Next {
    /// A signal.
    Stop,
    /// Another agent has taken over, these sockets among the rest.
    Away(Asked, Vec<PathBuf>),
    /// Another agent wanted to, and failed: all is opened anew.
    Again,
}

/// Lives until a signal, or until another agent has taken over.
pub async fn live(config: AgentConfig, asker: Arc<Asker>, replace: bool) -> Result<()> {
    let started = Instant::now();
    privilege::say_what_is_missing();
    noted::read_from(noted::path_beside(&config.unix));
    let signals = Signals::listen()?;
    // What needs no lock comes before the old agent is asked for its own.
    let network = Network::start(config.interfaces.clone())?;
    let handed = match replace {
        true => blocking(handover::ask).await??,
        false => None,
    };
    let manager = Manager::from_environment(handed.as_ref().map(|h| h.offer.manager.as_ref()));
    let life = Life {
        // Who is replaced may have died just now.
        patience: if replace { LOCKS_WAIT } else { Duration::ZERO },
        signals: signals.for_manager(&manager)?,
        successor: Successor::of_this_process(),
        config,
        asker,
        network,
        manager,
        supervisor: Supervisor::new(),
        receipts: Arc::default(),
    };
    let (doors, engine, claim) = life.open_or_give_back(handed).await?;
    life.go_on(started, doors, engine, claim).await
}

impl Life {
    /// The first engine of this process. When it cannot be had, the agent that
    /// made way is told, and goes on.
    async fn open_or_give_back(&self, handed: Option<Handed>) -> Result<(Doors, Engine, Claim)> {
        let Some(mut handed) = handed else {
            return self.open(None).await;
        };
        let (pid, ready) = (handed.pid, limit_takeover());
        match self.open(Some(&mut handed)).await {
            Ok(opened) => {
                blocking(move || handed.ready()).await?;
                opened.0.own_all();
                // Dropped, it says so as well.
                drop(ready);
                Ok(opened)
            }
            Err(error) => {
                handed.fail(&error);
                Err(error.context(format!(
                    "nothing was taken over, the running agent (process {pid}) goes on"
                )))
            }
        }
    }

    /// Whatever can be refused is refused before the first packet is touched.
    async fn open(&self, handed: Option<&mut Handed>) -> Result<(Doors, Engine, Claim)> {
        let claim = self.claim_within(self.patience).await?;
        fault::point("start_claimed");
        let is_handed = handed.is_some();
        let doors = Doors::open(&self.config, handed).await?;
        let mut engine = self.open_engine()?;
        // What the file says is taken in once nothing else can be refused. The agent
        // that goes on after a handover that failed takes in none.
        if is_handed {
            engine.attach()?;
            engine.load_file(&self.config)?;
        } else {
            engine.load_file(&self.config)?;
            engine.attach()?;
        }
        Ok((doors, engine, claim))
    }

    fn open_engine(&self) -> Result<Engine> {
        Engine::open(
            &self.config,
            Arc::clone(&self.network),
            &self.manager,
            &self.supervisor,
            Arc::clone(&self.asker),
        )
    }

    /// Serves, hands over or fails to, and serves again, until the end.
    async fn go_on(
        mut self,
        started: Instant,
        doors: Doors,
        engine: Engine,
        claim: Claim,
    ) -> Result<()> {
        let (stop, stopped) = watch::channel(false);
        let (asks, mut asked) = mpsc::channel(1);
        let took = engine.took;
        let mut run = self.run(engine, claim, &doors)?;
        tracing::info!(
            took_ms = ms(started.elapsed()),
            open_ms = ms(took.open),
            reconcile_ms = ms(took.reconcile),
            attach_ms = ms(took.attach),
            api = %self.config.unix.display(),
            "serving"
        );
        self.tell_started(&run.reconciler);
        self.manager.ready();
        let (manager, until) = (Arc::clone(&self.manager), stopped.clone());
        self.supervisor.run(KEEP_ALIVE, stopped.clone(), move || {
            Arc::clone(&manager).keep_alive(until.clone())
        });
        let (socket, until) = (doors.handover.share()?, stopped.clone());
        self.supervisor.run(HANDOVER, stopped, move || {
            let (socket, asks, until) = (socket.share(), asks.clone(), until.clone());
            async move {
                panics::point(HANDOVER);
                handover::listen(socket?, asks, until).await
            }
        });
        loop {
            match self.follow(&mut run, &doors, &mut asked).await {
                Next::Again => run = self.take_back(run, &doors).await?,
                Next::Stop => {
                    tracing::info!("stopping; the datapath stays in place");
                    let text = "by a signal; the datapath stays in place";
                    self.supervisor.events().tell("agent", "stopping", "", text);
                    self.manager.stopping();
                    run.rest.send_replace(true);
                    run.serving.end().await;
                    end(run.keepers).await;
                    // Without the locks another agent is the one that writes.
                    if run.claim.is_some() {
                        store_the_rest(&run.reconciler).await;
                    }
                    break;
                }
                Next::Away(asked, taken) => {
                    run.serving.leave();
                    doors.leave(&taken);
                    self.manager.hand_to(asked.pid);
                    fault::point("give_leaving");
                    tracing::info!(to = asked.pid, "handed over; the new agent serves");
                    asked.gone();
                    run.serving.end().await;
                    break;
                }
            }
        }
        stop.send_replace(true);
        Ok(())
    }

    /// The first event of each agent: what it found, and what it is.
    fn tell_started(&self, reconciler: &Reconciler) {
        let text = format!(
            "version {}, process {}; {}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            reconciler.found()
        );
        self.supervisor.events().tell("agent", "started", "", text);
        reconciler.flush_events();
    }

    fn run(&self, engine: Engine, claim: Claim, doors: &Doors) -> Result<Run> {
        let (rest, resting) = watch::channel(false);
        let serving = Serving::start(&engine, doors, &self.receipts, &self.supervisor)?;
        Ok(Run {
            keepers: keepers::start(&engine, &self.manager, &self.supervisor, &resting),
            reconciler: engine.reconciler,
            claim: Some(claim),
            rest,
            serving,
        })
    }

    /// Waits for what ends this run of the engine.
    async fn follow(
        &mut self,
        run: &mut Run,
        doors: &Doors,
        asks: &mut mpsc::Receiver<Asked>,
    ) -> Next {
        loop {
            tokio::select! {
                heard = self.signals.next() => match heard {
                    Heard::End => return Next::Stop,
                    Heard::HangUp => self.successor.start(),
                },
                Some(asked) = asks.recv() => {
                    if let Some(next) = self.give(run, doors, asked).await {
                        return next;
                    }
                }
            }
        }
    }

    /// Makes way for another agent; reads are answered all the time. `None`
    /// where nothing has changed.
    async fn give(&mut self, run: &mut Run, doors: &Doors, asked: Asked) -> Option<Next> {
        let begun = Instant::now();
        let pid = asked.pid;
        tracing::info!(to = pid, "a new agent takes over: writes wait");
        self.manager
            .status(&format!("handing over to process {pid}"));
        let text = format!("a new agent, process {pid}, takes over");
        self.supervisor.events().tell("agent", "handover", "", text);
        let gate = Arc::clone(&run.serving.gate);
        gate.hold();
        if tokio::time::timeout(WRITES_WAIT, gate.quiet())
            .await
            .is_err()
        {
            gate.release();
            asked.refuse("a write has been under way for 20 s: try again once it is answered");
            return None;
        }
        run.rest.send_replace(true);
        end(std::mem::take(&mut run.keepers)).await;
        store_the_rest(&run.reconciler).await;
        fault::point("give_rested");
        run.claim = None;
        let (offer, sockets) = doors.offer(self.manager.watched());
        let offered = asked.offer(offer, &sockets);
        fault::point("give_offered");
        let mut failed = offered.err().map(|error| error.to_string());
        while failed.is_none() {
            tokio::select! {
                answer = asked.answer() => match answer {
                    Answer::Ready(taken) => {
                        let writes_waited_ms = ms(begun.elapsed());
                        tracing::info!(to = pid, writes_waited_ms, "the new agent is ready");
                        return Some(Next::Away(asked, taken));
                    }
                    Answer::Failed(why) => failed = Some(why),
                    Answer::Waiting => self.manager.answer(),
                },
                () = self.signals.end() => {
                    // The other has the locks, and goes on without this one.
                    doors.leave_all();
                    return Some(Next::Stop);
                }
            }
        }
        let why = failed.unwrap_or_default();
        tracing::error!(
            "the new agent (process {pid}) did not take over ({why}): this one goes on"
        );
        Some(Next::Again)
    }

    /// Opens everything anew, on the same sockets: the other agent may have
    /// changed what this one knew. Reads are answered meanwhile.
    async fn take_back(&self, before: Run, doors: &Doors) -> Result<Run> {
        let begun = Instant::now();
        let claim = self.claim_within(LOCKS_WAIT).await?;
        let mut engine = self.open_engine()?;
        engine.attach()?;
        let run = self.run(engine, claim, doors)?;
        tracing::info!(took_ms = ms(begun.elapsed()), "serving again");
        let text = "the new agent did not take over: this one goes on";
        self.supervisor
            .events()
            .tell("agent", "serving again", "", text);
        // What it has under way is answered beside the rest.
        tokio::spawn(before.serving.end());
        Ok(run)
    }

    /// Takes the locks; the kernel may need a moment to end who held them.
    async fn claim_within(&self, limit: Duration) -> Result<Claim> {
        let begun = Instant::now();
        loop {
            match Claim::take(&self.config) {
                Err(_) if begun.elapsed() < limit => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                taken => return taken,
            }
        }
    }
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Waits for tasks that were told to end.
async fn end(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the agent ended badly");
        }
    }
}

/// What was published without a request is stored each second, and now.
async fn store_the_rest(reconciler: &Arc<Reconciler>) {
    let reconciler = Arc::clone(reconciler);
    if let Err(error) = blocking(move || reconciler.maintain()).await {
        tracing::warn!(%error, "the last pass of this agent failed");
    }
}

/// Ends this process if what it gives is not dropped in time: the locks come
/// free, and the old agent goes on.
fn limit_takeover() -> std::sync::mpsc::Sender<()> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::sync::mpsc::RecvTimeoutError::Timeout;
        if let Err(Timeout) = is_ready.recv_timeout(TAKEOVER_LIMIT) {
            tracing::error!(
                "not ready within {} s: this agent gives up, and the running one goes on",
                TAKEOVER_LIMIT.as_secs()
            );
            std::process::exit(1);
        }
    });
    ready
}

enum Heard {
    End,
    HangUp,
}

/// The signals that mean something to an agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            hang_up: None,
        })
    }

    /// SIGHUP means a reload where a service manager sends it, and the end of
    /// the terminal elsewhere.
    fn for_manager(mut self, manager: &Manager) -> Result<Self> {
        if manager.is_there() {
            self.hang_up = Some(signal(SignalKind::hangup()).context("listening for SIGHUP")?);
        }
        Ok(self)
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn next(&mut self) -> Heard {
        let Some(hang_up) = &mut self.hang_up else {
            self.end().await;
            return Heard::End;
        };
        tokio::select! {
            _ = self.terminate.recv() => Heard::End,
            _ = self.interrupt.recv() => Heard::End,
            _ = hang_up.recv() => Heard::HangUp,
        }
    }
}
