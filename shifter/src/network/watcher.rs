//! The thread that takes in what the kernel tells of its network.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{
    COALESCE, COALESCE_MOST, NetworkError, RESOLVE_EVERY, Shared,
    netlink::{self, Query, Request, messages, wait_readable},
    snapshot::{Effects, Snapshot},
};

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR,
/// IPV6_ROUTE, IPV6_RULE; those after are younger and may be missing.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
/// RTNLGRP_NEXTHOP, kernel 5.3.
const GROUP_NEXTHOP: u32 = 32;
/// Room for bursts, such as a container host that starts with all it has.
const RECEIVE_BYTES: usize = 4 << 20;
/// How long a stop may go unnoticed.
const IDLE: Duration = Duration::from_secs(1);
/// Messages taken in before a change is told, at most.
const BATCH: usize = 512;
/// RTEXT_FILTER_SKIP_STATS: leave the counters out of links.
const SKIP_STATS: u32 = 1 << 3;
const IFLA_EXT_MASK: u16 = 29;
const DUMP_TRIES: usize = 10;
/// Notices that the socket can hold, and more.
const MOST_QUEUED: usize = 1 << 16;
/// Between two reads of everything: at least this, and twice what the last took.
const READ_REST: Duration = Duration::from_millis(20);
/// After a read of everything that failed.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Subscribes to changes; before anything is read, so that none is missed.
pub(super) fn subscribe() -> Result<Socket, NetworkError> {
    let error = |source| NetworkError::netlink("subscribing to changes of the network", source);
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(error)?;
    make_room(&mut socket);
    socket.bind(&SocketAddr::new(0, 0)).map_err(error)?;
    for group in GROUPS {
        socket.add_membership(group).map_err(error)?;
    }
    if let Err(error) = socket.add_membership(GROUP_NEXTHOP) {
        tracing::debug!(%error, "the kernel has no next-hop objects to watch");
    }
    socket.set_non_blocking(true).map_err(error)?;
    Ok(socket)
}

/// More than net.core.rmem_max where CAP_NET_ADMIN allows it. Less is no error:
/// an overrun is mended.
fn make_room(socket: &mut Socket) {
    let bytes = RECEIVE_BYTES as libc::c_int;
    // SAFETY: an open socket, and an option that is one int.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if failed != 0
        && let Err(error) = socket.set_rx_buf_sz(RECEIVE_BYTES)
    {
        tracing::debug!(%error, "the socket for changes of the network stays small");
    }
}

/// Reads links, addresses and neighbours.
pub(super) fn read_all(query: &mut Query) -> Result<Snapshot, NetworkError> {
    let mut snapshot = Snapshot::default();
    let skip_stats = SKIP_STATS.to_ne_bytes();
    let requests = [
        (
            "reading the interfaces",
            Request::new(netlink::RTM_GETLINK, netlink::DUMP, &[0; 16])
                .with(IFLA_EXT_MASK, &skip_stats),
        ),
        (
            "reading the addresses",
            Request::new(netlink::RTM_GETADDR, netlink::DUMP, &[0; 8]),
        ),
        (
            "reading the neighbours",
            Request::new(netlink::RTM_GETNEIGH, netlink::DUMP, &[0; 12]),
        ),
    ];
    for (operation, request) in &requests {
        read(query, request, &mut snapshot)
            .map_err(|source| NetworkError::netlink(operation, source))?;
    }
    Ok(snapshot)
}

/// Reads one kind of object, again where a change came between.
fn read(query: &mut Query, request: &Request, snapshot: &mut Snapshot) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let mut ignored = Effects::default();
        let result = query.ask(request, |kind, payload| {
            snapshot.apply(kind, payload, &[], &mut ignored);
        });
        tries += 1;
        match result {
            // The subscription tells what the last try missed.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                if tries == DUMP_TRIES {
                    return Ok(());
                }
            }
            other => return other,
        }
    }
}

/// Starts the thread; it ends within a second after the stop flag is set.
pub(super) fn spawn(socket: Socket, query: Query, shared: Arc<Shared>) -> Result<(), NetworkError> {
    let watch = Watch(Arc::clone(&shared));
    let watcher = Watcher {
        socket,
        query,
        shared,
        effects: Effects::default(),
        told: None,
        pause: COALESCE,
        read_at: None,
        rested_at: Instant::now(),
    };
    std::thread::Builder::new()
        .name("shifter-network".into())
        .spawn(move || {
            let _watch = watch;
            watcher.run();
        })
        .map(drop)
        .map_err(NetworkError::Thread)
}

/// Dropped with the thread, however that ends.
struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
    }
}

