//! Frames by seed: valid ones of every kind, the same with bytes changed, cut
//! off or put in, and noise.

use std::net::{IpAddr, SocketAddr};

use shifter_tests::packet::{ACK, Body, FIN, Packet, RST, SYN, addr};

/// SplitMix64: the whole stream follows from the seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// In `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A service as traffic sees it.
pub struct Way {
    pub vip: SocketAddr,
    pub backends: Vec<SocketAddr>,
    pub is_udp: bool,
}

/// Longest frame: below the MTU of the route, above that of the next hops.
const LONGEST: usize = 1_400;
const SHORTEST: usize = 14;

/// Valid frames to start from.
pub struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    pub fn new(ways: &[Way]) -> Self {
        let mut frames = Vec::new();
        for way in ways {
            for number in 0..12u16 {
                let mut client = if way.vip.is_ipv4() {
                    addr("10.9.0.1:1")
                } else {
                    addr("[2001:db8:9::1]:1")
                };
                client.set_port(40_000 + number % 4);
                // The last ones have no route back.
                if number >= 10 {
                    client.set_ip(if way.vip.is_ipv4() {
                        IpAddr::from([10, 99, 0, 1])
                    } else {
                        "2001:db8:99::1".parse().unwrap()
                    });
                }
                let packets = conversation(way, client);
                frames.extend(packets.iter().map(Packet::frame));
            }
        }
        frames.extend(strangers());
        frames.retain(|frame| frame.len() <= LONGEST);
        Self(frames)
    }

    /// The next frame.
    pub fn draw(&self, dice: &mut Dice) -> Vec<u8> {
        let mut frame = self.0[dice.below(self.0.len())].clone();
        match dice.below(16) {
            0..=6 => {}
            7..=11 => {
                for _ in 0..=dice.below(4) {
                    change(&mut frame, dice);
                }
            }
            12 => frame.truncate(SHORTEST.max(dice.below(frame.len()))),
            13 => {
                let at = dice.below(frame.len());
                let piece: Vec<u8> = (0..=dice.below(12)).map(|_| dice.next() as u8).collect();
                frame.splice(at..at, piece);
            }
            14 => {
                let other = &self.0[dice.below(self.0.len())];
                let at = dice.below(frame.len().min(other.len()));
                frame.truncate(at);
                frame.extend(&other[at..]);
            }
            _ => {
                let head = [0, 12, 14, 34][dice.below(4)].min(frame.len());
                let length = SHORTEST.max(head) + dice.below(200);
                frame.truncate(head);
                frame.resize_with(length, || dice.next() as u8);
            }
        }
        frame.truncate(LONGEST);
        frame
    }
}

/// One byte or bit, mostly in the headers.
fn change(frame: &mut [u8], dice: &mut Dice) {
    let reach = if dice.one_in(4) { frame.len() } else { 80 };
    let at = dice.below(reach.min(frame.len()));
    frame[at] = match dice.below(4) {
        0 => frame[at] ^ 1 << dice.below(8),
        1 => [0, 1, 0x45, 0x46, 0x60, 6, 17, 43, 44, 58, 60, 0x81, 0xff][dice.below(13)],
        2 => frame[at].wrapping_add(1),
        _ => dice.next() as u8,
    };
}

