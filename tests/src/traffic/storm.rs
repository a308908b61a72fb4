//! Many flows at once, each of them watched: every answer has to be what was
//! sent, and has to come from the server that answered first.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    frame::{self, FRAME},
    poll::{self, BOTH, Poll},
};
use crate::{
    command::eventually,
    topology::{Family, Lab, Netns},
};

/// What the first answers to all flows may take, beside other work and on an emulated CPU.
const ANSWERED: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Flows go round over these.
    pub tcp_to: Vec<SocketAddr>,
    pub udp_to: Vec<SocketAddr>,
    pub tcp_flows: u32,
    pub udp_flows: u32,
    /// Frames a second and flow.
    pub rate: u32,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    pub tcp_opened: u64,
    pub tcp_connect_failures: u64,
    pub tcp_never_opened: u64,
    pub tcp_frames: u64,
    /// Connections that were reset or closed by the other side.
    pub tcp_resets: u64,
    /// Connections whose last frames were not answered in time.
    pub tcp_unanswered: u64,
    pub udp_sent: u64,
    pub udp_answered: u64,
    pub udp_errors: u64,
    /// UDP flows that were never answered.
    pub udp_silent: u64,
    pub wrong_bytes: u64,
    /// Flows that were answered by a second server.
    pub moved: u64,
    /// Flows by the server that answered them.
    pub tcp_by_identity: BTreeMap<u8, u64>,
    pub udp_by_identity: BTreeMap<u8, u64>,
}

impl Report {
    /// Asserts that every flow was opened and nothing happened to any.
    ///
    /// # Panics
    ///
    /// When a flow was cut, moved, or answered wrongly, or when more than one
    /// UDP frame in 50 was lost.
    pub fn assert_untouched(&self, what: &str) {
        let bad = self.tcp_connect_failures
            + self.tcp_never_opened
            + self.tcp_resets
            + self.tcp_unanswered
            + self.udp_errors
            + self.udp_silent
            + self.wrong_bytes
            + self.moved;
        assert!(bad == 0, "{what}: {self:#?}");
        assert!(
            self.udp_answered * 50 >= self.udp_sent * 49,
            "{what}: more UDP frames were lost than a busy machine loses: {self:#?}"
        );
    }
}

/// Counts that can be read while a storm runs.
#[derive(Debug, Default)]
pub struct Progress {
    stop: AtomicBool,
    /// Flows that have been answered at least once.
    pub answering: AtomicU64,
    pub frames: AtomicU64,
    pub failures: AtomicU64,
    pub moved: AtomicU64,
}

/// A storm that runs beside the caller; stopped when dropped.
#[derive(Debug)]
pub struct Storm {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<io::Result<Report>>>,
}

impl Storm {
    /// Starts a storm in `ns`.
    pub fn start(ns: &Netns, plan: Plan) -> Result<Self> {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread =
            ns.spawn(move || Engine::new(&plan, &shared)?.run(&|| shared.stop.load(Relaxed)))?;
        Ok(Self {
            progress,
            thread: Some(thread),
        })
    }

    /// A storm from the clients of a lab to its VIPs over both families, so many frames
    /// a second each, once every flow has been answered.
    ///
    /// # Errors
    /// Also if some are not within a minute.
    pub fn answered(lab: &Lab, tcp_flows: u32, udp_flows: u32, rate: u32) -> Result<Self> {
        let vips = Family::BOTH.map(|family| lab.vip(family)).to_vec();
        let plan = Plan {
            tcp_to: vips.clone(),
            udp_to: vips,
            tcp_flows,
            udp_flows,
            rate,
        };
        let storm = Self::start(&lab.client, plan)?;
        ensure!(
            storm.wait_for(u64::from(tcp_flows + udp_flows), ANSWERED),
            "not every flow is answered: {storm:?}"
        );
        Ok(storm)
    }

    /// Counts so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits until `flows` flows have been answered.
    pub fn wait_for(&self, flows: u64, limit: Duration) -> bool {
        eventually(limit, || self.progress.answering.load(Relaxed) >= flows)
    }