struct Watcher {
    socket: Socket,
    query: Query,
    shared: Arc<Shared>,
    /// Not yet told.
    effects: Effects,
    told: Option<Instant>,
    /// Between what was told last and what is told next.
    pause: Duration,
    /// When everything is to be read anew, because notices were lost.
    read_at: Option<Instant>,
    /// Not before this.
    rested_at: Instant,
}

impl Watcher {
    fn run(mut self) {
        let mut resolve_at = Instant::now() + RESOLVE_EVERY;
        while !self.shared.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now >= resolve_at {
                super::resolve::refresh(&self.shared, &mut self.query);
                resolve_at = now + RESOLVE_EVERY;
            }
            if self.read_at.is_some_and(|at| now >= at) {
                self.read_anew();
                continue;
            }
            let until_told = self.until_told(now);
            if until_told == Some(Duration::ZERO) {
                self.tell(now);
                continue;
            }
            let until_read = self.read_at.map_or(IDLE, |at| at - now);
            let wait = until_told.unwrap_or(IDLE).min(until_read);
            let wait = wait.min(resolve_at - now);
            let wait_ms = wait.as_millis() as i32 + 1;
            match wait_readable(self.socket.as_raw_fd(), wait_ms) {
                Ok(true) => self.take_in(),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for changes of the network failed");
                    std::thread::sleep(IDLE);
                }
            }
        }
    }

    /// How long until a change may be told; `None` without one.
    fn until_told(&self, now: Instant) -> Option<Duration> {
        let pending = self.effects.changed || !self.effects.events.is_empty();
        // A hook does not wait for what others do.
        let pause = match self.effects.events.as_slice() {
            [] => self.pause,
            _ => COALESCE,
        };
        let due = self.told.map_or(now, |told| told + pause);
        pending.then(|| due.saturating_duration_since(now))
    }

    fn tell(&mut self, now: Instant) {
        let effects = std::mem::take(&mut self.effects);
        if effects.rerouted {
            // Skips 0, which stands for "not known" in flows.
            let generation = &self.shared.route_generation;
            if generation.fetch_add(1, Ordering::AcqRel) == u32::MAX {
                generation.store(1, Ordering::Release);
            }
        }
        for event in effects.events {
            tracing::info!(?event, "interface changed");
            // Nobody listening is no error.
            let _ = self.shared.events.send(event);
        }
        self.shared.changes.send_modify(|count| *count += 1);
        let was_quiet = self.told.is_none_or(|told| now - told > 2 * COALESCE_MOST);
        self.pause = match was_quiet {
            true => COALESCE,
            false => (self.pause * 2).min(COALESCE_MOST),
        };
        self.told = Some(now);
    }

    /// Takes in what lies in the socket.
    fn take_in(&mut self) {
        for _ in 0..BATCH {
            match self.socket.recv_from_full() {
                Ok((bytes, sender)) if sender.port_number() == 0 => self.apply(&bytes),
                // Only the kernel is believed.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    tracing::warn!("changes of the network came too fast; reading all anew");
                    self.read_at = Some(self.rested_at);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "reading changes of the network failed");
                    return;
                }
            }
        }
    }

    fn apply(&mut self, bytes: &[u8]) {
        let mut snapshot = self
            .shared
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for message in messages(bytes) {
            snapshot.apply(
                message.kind,
                message.payload,
                &self.shared.attached,
                &mut self.effects,
            );
        }
    }

    /// Throws away what lies in the socket. It is older than what is read after
    /// it, and as long as it lies there the kernel adds nothing and says so to
    /// nobody (NETLINK_S_CONGESTED in net/netlink/af_netlink.c).
    fn empty_socket(&mut self) {
        for _ in 0..MOST_QUEUED {
            if let Err(error) = self.socket.recv_from_full()
                && error.raw_os_error() != Some(libc::ENOBUFS)
            {
                return;
            }
        }
    }

    fn read_anew(&mut self) {
        let begun = Instant::now();
        self.empty_socket();
        let newer = match read_all(&mut self.query) {
            Ok(newer) => newer,
            Err(error) => {
                tracing::error!(%error, "what is known of the network may be out of date; it is read again in a second");
                self.read_at = Some(begun + READ_AGAIN);
                return;
            }
        };
        self.read_at = None;
        self.rested_at = begun + READ_REST.max(3 * begun.elapsed());
        let mut snapshot = self
            .shared
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let events = snapshot.events_to(&newer, &self.shared.attached);
        self.effects.events.extend(events);
        self.effects.changed = true;
        self.effects.rerouted = true;
        *snapshot = newer;
    }
}
