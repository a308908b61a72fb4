//! The host's packet filter, as far as it stands in the way of a VIP or a backend. Pure.
//!
//! Rules of nft and of iptables are read into one small model and asked about
//! one packet, the first of a new flow. What cannot be told from a rule is
//! `Maybe`, so that nothing is claimed that may not be so.

mod cache;
mod iptables;
mod nft;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, net::IpAddr};

pub(super) use cache::RulesetCache;

use crate::model::Protocol;

/// Jumps deeper than the kernel allows end the walk.
const DEPTH: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    Ip,
    Ip6,
    Inet,
}

/// Where and how a chain hangs in the packet path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Base {
    pub nat: bool,
    pub hook: Hook,
    pub priority: i64,
    pub policy_drop: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Prerouting,
    Forward,
    Other,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub family: Family,
    pub table: String,
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    pub tests: Vec<Test>,
    pub verdict: Verdict,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Dnat,
    Jump(String),
    Goto(String),
    Return,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Test {
    pub negated: bool,
    pub subject: Subject,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// IP protocol numbers.
    Protocol(Vec<u8>),
    /// Destination port, inclusive ranges.
    Port(Vec<(u16, u16)>),
    /// Destination address, inclusive ranges.
    Address(Vec<(IpAddr, IpAddr)>),
    /// Input interface; a trailing `*` stands for any ending.
    Input(Vec<String>),
    Output(Vec<String>),
    /// Conntrack state: whether the first packet of a flow is meant.
    NewFlow(bool),
    /// Conntrack has already translated the destination.
    Translated,
    /// The destination is an address of this host.
    Local,
    Unknown,
}

/// The first packet of a flow that is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// Where it may come in; empty: anywhere.
    pub inputs: &'a [String],
    /// Where it goes out; `None`: not known.
    pub output: Option<&'a str>,
    pub local: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Answer {
    No,
    Maybe,
    Yes,
}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Passes,
    /// Surely dropped, by this chain.
    Dropped(String),
    CannotTell,
}

/// How a walk through one chain ended.
enum Walk<'a> {
    Accepted,
    Dropped(&'a Chain),
    Ended,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ruleset {
    pub chains: Vec<Chain>,
    /// Why it could not be read whole.
    pub problem: Option<String>,
}

impl Ruleset {
    /// The chain in front of the VIP that may translate its packets.
    pub(super) fn translates(&self, probe: &Probe) -> Option<String> {
        self.bases(Hook::Prerouting, probe)
            .filter(|(_, base)| base.nat)
            .find(|(chain, _)| self.reaches_dnat(chain, probe, &mut HashSet::new()))
            .map(|(chain, _)| chain.path())
    }

    /// Whether packets to the VIP may be translated. What was not read whole
    /// says nothing of what is missing: then they may.
    pub(super) fn may_translate(&self, probe: &Probe) -> bool {
        self.problem.is_some() || self.translates(probe).is_some()
    }

    /// What the filter chains of a hook do with the packet.
    pub(super) fn fate(&self, hook: Hook, probe: &Probe) -> Fate {
        let mut bases: Vec<_> = self
            .bases(hook, probe)
            .filter(|(_, base)| !base.nat)
            .collect();
        bases.sort_by_key(|(_, base)| base.priority);
        let mut fate = Fate::Passes;
        for (chain, base) in bases {
            let mut sure = true;
            let dropped_by = match self.walk(chain, probe, &mut sure, DEPTH) {
                Walk::Accepted => None,
                Walk::Dropped(by) => Some(by.path()),
                Walk::Ended => base
                    .policy_drop
                    .then(|| format!("{} (policy drop)", chain.path())),
            };
            match (dropped_by, sure) {
                (Some(by), true) => return Fate::Dropped(by),
                (_, false) => fate = Fate::CannotTell,
                (None, true) => {}
            }
        }
        fate
    }

    fn bases(&self, hook: Hook, probe: &Probe) -> impl Iterator<Item = (&Chain, &Base)> {
        let is_v4 = probe.address.is_ipv4();
        self.chains
            .iter()
            .filter(move |chain| match chain.family {
                Family::Ip => is_v4,
                Family::Ip6 => !is_v4,
                Family::Inet => true,
            })
            .filter_map(|chain| Some((chain, chain.base.as_ref()?)))
            .filter(move |(_, base)| base.hook == hook)
    }

    fn target(&self, from: &Chain, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| {
            chain.family == from.family && chain.table == from.table && chain.name == name
        })
    }

    fn reaches_dnat<'a>(
        &'a self,
        chain: &'a Chain,
        probe: &Probe,
        seen: &mut HashSet<&'a str>,
    ) -> bool {
        if !seen.insert(&chain.name) {
            return false;
        }
        for rule in &chain.rules {
            let answer = rule.answer(probe);
            if answer == Answer::No {
                continue;
            }
            match &rule.verdict {
                Verdict::Dnat => return true,
                Verdict::Jump(name) | Verdict::Goto(name) => {
                    let target = self.target(chain, name);
                    if target.is_some_and(|target| self.reaches_dnat(target, probe, seen)) {
                        return true;
                    }
                }
                Verdict::Accept | Verdict::Drop | Verdict::Return if answer == Answer::Yes => {
                    return false;
                }
                Verdict::Accept | Verdict::Drop | Verdict::Return => {}
            }
        }
        false
    }

    /// Follows the rules in order. `sure` turns false where a rule that might
    /// have decided otherwise could not be told.
    fn walk<'a>(
        &'a self,
        chain: &'a Chain,
        probe: &Probe,
        sure: &mut bool,
        depth: usize,
    ) -> Walk<'a> {
        for rule in &chain.rules {
            let answer = rule.answer(probe);
            if answer == Answer::No || depth == 0 {
                continue;
            }
            let is_goto = matches!(rule.verdict, Verdict::Goto(_));
            let walk = match &rule.verdict {
                Verdict::Accept | Verdict::Dnat => Walk::Accepted,
                Verdict::Drop => Walk::Dropped(chain),
                Verdict::Return if answer == Answer::Yes => return Walk::Ended,
                Verdict::Return => {
                    *sure = false;
                    continue;
                }
                Verdict::Jump(name) | Verdict::Goto(name) => match self.target(chain, name) {
                    Some(target) => self.walk(target, probe, sure, depth - 1),
                    None => continue,
                },
            };
            match (walk, answer) {
                (Walk::Ended, _) if is_goto => return Walk::Ended,
                (Walk::Ended, _) => {}
                (decided, Answer::Yes) => return decided,
                _ => *sure = false,
            }
        }
        Walk::Ended
    }
}

