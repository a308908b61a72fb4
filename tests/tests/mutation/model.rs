//! The packet path once more, in plain Rust over hash maps: whose packet it
//! is, which backend it gets, and the frame that comes out.

use std::{
    collections::{HashMap, HashSet},
    iter,
    net::IpAddr,
};

use shifter::{
    datapath::{BackendImage, NextHopImage, Placement, ServiceImage, attach::Place, monotonic_ns},
    model::{Affinity, CohortSpec, Protocol, cohort},
};
use shifter_common::{
    abi::{
        PoolCounters,
        service::{AFFINITY_CLIENT, AFFINITY_FLOW},
    },
    select,
};
use shifter_tests::scene::{Action, hook_name};

use super::{
    change::{Which, leave, rewrite},
    parse::{Kind, Side, View, view},
    tcp::{ADOPTED, Flow, HALF_OPEN, UNANSWERED},
};

/// The client's side of a flow.
pub type Client = Side;

/// What a packet came to.
pub struct End {
    pub action: Action,
    pub verdict: &'static str,
}

/// By what right a flow came to its backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Weighed,
    Forced,
    Adopted,
}

/// All that the kernel holds, as the model knows it.
#[derive(Default)]
pub struct Model {
    pub services: HashMap<u16, (ServiceImage, [Vec<u16>; 2])>,
    pub backends: HashMap<u16, BackendImage>,
    /// Of services that have some.
    pub cohorts: HashMap<u16, Vec<CohortSpec>>,
    /// Towards the clients that have a route.
    pub client_hop: Option<NextHopImage>,
    pub flows: HashMap<(u16, Client), Flow>,
    by_backend: HashMap<(u16, Client), u16>,
    by_vip: HashMap<Side, u16>,
    by_address: HashMap<Side, u16>,
    ports: [HashSet<u16>; 2],
    pub counters: HashMap<(u16, usize), PoolCounters>,
    pub verdicts: HashMap<(&'static str, &'static str), u64>,
}

fn pass(verdict: &'static str) -> End {
    End {
        action: Action::Pass,
        verdict,
    }
}

fn drop(verdict: &'static str) -> End {
    End {
        action: Action::Drop,
        verdict,
    }
}

fn side_of(addr: std::net::SocketAddr, protocol: Protocol) -> Side {
    Side {
        addr: addr.ip(),
        port: addr.port(),
        protocol: if protocol == Protocol::Udp { 17 } else { 6 },
    }
}

impl Model {
    /// Looks every table up again after services or backends have changed.
    pub fn index(&mut self) {
        let services = self.services.values();
        self.by_vip = services
            .map(|(image, _)| (side_of(image.vip.addr, image.vip.protocol), image.id))
            .collect();
        let backends = self.backends.iter();
        self.by_address = backends
            .map(|(id, image)| (side_of(image.addr, image.protocol), *id))
            .collect();
        self.ports = [
            self.by_vip.keys().map(|side| side.port).collect(),
            self.by_address.keys().map(|side| side.port).collect(),
        ];
    }

    /// Forgets all flows.
    pub fn clear(&mut self) {
        self.flows.clear();
        self.by_backend.clear();
    }

    /// Whether a side is a VIP.
    pub fn is_vip(&self, side: &Side) -> bool {
        self.by_vip.contains_key(side)
    }

