//! A flow whose end no packet showed counts no more once its socket is gone.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::requests::connect_from,
};

/// A flow whose socket is gone counts for so long in seconds; a pass is made
/// every second then.
const GONE_AFTER_S: u64 = 5;

/// Silence, three passes, and what a busy machine adds.
const LIMIT: Duration = Duration::from_secs(60);

/// Silence, and some passes after it.
const IDLE_AND_PASSES: Duration = Duration::from_secs(GONE_AFTER_S + 8);

/// In which every flow that can be is seen as a socket.
const TWO_PASSES: Duration = Duration::from_secs(3);

const PATIENCE: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    let mut settings = Settings::hook("tc");
    settings.more += &format!("gone_after = {GONE_AFTER_S}\n");
    settings
}

/// Both ends of a connection through the VIP.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(lab: &Lab, listener: &TcpListener, family: Family) -> Self {
        let vip = lab.vip(family);
        let connect = || TcpStream::connect_timeout(&vip, PATIENCE);
        Self::accept(lab.client.run(connect).unwrap(), listener)
    }

    fn accept(client: TcpStream, listener: &TcpListener) -> Self {
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut connection = Self { client, server };
        connection.exchange();
        connection
    }

    fn exchange(&mut self) {
        let mut answer = [0; 4];
        self.client.write_all(b"ping").unwrap();
        self.server.read_exact(&mut answer).unwrap();
        self.server.write_all(b"pong").unwrap();
        self.client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
    }

    /// Both ends go without a packet.
    fn vanish(self) {
        for end in [self.client, self.server] {
            let on: libc::c_int = 1;
            // SAFETY: a valid option of an open socket.
            let failed = unsafe {
                libc::setsockopt(
                    end.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_REPAIR,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as u32,
                )
            };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        }
    }
}

/// Green's listeners, where the lab's placement has them.
fn listeners(lab: &Lab) -> [(Family, TcpListener); 2] {
    Family::BOTH.map(|family| {
        let at = lab.listen(Side::Green, family);
        let listener = lab
            .server_ns(Side::Green)
            .run(|| TcpListener::bind(at))
            .unwrap();
        (family, listener)
    })
}

fn services(lab: &Lab) -> [Service; 2] {
    Family::BOTH.map(|family| Service::of(lab, "tcp", family).with_green("100%"))
}

fn counts_no_more(placement: Placement) {
    let what = format!("{placement:?}");
    let lab = Lab::new(placement).unwrap();
    let (services, listeners) = (services(&lab), listeners(&lab));
    let agent = Agent::start(&lab, settings()).unwrap();
    agent.apply(&services).unwrap();
    let open = || {
        listeners
            .iter()
            .map(|(family, listener)| Connection::open(&lab, listener, *family))
            .collect::<Vec<_>>()
    };
    let (kept, vanished) = (open(), open());
    let green = |name: &str| agent.carried(name).unwrap()[1];
    for service in &services {
        let counted = eventually(Duration::from_secs(5), || green(&service.name) == 2);
        assert!(counted, "{what}: {} does not count both", service.name);
    }
    std::thread::sleep(TWO_PASSES);
    for connection in vanished {
        connection.vanish();
    }
    for service in &services {
        let released = eventually(LIMIT, || green(&service.name) == 1);
        assert!(released, "{what}: {} still counts it", service.name);
    }
    // Those that are there went silent before, so the same passes looked at them.
    for mut connection in kept {
        connection.exchange();
    }
    for service in &services {
        let ended = eventually(Duration::from_secs(5), || green(&service.name) == 0);
        assert!(ended, "{what}: {} counts one that was closed", service.name);
    }
}

/// What happens to a lab after the agent began to look.
type Change = fn(&Lab);