/// All that a client and the backends of a service may send.
fn conversation(way: &Way, client: SocketAddr) -> Vec<Packet> {
    let mut packets = Vec::new();
    let router: IpAddr = if client.is_ipv4() {
        [10, 5, 0, 1].into()
    } else {
        "2001:db8:5::1".parse().unwrap()
    };
    for &backend in &way.backends {
        if way.is_udp {
            packets.push(Packet::udp(backend, client));
            packets.push(Packet::udp(backend, client).unsummed().data(&[9; 300]));
        } else {
            let from = |flags| Packet::tcp(backend, client, flags);
            packets.extend([
                from(SYN | ACK).seq(5_000, 1_001),
                from(ACK).seq(5_001, 1_004),
                from(ACK).seq(5_001, 1_004).data(&[7; 1_210]),
                from(FIN | ACK).seq(5_004, 1_004),
                from(RST).seq(5_001, 0),
            ]);
        }
        let sent = segment(way, client, backend);
        packets.push(Packet::too_big(router, &sent));
        packets.push(Packet::error(backend.ip(), 3, 3, &sent).quoting(60));
    }
    let to_vip = segment(way, client, way.vip);
    if !way.is_udp {
        let to = |flags| Packet::tcp(client, way.vip, flags);
        packets.extend([
            to(SYN),
            to(SYN),
            to(ACK).seq(1_001, 5_001),
            to(ACK).seq(1_001, 5_001).data(&[5; 1_220]),
            to(FIN | ACK).seq(1_004, 5_004),
            to(RST).seq(1_004, 0),
            to(SYN).hops(1),
        ]);
    }
    packets.extend([to_vip.clone(), to_vip.clone(), to_vip.clone().hops(1)]);
    packets.push(to_vip.clone().tagged(&[([0x81, 0], 5)]));
    packets.push(to_vip.clone().tagged(&[([0x88, 0xa8], 5), ([0x81, 0], 6)]));
    packets.push(to_vip.clone().trailer(&[0xee; 9]));
    let seen = segment(way, way.vip, client);
    packets.push(Packet::too_big(router, &seen));
    packets.push(
        Packet::error(router, 1, 0, &seen)
            .quoting(48)
            .trailer(&[3; 40]),
    );
    packets.extend(odd(&to_vip));
    packets
}

fn segment(way: &Way, source: SocketAddr, destination: SocketAddr) -> Packet {
    if way.is_udp {
        Packet::udp(source, destination)
    } else {
        Packet::tcp(source, destination, ACK)
    }
}

/// With options or extension headers, and in fragments.
fn odd(packet: &Packet) -> Vec<Packet> {
    if packet.source.is_ipv4() {
        return vec![
            packet.clone().options(&[1, 1, 1, 0]),
            packet.clone().options(&[0x94, 4, 0, 0, 1, 1, 1, 0]),
            packet.clone().fragment(0x2000),
            packet.clone().fragment(0x0010),
        ];
    }
    let pad = [0, 0, 1, 4, 0, 0, 0, 0];
    let long = [
        0, 2, 1, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let with = |kind, bytes: &[u8]| packet.clone().extension(kind, bytes);
    vec![
        with(0, &pad).extension(60, &long),
        with(43, &[0, 0, 4, 0, 0, 0, 0, 0]),
        with(43, &[0, 0, 4, 1, 0, 0, 0, 0]),
        with(44, &[0, 0, 0, 0, 0, 0, 0, 1]),
        with(44, &[0, 0, 0, 1, 0, 0, 0, 1]),
        with(44, &[0, 0, 1, 0, 0, 0, 0, 1]),
    ]
}

/// Frames that concern nobody here.
fn strangers() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let (v4, v6) = (addr("192.0.2.1:25"), addr("[2001:db8:1::1]:443"));
    for (client, server) in [
        (addr("10.9.0.1:40000"), v4),
        (addr("[2001:db8:9::1]:40000"), v6),
    ] {
        for flags in [SYN, ACK, RST, FIN | ACK] {
            frames.push(Packet::tcp(client, server, flags).frame());
        }
        frames.push(Packet::udp(client, server).frame());
        for protocol in [1, 2, 4, 41, 47, 50, 58, 89, 132] {
            let bytes = (0..64).collect();
            let packet = Packet::new(client, server, Body::Raw { protocol, bytes });
            frames.push(packet.frame());
        }
    }
    for ethertype in [0x0806u16, 0x88cc, 0x8847, 0x8863, 0x0028, 0x88a8, 0x8100] {
        let mut frame = vec![0xff; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(0..46);
        frames.push(frame);
    }
    frames
}