    /// Stops sending, waits for the last answers, and reports.
    pub fn finish(mut self) -> Result<Report> {
        self.progress.stop.store(true, Relaxed);
        let thread = self.thread.take().context("a storm is finished once")?;
        match thread.join() {
            Ok(report) => Ok(report?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.progress.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A storm that is dropped unfinished has no one to report to.
            let _ = thread.join();
        }
    }
}

/// Runs a storm in the calling thread until `stop` holds.
pub fn run(plan: &Plan, stop: &dyn Fn() -> bool) -> io::Result<Report> {
    Engine::new(plan, &Progress::default())?.run(stop)
}

enum Socket {
    Waiting,
    Tcp(TcpStream),
    Udp(UdpSocket),
    Gone,
}

struct Flow {
    to: SocketAddr,
    is_tcp: bool,
    socket: Socket,
    opened: bool,
    sent: u64,
    answered: u64,
    identity: Option<u8>,
    moved: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Flows are served in this many groups, one after the other.
const SLOTS: u32 = 50;
/// Connections begun in one turn, so that opening is quick but no flood.
const OPEN_PER_TURN: usize = 20;
/// Frames of a TCP flow on the way before it waits.
const WINDOW: u64 = 64;
/// How long the last answers may take. A segment that was lost several times, as by
/// links that went away one after the other, is sent again after 0.2, 0.4 .. 12.8 s
/// (RFC 6298, 5.5): what is still unanswered then was not lost by chance.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

struct Engine<'a> {
    flows: Vec<Flow>,
    poll: Poll,
    turn: Duration,
    report: Report,
    progress: &'a Progress,
}

impl<'a> Engine<'a> {
    fn new(plan: &Plan, progress: &'a Progress) -> io::Result<Self> {
        poll::raise_file_limit();
        let flow = |to: SocketAddr, is_tcp| Flow {
            to,
            is_tcp,
            socket: Socket::Waiting,
            opened: false,
            sent: 0,
            answered: 0,
            identity: None,
            moved: false,
            input: Vec::new(),
            output: Vec::new(),
        };
        let tcp = plan.tcp_to.iter().cycle().take(plan.tcp_flows as usize);
        let udp = plan.udp_to.iter().cycle().take(plan.udp_flows as usize);
        Ok(Self {
            flows: tcp
                .map(|to| flow(*to, true))
                .chain(udp.map(|to| flow(*to, false)))
                .collect(),
            poll: Poll::new()?,
            turn: Duration::from_secs(1) / plan.rate.max(1) / SLOTS,
            report: Report::default(),
            progress,
        })
    }

    fn run(mut self, stop: &dyn Fn() -> bool) -> io::Result<Report> {
        let mut begun = 0;
        let mut slot = 0;
        let mut due = Instant::now();
        while !stop() {
            let last = (begun + OPEN_PER_TURN).min(self.flows.len());
            for i in begun..last {
                self.begin(i)?;
            }
            begun = last;
            for i in (slot..begun).step_by(SLOTS as usize) {
                self.send_next(i);
            }
            slot = (slot + 1) % SLOTS as usize;
            due = (due + self.turn).max(Instant::now() - Duration::from_millis(200));
            self.receive_until(due)?;
        }
        let end = Instant::now() + LAST_ANSWERS;
        while Instant::now() < end && self.flows.iter().any(Flow::is_waiting) {
            self.receive_until(Instant::now() + Duration::from_millis(20))?;
        }
        Ok(self.close())
    }

    fn begin(&mut self, i: usize) -> io::Result<()> {
        let flow = &mut self.flows[i];
        if flow.is_tcp {
            match poll::connect(flow.to, None) {
                Ok(stream) => {
                    self.poll.add(&stream, i as u64, BOTH)?;
                    flow.socket = Socket::Tcp(stream);
                }
                Err(_) => {
                    flow.socket = Socket::Gone;
                    self.report.tcp_connect_failures += 1;
                    self.progress.failures.fetch_add(1, Relaxed);
                }
            }
        } else {
            let socket = poll::connect_udp(flow.to, None)?;
            self.poll.add(&socket, i as u64, poll::READ)?;
            flow.socket = Socket::Udp(socket);
        }
        Ok(())
    }

    fn send_next(&mut self, i: usize) {
        let flow = &mut self.flows[i];
        match &flow.socket {
            Socket::Udp(socket)
                // What cannot be sent now was not sent; errors come with receive.
                if socket.send(&frame::echo(i as u32, flow.sent)).is_ok() => {
                    flow.sent += 1;
                    self.report.udp_sent += 1;
                }
            Socket::Tcp(_) if flow.opened && flow.sent - flow.answered < WINDOW => {
                flow.output
                    .extend_from_slice(&frame::echo(i as u32, flow.sent));
                flow.sent += 1;
                self.write_out(i);
            }
            _ => {}
        }
    }