    /// Every flow as `get flows` would show it, in one line.
    pub fn rows(&self) -> impl Iterator<Item = String> + '_ {
        self.flows.iter().map(|((service, client), flow)| {
            let protocol = if client.protocol == 17 { "Udp" } else { "Tcp" };
            let pool = ["blue", "green"][flow.pool];
            // What a half-open flow carries is not counted.
            format!(
                "{service} {} {protocol} {pool} {} {} {} {} {} {}",
                std::net::SocketAddr::new(client.addr, client.port),
                flow.backend,
                flow.state,
                flow.adopted,
                flow.cohort,
                flow.generation,
                flow.units * 16
            )
        })
    }

    /// What the program of a place does with a frame; `frame` becomes what comes out.
    pub fn run(&mut self, place: Place, frame: &mut [u8]) -> Action {
        let end = match view(frame) {
            None => pass("unparsed"),
            Some(view) if place == Place::TcEgress => self.egress(frame, &view),
            Some(view) => self.ingress(frame, &view),
        };
        let counted = (hook_name(place), end.verdict);
        *self.verdicts.entry(counted).or_default() += 1;
        end.action
    }

    fn ingress(&mut self, frame: &mut [u8], view: &View) -> End {
        if view.kind == Kind::Fragment {
            return self.fragment(view);
        }
        let to_vip = self.ports[0].contains(&view.destination.port);
        let from_backend = self.ports[1].contains(&view.source.port);
        if !to_vip && !from_backend {
            return pass("not_ours");
        }
        if let Some(service) = self.by_vip.get(&view.destination) {
            return self.forward(frame, view, *service);
        }
        match self.by_address.get(&view.source) {
            Some(backend) => self.reply_in(frame, view, *backend),
            None => pass("no_flow"),
        }
    }

    fn egress(&mut self, frame: &mut [u8], view: &View) -> End {
        if view.kind == Kind::Fragment || !self.ports[1].contains(&view.source.port) {
            return pass("not_ours");
        }
        let Some(backend) = self.by_address.get(&view.source).copied() else {
            return pass("no_flow");
        };
        let Some(service) = self.by_backend.get(&(backend, view.destination)).copied() else {
            return pass("no_flow");
        };
        if self.answers_a_direct_syn(frame, view, service) {
            return pass("no_flow");
        }
        self.count_reply(frame, view, service);
        let (image, _) = &self.services[&service];
        if backend == image.vip_backend {
            return pass("reply_vip");
        }
        let vip = side_of(image.vip.addr, image.vip.protocol);
        rewrite(frame, view, Which::Source, vip);
        pass(if view.kind == Kind::Error {
            "icmp_reply"
        } else {
            "reply_egress"
        })
    }

    fn fragment(&mut self, view: &View) -> End {
        if let Some(service) = self.by_vip.get(&view.destination) {
            self.counters.entry((*service, 0)).or_default().fragments += 1;
            return pass("fragment");
        }
        let addr = view.destination.addr;
        if self.by_vip.keys().any(|vip| vip.addr == addr) {
            pass("fragment")
        } else {
            pass("not_ours")
        }
    }

    fn reply_in(&mut self, frame: &mut [u8], view: &View, backend: u16) -> End {
        let Some(service) = self.by_backend.get(&(backend, view.destination)).copied() else {
            return pass("no_flow");
        };
        if self.answers_a_direct_syn(frame, view, service) {
            return pass("no_flow");
        }
        let (image, _) = &self.services[&service];
        let is_redirected = matches!(self.backends[&backend].placement, Placement::NextHop(_));
        if !is_redirected || backend == image.vip_backend || view.is_tagged {
            return pass("reply_kernel");
        }
        if view.hop_limit <= 1 {
            return pass("ttl_expired");
        }
        let Some(hop) = self.client_hop.filter(|_| has_route(view.destination.addr)) else {
            return pass("reply_kernel");
        };
        if frame.len() - view.ip > hop.mtu as usize {
            return pass("too_big");
        }
        let vip = side_of(image.vip.addr, image.vip.protocol);
        self.count_reply(frame, view, service);
        leave(frame, view, hop.destination, hop.source);
        rewrite(frame, view, Which::Source, vip);
        End {
            action: Action::Redirect,
            verdict: if view.kind == Kind::Error {
                "icmp_reply"
            } else {
                "reply_redirect"
            },
        }
    }

    /// A SYN-ACK on a closing flow answers a SYN that did not pass by the VIP;
    /// the flow is forgotten.
    fn answers_a_direct_syn(&mut self, frame: &[u8], view: &View, service: u16) -> bool {
        let key = (service, view.destination);
        let is_answer = view.kind == Kind::Segment
            && view.source.protocol == 6
            && flags(frame, view) & 0x12 == 0x12;
        let direct = is_answer && self.flows[&key].is_closing();
        if direct {
            self.remove(key);
        }
        direct
    }

    fn count_reply(&mut self, frame: &[u8], view: &View, service: u16) {
        let key = (service, view.destination);
        let flow = self.flows.get_mut(&key).expect("both maps name the flow");
        let counters = self.counters.entry((service, flow.pool)).or_default();
        counters.reply_packets += 1;
        counters.reply_bytes += (frame.len() - view.ip) as u64;
        if view.kind == Kind::Segment {
            flow.see(frame, view, true);
        }
    }

    fn forward(&mut self, frame: &mut [u8], view: &View, service: u16) -> End {
        let key = (service, view.source);
        let found = self.flows.get(&key).map(|flow| (flow.pool, flow.backend));
        if view.kind == Kind::Error {
            return match found {
                Some(choice) => self.send(frame, view, service, choice),
                None => pass("no_flow"),
            };
        }
        if let Some((pool, backend)) = found {
            let is_over = is_opening(frame, view)
                && (self.flows[&key].is_closing() || !self.is_open(backend));
            if !is_over {
                let flow = self.flows.get_mut(&key).expect("just found");
                flow.see(frame, view, false);
                return self.send(frame, view, service, (pool, backend));
            }
            self.remove(key);
        }
        let Some((choice, how)) = self.choose(frame, view, service) else {
            let live_has_vip = self.services[&service].0.live_has_vip;
            return if live_has_vip {
                pass("forward_vip")
            } else {
                drop("no_backend")
            };
        };
        if view.source.protocol == 6 && flags(frame, view) & 4 != 0 {
            let mut end = self.send(frame, view, service, choice);
            if end.verdict.starts_with("forward_") {
                end.verdict = "unpinned";
            }
            return end;
        }
        self.pin(frame, view, service, choice, how)
    }

    fn pin(
        &mut self,
        frame: &mut [u8],
        view: &View,
        service: u16,
        (pool, mut backend): (usize, u16),
        how: How,
    ) -> End {
        let is_adopted = how == How::Adopted;
        let mut taken = Vec::new();
        for tries in 1.. {
            let Some(holder) = self.by_backend.get(&(backend, view.source)).copied() else {
                break;
            };
            let held = &self.flows[&(holder, view.source)];
            if held.is_closing() || held.is_unproven() {
                self.remove((holder, view.source));
                break;
            }
            taken.push(backend);
            match self.in_pool(service, pool, self.hash(view, service), &taken) {
                Some(next) if tries < 3 && !is_adopted => backend = next,
                _ => return drop("tuple_clash"),
            }
        }
        let is_udp = view.source.protocol == 17;
        let state = match (is_udp, is_adopted) {
            (true, _) => UNANSWERED,
            (false, true) => ADOPTED,
            (false, false) => HALF_OPEN,
        };
        let generation = self.services[&service].0.generation;
        let mut flow = Flow::new((pool, backend), state, is_adopted, generation);
        flow.cohort = how == How::Forced;
        if is_udp || is_adopted {
            flow.see(frame, view, false);
        }
        self.flows.insert((service, view.source), flow);
        self.by_backend.insert((backend, view.source), service);
        let counters = self.counters.entry((service, pool)).or_default();
        match how {
            How::Weighed => counters.new_flows += 1,
            How::Forced => counters.cohort_flows += 1,
            How::Adopted => counters.adopted_flows += 1,
        }
        self.send(frame, view, service, (pool, backend))
    }

    fn remove(&mut self, key: (u16, Client)) {
        if let Some(flow) = self.flows.remove(&key) {
            self.by_backend.remove(&(flow.backend, key.1));
        }
    }

    fn hash(&self, view: &View, service: u16) -> u64 {
        let image = &self.services[&service].0;
        let (affinity, prefix) = match image.affinity {
            Affinity::Flow => (AFFINITY_FLOW, 0),
            Affinity::Client(prefix) => (AFFINITY_CLIENT, prefix.unwrap_or(128)),
        };
        let mut client = [0; 16];
        let family = match view.source.addr {
            IpAddr::V4(addr) => {
                client[..4].copy_from_slice(&addr.octets());
                4
            }
            IpAddr::V6(addr) => {
                client = addr.octets();
                6
            }
        };
        let port = view.source.port.to_be_bytes();
        select::affinity_hash(image.seed.0, affinity, prefix, &client, port, family)
    }

    /// Pool and backend, and by what right. No
    /// socket of this namespace serves anybody.
    fn choose(&self, frame: &[u8], view: &View, service: u16) -> Option<((usize, u16), How)> {
        let (image, _) = &self.services[&service];
        let hash = self.hash(view, service);
        let is_settling = image.settle_until_ns > monotonic_ns();
        let is_new = if view.source.protocol == 17 {
            !is_settling
        } else {
            is_opening(frame, view)
        };
        let live = image.live.index();
        if is_new {
            let forced = self.forced(view, service);
            let pool = forced.unwrap_or_else(|| select::pool_of(hash, image.threshold));
            let how = match forced {
                Some(_) => How::Forced,
                None => How::Weighed,
            };
            let choice = [pool, 1 - pool]
                .into_iter()
                .find_map(|pool| Some((pool, self.in_pool(service, pool, hash, &[])?)));
            return choice.map(|choice| (choice, how));
        }
        if image.live_has_vip {
            return Some(((live, image.vip_backend), How::Adopted));
        }
        let backend = self.in_pool(service, live, hash, &[])?;
        Some(((live, backend), How::Adopted))
    }

    /// Pool that a cohort of the client forces.
    fn forced(&self, view: &View, service: u16) -> Option<usize> {
        let (image, _) = &self.services[&service];
        let cohorts = self.cohorts.get(&service).filter(|_| image.cohorts_on)?;
        let (cohort, _) = cohort::longest(cohorts, view.source.addr)?;
        Some(cohort.pool_when(image.live).index())
    }

    /// The first of 64 slots of the ring that names an open backend which is not
    /// `taken`.
    fn in_pool(&self, service: u16, pool: usize, hash: u64, taken: &[u16]) -> Option<u16> {
        let ring = &self.services[&service].1[pool];
        let hashes = iter::successors(Some(select::ring_hash(hash)), |hash| {
            Some(select::next_ring_hash(*hash))
        });
        hashes
            // Not by the constant: it is what is to be found out.
            .take(64)
            .filter_map(|hash| ring.get(select::ring_slot(hash, ring.len() as u32) as usize))
            .copied()
            .find(|backend| self.is_open(*backend) && !taken.contains(backend))
    }

    fn is_open(&self, backend: u16) -> bool {
        self.backends
            .get(&backend)
            .is_some_and(|backend| !backend.maint && !backend.down)
    }

    fn send(
        &mut self,
        frame: &mut [u8],
        view: &View,
        service: u16,
        (pool, backend): (usize, u16),
    ) -> End {
        let length = frame.len() - view.ip;
        let counters = self.counters.entry((service, pool)).or_default();
        counters.forward_packets += 1;
        counters.forward_bytes += length as u64;
        let is_error = view.kind == Kind::Error;
        let verdict = |normal| if is_error { "icmp_forward" } else { normal };
        if backend == self.services[&service].0.vip_backend {
            return pass(verdict("forward_vip"));
        }
        let Some(backend) = self.backends.get(&backend) else {
            return pass("gone_backend");
        };
        let to = side_of(backend.addr, backend.protocol);
        let mut end = pass(verdict("forward_kernel"));
        if let Placement::NextHop(hop) = backend.placement
            && !view.is_tagged
        {
            if length > hop.mtu as usize {
                end.verdict = "too_big";
            } else if view.hop_limit <= 1 {
                end.verdict = "ttl_expired";
            } else {
                leave(frame, view, hop.destination, hop.source);
                end.action = Action::Redirect;
                end.verdict = verdict("forward_redirect");
            }
        }
        rewrite(frame, view, Which::Destination, to);
        end
    }
}

fn flags(frame: &[u8], view: &View) -> u8 {
    frame[view.transport + 13]
}

/// SYN without ACK, RST or FIN.
fn is_opening(frame: &[u8], view: &View) -> bool {
    view.source.protocol == 6 && flags(frame, view) & 0x17 == 2
}

/// The networks that the scene routes to.
fn has_route(client: IpAddr) -> bool {
    match client {
        IpAddr::V4(client) => client.octets()[..2] == [10, 9],
        IpAddr::V6(client) => client.segments()[..3] == [0x2001, 0xdb8, 9],
    }
}
