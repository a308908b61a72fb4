//! What packets tell of how a pool does, and the breaker.

use shifter::{
    datapath::{BreakerImage, Datapath as _, Placement, attach::Place},
    model::{Protocol, signals::PoolSignals},
};
use shifter_tests::{
    need,
    packet::{ACK, FIN, Packet, RST, SYN, addr},
    scene::Scene,
};

use crate::{flows::age, world::*};

/// A client's connection to a service, step by step, by one ingress.
struct Client<'a> {
    scene: &'a mut Scene,
    case: Case,
    place: Place,
}

impl Client<'_> {
    fn send(&mut self, flags: u8, at: (u32, u32), data: &[u8]) -> &'static str {
        let packet = Packet::tcp(self.case.client, self.case.vip, flags);
        let packet = packet.seq(at.0, at.1).data(data);
        self.scene.judge(self.place, &packet.frame()).verdict
    }

    fn answer(&mut self, flags: u8, at: (u32, u32), data: &[u8]) {
        let packet = Packet::tcp(self.case.backend, self.case.client, flags);
        let packet = packet.seq(at.0, at.1).data(data);
        self.scene.judge(Place::TcEgress, &packet.frame());
    }

    fn handshake(&mut self) {
        self.send(SYN, (1_000, 0), &[]);
        self.answer(SYN | ACK, (5_000, 1_001), &[]);
        self.send(ACK, (1_001, 5_001), &[]);
    }

    fn ask(&mut self) {
        self.send(ACK, (1_001, 5_001), b"ask");
    }

    fn reply(&mut self) {
        self.answer(ACK, (5_001, 1_004), b"reply");
        self.send(ACK, (1_004, 5_006), &[]);
    }
}

const PLACES: [Place; 2] = [Place::Xdp, Place::TcIngress];