/// Ports of the host that rules lead to a container: the sockets are not where
/// the backend's address is, though a proxy of the publisher listens there.
/// Nor are they when the rules are gone, or cannot be read: conntrack still
/// leads the connections on.
fn are_left_alone_behind_dnat(what: &str, change: Change) {
    let lab = Lab::new(Placement::Published).unwrap();
    let (services, listeners) = (services(&lab), listeners(&lab));
    let proxies = Family::BOTH.map(|family| {
        let at = lab.backend(Side::Green, family);
        lab.host.run(|| TcpListener::bind(at)).unwrap()
    });
    let agent = Agent::start(&lab, settings()).unwrap();
    agent.apply(&services).unwrap();
    let mut open: Vec<_> = listeners
        .iter()
        .map(|(family, listener)| Connection::open(&lab, listener, *family))
        .collect();
    std::thread::sleep(TWO_PASSES);
    change(&lab);
    // Now that nothing translates, some connections really end at the proxies,
    // and are seen as sockets.
    let others: Vec<_> = match what {
        "a reload" => Family::BOTH
            .iter()
            .zip(&proxies)
            .map(|(family, proxy)| Connection::open(&lab, proxy, *family))
            .collect(),
        _ => Vec::new(),
    };
    // Which reads the rules.
    agent.apply(&services).unwrap();
    std::thread::sleep(IDLE_AND_PASSES);
    let status = agent.done(&["status"]).unwrap();
    let is_loud = status.contains("the packet filter is not known whole (nft failed");
    assert_eq!(is_loud, what == "a broken nft", "{status}");
    for service in &services {
        let carried = agent.carried(&service.name).unwrap();
        let expected = if others.is_empty() { 1 } else { 2 };
        assert_eq!(carried, [0, expected], "{what}: {}", service.name);
    }
    for connection in open.iter_mut() {
        connection.exchange();
    }
    drop((proxies, others));
}

/// A firewall reload takes the rules of a published port out.
fn delete_dnat(lab: &Lab) {
    lab.host
        .nft("flush chain ip publish pre\nflush chain ip6 publish pre\n")
        .unwrap();
}

/// From now on nft shows nothing, and says that it failed.
fn break_nft(lab: &Lab) {
    let path = lab.programs().join("nft");
    fs::create_dir_all(lab.programs()).unwrap();
    fs::write(&path, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    // The kernel tells of a change, so the rules are read anew.
    lab.host.nft("add table ip another\n").unwrap();
}

/// Some clients are masqueraded before a container's own address, others are
/// not: what the sockets of these say does not hold for those.
fn masqueraded_ones_are_left_alone() {
    let lab = Lab::new(Placement::Container).unwrap();
    lab.host
        .nft(
            "table ip some {
               chain post { type nat hook postrouting priority srcnat;
                 ip saddr 10.82.0.3 masquerade
               }
             }\n",
        )
        .unwrap();
    let at = lab.listen(Side::Green, Family::V4);
    let bind = || TcpListener::bind(at);
    let listener = lab.server_ns(Side::Green).run(bind).unwrap();
    let service = Service::of(&lab, "tcp", Family::V4).with_green("100%");
    let agent = Agent::start(&lab, settings()).unwrap();
    agent.apply(std::slice::from_ref(&service)).unwrap();
    let open = |from: &str| {
        let client = {
            let (vip, from) = (lab.vip(Family::V4), from.parse().unwrap());
            lab.client.run(|| connect_from(vip, from)).unwrap()
        };
        Connection::accept(client, &listener)
    };
    let mut seen = open("10.82.0.2");
    let mut masqueraded = open("10.82.0.3");
    let peers = [&seen, &masqueraded].map(|c| c.server.peer_addr().unwrap().ip().to_string());
    assert_eq!(peers[0], "10.82.0.2");
    assert_ne!(peers[1], "10.82.0.3", "the rule does not masquerade");
    std::thread::sleep(IDLE_AND_PASSES);
    assert_eq!(agent.carried(&service.name).unwrap(), [0, 2]);
    masqueraded.exchange();
    seen.exchange();
    // What was seen is released when it is gone, all the same.
    seen.vanish();
    let released = eventually(LIMIT, || agent.carried(&service.name).unwrap() == [0, 1]);
    assert!(released, "the flow that was seen still counts");
    masqueraded.exchange();
}

#[test]
fn flows_without_a_socket_count_no_more_and_those_behind_dnat_do() {
    need!();
    // Most of it is waiting: all at once.
    std::thread::scope(|scope| {
        for placement in [Placement::HostPorts, Placement::Container] {
            scope.spawn(move || counts_no_more(placement));
        }
        let changes: [(&str, Change); 3] = [
            ("a rule that stays", |_| {}),
            ("a reload", delete_dnat),
            ("a broken nft", break_nft),
        ];
        for (what, change) in changes {
            scope.spawn(move || are_left_alone_behind_dnat(what, change));
        }
        scope.spawn(masqueraded_ones_are_left_alone);
    });
}