    fn write_out(&mut self, i: usize) {
        let flow = &mut self.flows[i];
        let Socket::Tcp(stream) = &mut flow.socket else {
            return;
        };
        while !flow.output.is_empty() {
            match stream.write(&flow.output) {
                Ok(n) => drop(flow.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.lose(i),
            }
        }
    }

    fn receive_until(&mut self, until: Instant) -> io::Result<()> {
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            // Rounded up: a wait of 0 ms would spin.
            let rest = rest.max(Duration::from_millis(1));
            for (token, _) in self.poll.wait(rest)? {
                let i = token as usize;
                match self.flows[i].socket {
                    Socket::Tcp(_) => self.on_tcp(i),
                    Socket::Udp(_) => self.on_udp(i),
                    _ => {}
                }
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn on_tcp(&mut self, i: usize) {
        let flow = &mut self.flows[i];
        let Socket::Tcp(stream) = &mut flow.socket else {
            return;
        };
        if !flow.opened {
            if stream.take_error().ok().flatten().is_some() {
                flow.socket = Socket::Gone;
                self.report.tcp_connect_failures += 1;
                self.progress.failures.fetch_add(1, Relaxed);
                return;
            }
            if stream.peer_addr().is_err() {
                return;
            }
            flow.opened = true;
            self.report.tcp_opened += 1;
        }
        let mut buffer = [0; 8 * 1024];
        loop {
            let flow = &mut self.flows[i];
            let Socket::Tcp(stream) = &mut flow.socket else {
                return;
            };
            match stream.read(&mut buffer) {
                Ok(0) => return self.lose(i),
                Ok(n) => {
                    flow.input.extend_from_slice(&buffer[..n]);
                    self.take_answers(i);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.lose(i),
            }
        }
        self.write_out(i);
    }

    fn take_answers(&mut self, i: usize) {
        let input = std::mem::take(&mut self.flows[i].input);
        let (frames, rest) = input.as_chunks::<FRAME>();
        for answer in frames {
            let seq = self.flows[i].answered;
            self.report.wrong_bytes += frame::wrong_bytes(answer, i as u32, seq);
            self.report.tcp_frames += 1;
            self.note_answer(i, frame::identity(answer));
        }
        self.flows[i].input = rest.to_vec();
    }

    fn on_udp(&mut self, i: usize) {
        let mut answer = [0; FRAME];
        loop {
            let Socket::Udp(socket) = &self.flows[i].socket else {
                return;
            };
            match socket.recv(&mut answer) {
                Ok(n) => {
                    let seq = frame::sequence(&answer);
                    self.report.udp_answered += 1;
                    self.report.wrong_bytes += if n == FRAME && seq < self.flows[i].sent {
                        frame::wrong_bytes(&answer, i as u32, seq)
                    } else {
                        FRAME as u64
                    };
                    self.note_answer(i, frame::identity(&answer));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.report.udp_errors += 1;
                    self.progress.failures.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn note_answer(&mut self, i: usize, identity: u8) {
        let flow = &mut self.flows[i];
        flow.answered += 1;
        self.progress.frames.fetch_add(1, Relaxed);
        match flow.identity {
            None => {
                flow.identity = Some(identity);
                self.progress.answering.fetch_add(1, Relaxed);
                let by = match flow.is_tcp {
                    true => &mut self.report.tcp_by_identity,
                    false => &mut self.report.udp_by_identity,
                };
                *by.entry(identity).or_default() += 1;
            }
            Some(first) if first != identity && !flow.moved => {
                flow.moved = true;
                self.report.moved += 1;
                self.progress.moved.fetch_add(1, Relaxed);
            }
            Some(_) => {}
        }
    }

    fn lose(&mut self, i: usize) {
        self.flows[i].socket = Socket::Gone;
        self.report.tcp_resets += 1;
        self.progress.failures.fetch_add(1, Relaxed);
    }

    fn close(mut self) -> Report {
        for flow in &self.flows {
            match flow.socket {
                Socket::Tcp(_) if !flow.opened => self.report.tcp_never_opened += 1,
                Socket::Tcp(_) if flow.is_waiting() => self.report.tcp_unanswered += 1,
                Socket::Udp(_) if flow.sent > 0 && flow.answered == 0 => {
                    self.report.udp_silent += 1;
                }
                _ => {}
            }
        }
        self.report
    }
}

impl Flow {
    /// Has sent what was not answered yet.
    fn is_waiting(&self) -> bool {
        matches!(self.socket, Socket::Tcp(_) | Socket::Udp(_)) && self.answered < self.sent
    }
}