/// Runs `test` for both families and hooks, each in a client's port of its own.
fn for_each(scene: &mut Scene, mut test: impl FnMut(&mut Client<'_>, u16)) {
    for (id, case) in [(5, routed_tcp4()), (6, routed_tcp6())] {
        for (place, port) in PLACES.into_iter().zip(41_000..) {
            let mut case = case;
            case.client.set_port(port);
            test(&mut Client { scene, case, place }, id);
        }
    }
}

fn blue(scene: &Scene, id: u16) -> PoolSignals {
    scene.datapath.signals(id).unwrap()[0].clone()
}

/// Two clients of each of the services 5 and 6 have done the same.
fn twice(scene: &Scene, what: &str, figures: impl Fn(&PoolSignals) -> Vec<u64>, wanted: &[u64]) {
    for id in [5, 6] {
        let signals = blue(scene, id);
        let wanted: Vec<u64> = wanted.iter().map(|count| count * 2).collect();
        assert_eq!(
            figures(&signals),
            wanted,
            "{what}, service {id}: {signals:?}"
        );
    }
}

#[test]
fn a_connection_is_counted_and_timed_from_its_syn_to_its_end() {
    need!();
    world(|scene| {
        for_each(scene, |client, _| {
            client.handshake();
            client.ask();
            client.reply();
            client.ask();
            client.send(FIN | ACK, (1_004, 5_006), &[]);
            client.answer(FIN | ACK, (5_006, 1_005), &[]);
        });
        let figures = |s: &PoolSignals| {
            let times = [&s.handshake, &s.first_byte, &s.duration].map(|times| times.count());
            [[s.attempts, s.answered, s.ended], times].concat()
        };
        twice(scene, "served", figures, &[1, 1, 1, 1, 1, 1]);
        let signals = blue(scene, 5);
        assert_eq!((signals.failures(), signals.client_resets), (0, 0));
        assert!(signals.bytes > 0);
        // Another pool and another service have none.
        assert_eq!(
            scene.datapath.signals(5).unwrap()[1],
            PoolSignals::default()
        );
        assert_eq!(blue(scene, 1).attempts, 0);
        scene.datapath.reset_service_counters(5).unwrap();
        let signals = blue(scene, 5);
        assert_eq!((signals.attempts, signals.handshake.count()), (0, 0));
    });
}

#[test]
fn resets_are_told_apart_under_both_hooks() {
    need!();
    world(|scene| {
        for_each(scene, |client, _| {
            // Refused.
            client.send(SYN, (1_000, 0), &[]);
            client.answer(RST | ACK, (0, 1_001), &[]);
        });
        let figures = |s: &PoolSignals| vec![s.refused, s.answered, s.ended];
        twice(scene, "refused", figures, &[1, 0, 0]);
        for_each(scene, |client, _| {
            client.case.client.set_port(client.case.client.port() + 10);
            client.handshake();
            client.ask();
            client.answer(RST, (5_001, 0), &[]);
        });
        let figures = |s: &PoolSignals| vec![s.resets_before_data, s.resets_after_data, s.ended];
        twice(scene, "before data", figures, &[1, 0, 1]);
        for_each(scene, |client, _| {
            client.case.client.set_port(client.case.client.port() + 20);
            client.handshake();
            client.ask();
            client.reply();
            client.answer(RST, (5_006, 0), &[]);
        });
        twice(scene, "after data", figures, &[1, 1, 2]);
        for_each(scene, |client, _| {
            client.case.client.set_port(client.case.client.port() + 30);
            client.handshake();
            // Nobody's.
            client.send(RST, (999, 0), &[]);
            client.send(RST, (1_001, 0), &[]);
        });
        let figures = |s: &PoolSignals| vec![s.client_resets, s.resets_after_data, s.ended];
        twice(scene, "by the client", figures, &[1, 1, 3]);
    });
}

#[test]
fn what_nobody_answers_is_counted_when_it_expires() {
    need!();
    world(|scene| {
        for_each(scene, |client, _| {
            client.send(SYN, (1_000, 0), &[]);
            client.send(SYN, (1_000, 0), &[]);
        });
        let figures = |s: &PoolSignals| vec![s.syn_retransmits, s.unanswered];
        twice(scene, "waiting", figures, &[1, 0]);
        assert_eq!(scene.datapath.sweep(), 0);
        age(scene, 80);
        assert_eq!(scene.datapath.sweep(), 4);
        twice(scene, "expired", figures, &[1, 1]);
        // One that was answered and never proven is none of these.
        for_each(scene, |client, _| {
            client.send(SYN, (1_000, 0), &[]);
            client.answer(SYN | ACK, (5_000, 1_001), &[]);
        });
        age(scene, 80);
        assert_eq!(scene.datapath.sweep(), 4);
        twice(scene, "answered", figures, &[1, 1]);
        // An expired one that a SYN chooses anew is.
        for_each(scene, |client, _| {
            client.send(SYN, (1_000, 0), &[]);
        });
        age(scene, 80);
        for_each(scene, |client, _| {
            client.send(SYN, (9_000, 0), &[]);
        });
        twice(scene, "chosen anew", figures, &[1, 2]);
    });
}

#[test]
fn what_gives_way_unanswered_is_counted() {
    need!();
    world_of(1_024, |scene| {
        let case = routed_tcp4();
        for port in 1_025..60_000 {
            let client = (case.client.ip(), port).into();
            let frame = Packet::tcp(client, case.vip, SYN).frame();
            scene.run(Place::TcIngress, &frame);
        }
        let signals = blue(scene, 5);
        let evicted = scene.datapath.census().evicted["half_open"];
        assert!(evicted > 50_000, "{evicted}");
        assert_eq!(signals.unanswered, evicted);
    });
}

#[test]
fn segments_sent_again_are_counted_of_one_flow_in_64() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        for port in 20_000..22_000 {
            let mut case = case;
            case.client.set_port(port);
            let place = PLACES[usize::from(port & 1)];
            let mut client = Client { scene, case, place };
            client.handshake();
            client.ask();
            client.ask();
            client.reply();
            client.answer(ACK, (5_001, 1_004), b"reply");
            client.answer(ACK, (5_006, 1_004), b"more");
        }
        let signals = blue(scene, 5);
        for sent in [signals.client_retransmits, signals.backend_retransmits] {
            assert_eq!(sent % 64, 0);
            // 2,000 of each; 31 flows are expected to be watched.
            assert!((600..5_000).contains(&sent), "{sent}");
        }
    });
}

