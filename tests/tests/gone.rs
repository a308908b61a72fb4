//! A flow whose end no packet showed counts no more once its socket is gone.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings},
    command::eventually,
    mover::Service,
    need,
    topology::{Family, Lab, Placement, Side},
};

/// A minute of silence, a pass, and what a busy machine adds.
const LIMIT: Duration = Duration::from_secs(120);

/// A minute of silence, and two passes after it.
const IDLE_AND_PASSES: Duration = Duration::from_secs(95);

/// Both ends of a connection through the VIP.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(lab: &Lab, listener: &TcpListener, family: Family) -> Self {
        let vip = lab.vip(family);
        let limit = Duration::from_secs(5);
        let client = lab
            .client
            .run(|| TcpStream::connect_timeout(&vip, limit))
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(limit)).unwrap();
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
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
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

/// A port of the host that rules lead to a container: the sockets are not
/// where the backend's address is, though a proxy of the publisher listens there.
fn is_left_alone() {
    let lab = Lab::new(Placement::Published).unwrap();
    let (services, listeners) = (services(&lab), listeners(&lab));
    let proxies = Family::BOTH.map(|family| {
        let at = lab.backend(Side::Green, family);
        lab.host.run(|| TcpListener::bind(at)).unwrap()
    });
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&services).unwrap();
    let mut open: Vec<_> = listeners
        .iter()
        .map(|(family, listener)| Connection::open(&lab, listener, *family))
        .collect();
    std::thread::sleep(IDLE_AND_PASSES);
    for service in &services {
        let carried = agent.carried(&service.name).unwrap();
        assert_eq!(carried, [0, 1], "{}", service.name);
    }
    for connection in &mut open {
        connection.exchange();
    }
    drop(proxies);
}

#[test]
fn flows_without_a_socket_count_no_more_and_those_behind_dnat_do() {
    need!();
    // Most of it is waiting: all at once.
    std::thread::scope(|scope| {
        for placement in [Placement::HostPorts, Placement::Container] {
            scope.spawn(move || counts_no_more(placement));
        }
        scope.spawn(is_left_alone);
    });
}
