//! What the agent sees of a network, in namespaces of its own; needs root.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use shifter::{
    datapath::{NextHopImage, Placement},
    model::{Protocol, Vip},
    network::{LinkEvent, Network, tcp_sockets},
};

static NUMBER: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_secs(10);

/// Other namespaces by name; they go when this does.
struct Peers(Vec<String>);

impl Peers {
    fn add(&mut self) -> String {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("shifter-net-{}-{number}", std::process::id());
        sh(&format!("ip netns add {name}"));
        self.0.push(name.clone());
        sh(&format!("ip -n {name} link set lo up"));
        name
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs a test in a namespace that ends with its thread.
fn in_namespace(test: impl FnOnce(&mut Peers) + Send + 'static) {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        assert!(std::env::var_os("CI").is_none(), "SKIPPED: needs root");
        eprintln!("SKIPPED: needs root");
        return;
    }
    let body = move || {
        // SAFETY: unshare of the network namespace concerns this thread only.
        let failed = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(failed, 0, "unshare: {}", std::io::Error::last_os_error());
        sh("ip link set lo up");
        let mut peers = Peers(Vec::new());
        test(&mut peers);
    };
    let thread = std::thread::spawn(body);
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sh(commands: &str) {
    for command in commands.lines().map(str::trim).filter(|c| !c.is_empty()) {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn start(attached: &[&str]) -> Arc<Network> {
    Network::start(attached.iter().map(|name| name.to_string()).collect()).unwrap()
}

/// Waits until `what` gives a value.
fn until<T>(describe: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < end, "{describe}: not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// A wire `eth0` to a peer: 10.1.0.1 and fd01::1 here, .2 and ::2 there.
fn wire(peers: &mut Peers) -> String {
    let peer = peers.add();
    sh(&format!(
        "ip link add eth0 address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns {peer}
         ip addr add 10.1.0.1/24 dev eth0
         ip addr add fd01::1/64 dev eth0 nodad
         ip link set eth0 up
         ip -n {peer} addr add 10.1.0.2/24 dev eth0
         ip -n {peer} addr add fd01::2/64 dev eth0 nodad
         ip -n {peer} link set eth0 up"
    ));
    peer
}

fn wire_hop(network: &Network) -> NextHopImage {
    NextHopImage {
        ifindex: network.link("eth0").unwrap().index,
        mtu: 1500,
        source: mac("02:00:00:00:01:01"),
        destination: mac("02:00:00:00:01:02"),
    }
}

#[test]
fn addresses_of_the_host_are_local_and_others_are_not() {
    in_namespace(|peers| {
        wire(peers);
        sh("ip addr add 192.0.2.1/32 dev lo
            ip route add local 198.51.100.0/24 dev lo");
        let network = start(&["eth0"]);
        for local in [
            "10.1.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "192.0.2.1",
            "198.51.100.77",
            "fd01::1",
            "::1",
        ] {
            assert!(network.is_local(ip(local)), "{local}");
        }
        for other in [
            "10.1.0.2",
            "10.1.0.255",
            "8.8.8.8",
            "0.0.0.0",
            "224.0.0.1",
            "fd01::2",
            "2001:db8::1",
        ] {
            assert!(!network.is_local(ip(other)), "{other}");
        }
        assert_eq!(network.placement(at("192.0.2.1:80")), Placement::Host);
        assert_eq!(
            network.interface_for(ip("10.1.0.9")).as_deref(),
            Some("eth0")
        );
        assert_eq!(
            network.interface_for(ip("9.9.9.9")).as_deref(),
            Some("eth0")
        );
    });
}

#[test]
fn neighbour_on_an_attached_interface_becomes_a_next_hop_once_resolved() {
    in_namespace(|peers| {
        wire(peers);
        let network = start(&["eth0"]);
        let generation = network.route_generation();
        assert!(matches!(
            network.placement(at("10.1.0.2:80")),
            Placement::Kernel { .. }
        ));
        for backend in ["10.1.0.2:80", "[fd01::2]:80"] {
            let hop = until(&format!("{backend} resolved"), || {
                // As the agent does at every change of the network: a probe may be
                // lost while the other end comes up.
                network.solicit(at(backend).ip());
                match network.placement(at(backend)) {
                    Placement::NextHop(hop) => Some(hop),
                    _ => None,
                }
            });
            assert_eq!(hop, wire_hop(&network));
        }
        until("listed", || {
            (network.next_hops() == [wire_hop(&network)]).then_some(())
        });
        until("told", || {
            (network.route_generation() != generation).then_some(())
        });
        assert!(*network.changes().borrow() > 0);
    });
}

#[test]
fn remote_backend_goes_to_its_gateway_with_the_mtu_of_its_route() {
    in_namespace(|peers| {
        wire(peers);
        sh("ip route add 10.9.0.0/16 via 10.1.0.2 mtu 1400
            ip route add 10.8.0.0/16 via inet6 fd01::2
            ip neigh add 10.1.0.2 lladdr 02:00:00:00:01:02 dev eth0 nud permanent
            ip neigh add fd01::2 lladdr 02:00:00:00:01:02 dev eth0 nud permanent");
        let network = start(&["eth0"]);
        let hop = wire_hop(&network);
        assert_eq!(
            network.placement(at("10.9.1.1:80")),
            Placement::NextHop(NextHopImage { mtu: 1400, ..hop })
        );
        assert_eq!(
            network.placement(at("10.8.1.1:80")),
            Placement::NextHop(hop)
        );
        assert_eq!(
            network.placement(at("11.0.0.1:80")),
            Placement::Kernel { netns: None },
            "there is no route"
        );
        assert!(network.backend_warnings(at("11.0.0.1:80"), Protocol::Tcp)[1].contains("no route"));
        // The same wire without a hook is left to the kernel, with the namespace behind it.
        let plain = start(&[]);
        assert!(matches!(
            plain.placement(at("10.1.0.2:80")),
            Placement::Kernel { netns: Some(_) }
        ));
        assert!(plain.next_hops().is_empty());
    });
}

#[test]
fn container_behind_a_bridge_is_routed_with_its_namespace() {
    in_namespace(|peers| {
        wire(peers);
        let (first, second) = (peers.add(), peers.add());
        sh("ip link add br0 type bridge
            ip addr add 172.30.0.1/24 dev br0
            ip link set br0 up");
        for (number, container) in [(2, &first), (3, &second)] {
            sh(&format!(
                "ip link add port{number} type veth peer name eth0 netns {container}
                 ip link set port{number} master br0 up
                 ip -n {container} addr add 172.30.0.{number}/24 dev eth0
                 ip -n {container} link set eth0 up"
            ));
        }
        let network = start(&["eth0"]);
        network.keep_resolved([ip("172.30.0.2"), ip("172.30.0.3")]);
        let namespace_of = |backend: &str| {
            until("found behind the bridge", || {
                match network.placement(at(backend)) {
                    Placement::Kernel { netns } => netns,
                    other => panic!("{backend} is {other:?}"),
                }
            })
        };
        let ids = [namespace_of("172.30.0.2:80"), namespace_of("172.30.0.3:80")];
        assert_ne!(ids[0], ids[1]);
        assert_eq!(
            network.link("port2").unwrap().namespace_behind(),
            Some(ids[0])
        );
        assert_eq!(network.link("br0").unwrap().kind.as_deref(), Some("bridge"));
    });
}

#[test]
fn change_of_a_neighbours_mac_raises_the_route_generation_and_staleness_does_not() {
    in_namespace(|peers| {
        wire(peers);
        let network = start(&["eth0"]);
        sh("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:01:02 dev eth0 nud reachable");
        until("seen", || (!network.next_hops().is_empty()).then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        let generation = network.route_generation();
        sh("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:01:02 dev eth0 nud stale");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(network.route_generation(), generation);
        sh("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:01:77 dev eth0 nud reachable");
        until("told", || {
            (network.route_generation() != generation).then_some(())
        });
        assert_eq!(network.next_hops()[0].destination, mac("02:00:00:00:01:77"));
    });
}

#[test]
fn kept_neighbour_is_asked_for_again_when_it_is_lost() {
    in_namespace(|peers| {
        wire(peers);
        let network = start(&["eth0"]);
        network.keep_resolved([ip("10.1.0.2")]);
        until("resolved", || {
            (!network.next_hops().is_empty()).then_some(())
        });
        sh("ip neigh del 10.1.0.2 dev eth0");
        until("lost", || network.next_hops().is_empty().then_some(()));
        until("resolved again", || {
            (!network.next_hops().is_empty()).then_some(())
        });
        network.keep_resolved([]);
        sh("ip neigh del 10.1.0.2 dev eth0");
        std::thread::sleep(shifter::network::RESOLVE_EVERY + Duration::from_millis(500));
        assert!(network.next_hops().is_empty(), "nobody wants it any more");
    });
}

#[test]
fn interface_that_goes_and_comes_back_is_told() {
    in_namespace(|peers| {
        let peer = wire(peers);
        let before = start(&[]);
        until("carrier", || before.link("eth0")?.running.then_some(()));
        let network = start(&["eth0"]);
        let mut events = network.link_events();
        let old = network.link("eth0").unwrap().index;
        let mut next = || until("an event", || events.try_recv().ok());
        let named = |ifindex| ("eth0".to_owned(), ifindex);

        sh("ip link set eth0 down");
        let (name, ifindex) = named(old);
        assert_eq!(next(), LinkEvent::Down { name, ifindex });
        sh("ip link set eth0 up");
        let (name, ifindex) = named(old);
        assert_eq!(next(), LinkEvent::Up { name, ifindex });

        sh("ip link set eth0 down
            ip link set eth0 name wan0");
        assert!(matches!(next(), LinkEvent::Down { .. }));
        let renamed = LinkEvent::Renamed {
            from: "eth0".into(),
            to: "wan0".into(),
            ifindex: old,
        };
        assert_eq!(next(), renamed);
        sh("ip link set wan0 name eth0");
        assert!(matches!(next(), LinkEvent::Renamed { .. }));
        assert!(matches!(next(), LinkEvent::Appeared { .. }));

        sh("ip link del eth0");
        let (name, ifindex) = named(old);
        assert_eq!(next(), LinkEvent::Vanished { name, ifindex });
        assert!(network.link("eth0").is_none());
        sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {peer}
             ip -n {peer} link set eth0 up
             ip link set eth0 up"
        ));
        let new = until("back", || network.link("eth0")).index;
        assert_ne!(new, old);
        let (name, ifindex) = named(new);
        assert_eq!(next(), LinkEvent::Appeared { name, ifindex });
        let (name, ifindex) = named(new);
        assert_eq!(next(), LinkEvent::Up { name, ifindex });
    });
}

#[test]
fn many_changes_at_once_end_in_the_right_picture() {
    in_namespace(|peers| {
        wire(peers);
        let network = start(&["eth0"]);
        let file = format!("/tmp/shifter-net-{}.batch", std::process::id());
        let neighbours: String = (0..20_000)
            .map(|n| format!("neigh add 10.2.{}.{} lladdr 02:00:00:00:{:02x}:{:02x} dev eth0 nud permanent\n", n / 250, n % 250 + 1, n / 256, n % 256))
            .collect();
        std::fs::write(&file, neighbours).unwrap();
        sh(&format!("ip -batch {file}"));
        std::fs::remove_file(&file).unwrap();
        until("all seen", || {
            (network.next_hops().len() == 20_000).then_some(())
        });
    });
}

#[test]
fn dnat_in_front_of_a_vip_is_found_as_soon_as_it_is_there() {
    in_namespace(|peers| {
        wire(peers);
        let network = start(&["eth0"]);
        let vip = |addr: &str, protocol| Vip {
            addr: at(addr),
            protocol,
        };
        let web = vip("10.1.0.1:8080", Protocol::Tcp);
        assert!(!network.vip_is_translated(&web));
        sh(
            "nft 'table ip nat { chain DOCKER { iifname != \"docker0\" tcp dport 8080 dnat to 172.17.0.2:80; }; chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local jump DOCKER; }; }'",
        );
        assert!(network.vip_is_translated(&web));
        assert!(!network.vip_is_translated(&vip("10.1.0.1:8080", Protocol::Udp)));
        assert!(!network.vip_is_translated(&vip("10.1.0.1:8081", Protocol::Tcp)));
        assert!(!network.vip_is_translated(&vip("[fd01::1]:8080", Protocol::Tcp)));
        sh("nft flush ruleset");
        assert!(!network.vip_is_translated(&web));
    });
}

#[test]
fn what_drops_packets_to_a_container_is_named_with_its_remedy() {
    in_namespace(|peers| {
        wire(peers);
        let container = peers.add();
        sh(&format!(
            "ip link add docker0 type bridge
             ip addr add 172.17.0.1/16 dev docker0
             ip link set docker0 up
             ip link add port type veth peer name eth0 netns {container}
             ip link set port master docker0 up
             ip -n {container} addr add 172.17.0.2/16 dev eth0
             ip -n {container} link set eth0 up
             sysctl -qw net.ipv4.ip_forward=1"
        ));
        let network = start(&["eth0"]);
        let backend = at("172.17.0.2:80");
        let warnings = || network.backend_warnings(backend, Protocol::Tcp);
        assert_eq!(warnings(), [""; 0]);
        sh("nft 'table ip raw { chain PREROUTING { type filter hook prerouting priority raw; ip daddr 172.17.0.2 iifname != \"docker0\" drop; }; }'
            nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; ct state established,related accept; }; }'
            sysctl -qw net.ipv4.ip_forward=0");
        let found = warnings();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("sysctl -w net.ipv4.ip_forward=1"));
        assert!(found[1].contains("ip raw PREROUTING") && found[1].contains("publish"));
        assert!(found[2].contains("ip filter FORWARD (policy drop)"));
        sh(
            "nft add rule ip filter FORWARD oifname docker0 tcp dport 80 accept
            nft delete table ip raw
            sysctl -qw net.ipv4.ip_forward=1",
        );
        assert_eq!(warnings(), [""; 0]);
        assert_eq!(
            network.backend_warnings(at("10.1.0.1:80"), Protocol::Tcp),
            [""; 0]
        );
    });
}

#[test]
fn sockets_are_read_in_the_namespace_that_a_veth_leads_to() {
    in_namespace(|peers| {
        let container = peers.add();
        sh(&format!(
            "ip link add port type veth peer name eth0 netns {container}
             ip addr add 10.3.0.1/24 dev port
             ip link set port up
             ip -n {container} addr add 10.3.0.2/24 dev eth0
             ip -n {container} link set eth0 up"
        ));
        let network = start(&["lo"]);
        let backend = at("10.3.0.2:8080");
        let netns = until("the namespace is known", || {
            match network.placement(backend) {
                Placement::Kernel { netns } => netns,
                _ => None,
            }
        });
        let listener = within(&container, move || TcpListener::bind(backend).unwrap());
        let client = TcpStream::connect(backend).unwrap();
        let (server, _) = listener.accept().unwrap();
        let peer = client.local_addr().unwrap();
        let wanted = HashSet::from([backend]);
        let there = tcp_sockets(Some(netns), &wanted).unwrap();
        assert!(there.has(backend, peer));
        let here = tcp_sockets(None, &wanted).unwrap();
        assert!(!here.has(backend, peer));
        drop(server);
        let closing = tcp_sockets(Some(netns), &wanted).unwrap();
        assert!(closing.has(backend, peer), "FIN_WAIT is a state too");
    });
}

/// Runs `f` in a namespace by name.
fn within<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    let enter = move || {
        // SAFETY: an open descriptor; concerns this thread only.
        let failed = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(failed, 0, "setns: {}", std::io::Error::last_os_error());
        f()
    };
    std::thread::spawn(enter).join().unwrap()
}