#[test]
fn adopted_flows_are_in_no_signal() {
    need!();
    world(|scene| {
        for_each(scene, |client, _| {
            client.ask();
            client.reply();
            client.answer(RST, (5_006, 0), &[]);
        });
        for id in [5, 6] {
            let signals = blue(scene, id);
            let bytes = signals.bytes;
            assert!(bytes > 0);
            let nothing = PoolSignals {
                bytes,
                ..PoolSignals::default()
            };
            assert_eq!(signals, nothing);
        }
    });
}

/// The service of `case` with everything to green and a breaker.
fn guarded(scene: &Scene, generation: u32) {
    let green = addr("10.8.0.99:8080");
    scene.backend(90, green, Protocol::Tcp, Placement::Kernel { netns: None });
    let mut image = service(5);
    image.threshold = 1 << 32;
    image.generation = generation;
    image.breaker = Some(BreakerImage {
        window_ns: 3_600_000_000_000,
        max_failures: 5,
        min_attempts: 10,
        // 20%
        max_ratio: 858_993_459,
    });
    scene.service(&image, &[backend_id(5)], &[90]);
}

#[test]
fn a_breaker_sends_no_new_flow_to_the_candidate_until_the_next_record() {
    need!();
    world(|scene| {
        let mut port = 30_000;
        let mut refused = |scene: &mut Scene, place| {
            port += 1;
            let mut case = routed_tcp4();
            case.client.set_port(port);
            case.backend = addr("10.8.0.99:8080");
            let mut client = Client { scene, case, place };
            client.send(SYN, (1_000, 0), &[]);
            client.answer(RST | ACK, (0, 1_001), &[]);
        };
        let attempts = |scene: &Scene| scene.datapath.signals(5).unwrap().map(|s| s.attempts);
        for (generation, place) in (2..).zip(PLACES) {
            guarded(scene, generation);
            let state = scene.datapath.breaker(5).unwrap().unwrap();
            assert_eq!((state.attempts, state.failures), (0, 0));
            let before = attempts(scene);
            for number in 1..=30 {
                refused(scene, place);
                let state = scene.datapath.breaker(5).unwrap().unwrap();
                let trip = state.trip.filter(|trip| trip.generation == generation);
                assert_eq!(trip.is_some(), number >= 10, "{number}: {state:?}");
            }
            let after = attempts(scene);
            assert_eq!([after[0] - before[0], after[1] - before[1]], [20, 10]);
            let trip = scene.datapath.breaker(5).unwrap().unwrap().trip.unwrap();
            assert_eq!((trip.attempts, trip.failures), (10, 10));
        }
        // Without a breaker in the next record everything goes to green again.
        let mut image = service(5);
        image.threshold = 1 << 32;
        image.generation = 9;
        scene.service(&image, &[backend_id(5)], &[90]);
        assert_eq!(scene.datapath.breaker(5).unwrap(), None);
        let before = attempts(scene)[1];
        refused(scene, Place::Xdp);
        assert_eq!(attempts(scene)[1], before + 1);
    });
}

#[test]
fn a_syn_sent_twice_again_is_a_failure_of_the_candidate() {
    need!();
    world(|scene| {
        guarded(scene, 2);
        let mut case = routed_tcp4();
        for port in 30_000..30_006 {
            case.client.set_port(port);
            let place = Place::TcIngress;
            let mut client = Client { scene, case, place };
            for _ in 0..3 {
                client.send(SYN, (1_000, 0), &[]);
            }
        }
        let state = scene.datapath.breaker(5).unwrap().unwrap();
        assert_eq!((state.attempts, state.failures, state.trip), (6, 6, None));
        // Failures of the live pool count for nothing.
        let mut image = service(5);
        image.generation = 3;
        image.breaker = scene
            .datapath
            .inventory()
            .unwrap()
            .services
            .iter()
            .find(|s| s.id == 5)
            .unwrap()
            .breaker;
        scene.service(&image, &[backend_id(5)], &[90]);
        case.client.set_port(30_100);
        let place = Place::Xdp;
        let mut client = Client { scene, case, place };
        client.send(SYN, (1_000, 0), &[]);
        client.answer(RST | ACK, (0, 1_001), &[]);
        let state = scene.datapath.breaker(5).unwrap().unwrap();
        assert_eq!((state.attempts, state.failures), (0, 0));
    });
}