impl Chain {
    fn path(&self) -> String {
        let family = match self.family {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
        };
        format!("{family} {} {}", self.table, self.name)
    }
}

impl Rule {
    fn answer(&self, probe: &Probe) -> Answer {
        let answers = self.tests.iter().map(|test| test.answer(probe));
        answers.min().unwrap_or(Answer::Yes)
    }
}

impl Test {
    /// A test that holds.
    pub(super) fn is(subject: Subject) -> Self {
        Self {
            negated: false,
            subject,
        }
    }

    fn answer(&self, probe: &Probe) -> Answer {
        let holds = match &self.subject {
            Subject::Protocol(numbers) => numbers.contains(&protocol_number(probe.protocol)),
            Subject::Port(ranges) => ranges
                .iter()
                .any(|(low, high)| (*low..=*high).contains(&probe.port)),
            Subject::Address(ranges) => {
                // A rule on the other family's header never sees the packet.
                let is_v4 = probe.address.is_ipv4();
                if !ranges.iter().any(|(low, _)| low.is_ipv4() == is_v4) {
                    return Answer::No;
                }
                ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&probe.address))
            }
            Subject::Input(names) => return self.interface_answer(names, probe.inputs),
            Subject::Output(names) => match probe.output {
                Some(output) => names.iter().any(|name| is_named(name, output)),
                None => return Answer::Maybe,
            },
            Subject::NewFlow(new) => *new,
            Subject::Translated => false,
            Subject::Local => probe.local,
            Subject::Unknown => return Answer::Maybe,
        };
        match holds != self.negated {
            true => Answer::Yes,
            false => Answer::No,
        }
    }

    fn interface_answer(&self, names: &[String], inputs: &[String]) -> Answer {
        let holding = inputs
            .iter()
            .filter(|input| names.iter().any(|name| is_named(name, input)) != self.negated)
            .count();
        match holding {
            _ if inputs.is_empty() => Answer::Maybe,
            0 => Answer::No,
            all if all == inputs.len() => Answer::Yes,
            _ => Answer::Maybe,
        }
    }
}

fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// Number of an IP protocol by name or number.
fn protocol_by_name(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(libc::IPPROTO_TCP as u8),
        "udp" => Some(libc::IPPROTO_UDP as u8),
        "icmp" => Some(libc::IPPROTO_ICMP as u8),
        "icmpv6" | "ipv6-icmp" => Some(libc::IPPROTO_ICMPV6 as u8),
        "sctp" => Some(libc::IPPROTO_SCTP as u8),
        "udplite" => Some(libc::IPPROTO_UDPLITE as u8),
        "esp" => Some(libc::IPPROTO_ESP as u8),
        "ah" => Some(libc::IPPROTO_AH as u8),
        "gre" => Some(libc::IPPROTO_GRE as u8),
        "dccp" => Some(libc::IPPROTO_DCCP as u8),
        number => number.parse().ok(),
    }
}

/// First and last address of a subnet.
fn subnet(address: IpAddr, prefix: u8) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.min(32)))
                .unwrap_or(0);
            let first = ip.to_bits() & mask;
            let last = first | !mask;
            (IpAddr::V4(first.into()), IpAddr::V4(last.into()))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.min(128)))
                .unwrap_or(0);
            let first = ip.to_bits() & mask;
            let last = first | !mask;
            (IpAddr::V6(first.into()), IpAddr::V6(last.into()))
        }
    }
}

/// Whether a subnet contains an address.
pub(super) fn contains(address: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    let (first, last) = subnet(address, prefix);
    (first..=last).contains(&ip)
}
