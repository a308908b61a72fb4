//! What moves the traffic in a scenario: an agent, or its stand-in.

use std::{env, fmt::Write, net::SocketAddr};

use anyhow::Result;

use crate::{
    agent::{Agent, Settings},
    standin::StandIn,
    topology::{Family, Lab, Side},
};

/// A service as a scenario describes it.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub vip: SocketAddr,
    /// "tcp" or "udp".
    pub protocol: &'static str,
    /// "5%", "1/3".
    pub green_weight: String,
    /// "flow", "client", "client/24".
    pub affinity: &'static str,
    /// "hash", "exact".
    pub split: &'static str,
    /// 32 hex digits.
    pub seed: Option<String>,
    pub blue: Vec<SocketAddr>,
    pub green: Vec<SocketAddr>,
}

impl Service {
    /// The lab's two servers behind its VIP, all weight on blue. Named
    /// `tcp4`, `tcp6`, `udp4`, `udp6`.
    pub fn of(lab: &Lab, protocol: &'static str, family: Family) -> Self {
        let digit = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Self {
            name: format!("{protocol}{digit}"),
            vip: lab.vip(family),
            protocol,
            green_weight: "0%".to_owned(),
            affinity: "flow",
            split: "hash",
            seed: None,
            blue: vec![lab.backend(Side::Blue, family)],
            green: vec![lab.backend(Side::Green, family)],
        }
    }

    /// TCP and UDP over IPv4 and IPv6.
    pub fn all_four(lab: &Lab) -> Vec<Self> {
        ["tcp", "udp"]
            .into_iter()
            .flat_map(|protocol| Family::BOTH.map(|family| Self::of(lab, protocol, family)))
            .collect()
    }

    /// With another weight.
    pub fn with_green(mut self, weight: &str) -> Self {
        weight.clone_into(&mut self.green_weight);
        self
    }
}

/// A services file.
pub fn to_toml(services: &[Service]) -> String {
    let mut text = String::new();
    for service in services {
        let list = |addrs: &[SocketAddr]| {
            let quoted: Vec<String> = addrs.iter().map(|addr| format!("\"{addr}\"")).collect();
            quoted.join(", ")
        };
        let seed = service
            .seed
            .as_ref()
            .map(|seed| format!("seed = \"{seed}\"\n"))
            .unwrap_or_default();
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"{}\"\nvip = \"{}/{}\"\nmode = \"nat\"\nlive = \"blue\"\n\
             green = \"{}\"\naffinity = \"{}\"\nsplit = \"{}\"\n{seed}[service.pools]\nblue = [{}]\ngreen = [{}]\n\n",
            service.name,
            service.vip,
            service.protocol,
            service.green_weight,
            service.affinity,
            service.split,
            list(&service.blue),
            list(&service.green),
        );
    }
    text
}

/// Moves traffic by weight.
#[derive(Debug)]
pub enum Mover<'lab> {
    Agent(Box<Agent<'lab>>),
    StandIn(StandIn<'lab>),
}

impl<'lab> Mover<'lab> {
    /// Whether scenarios are to run with nft DNAT rules in shifter's place, to
    /// show that they are sound themselves.
    pub fn is_stand_in() -> bool {
        env::var_os("SHIFTER_TEST_STANDIN").is_some()
    }

    /// Starts an agent on the lab's host, or its stand-in.
    pub fn start(lab: &'lab Lab, settings: Settings) -> Result<Self> {
        if Self::is_stand_in() {
            return Ok(Self::StandIn(StandIn::start(lab)));
        }
        Ok(Self::Agent(Box::new(Agent::start(lab, settings)?)))
    }

    /// Puts services in force.
    pub fn apply(&mut self, services: &[Service]) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.apply(services),
            Self::StandIn(stand_in) => stand_in.apply(services),
        }
    }

    /// Sets green's weight.
    pub fn shift(&mut self, service: &str, green: &str) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.shift(service, green),
            Self::StandIn(stand_in) => stand_in.shift(service, green),
        }
    }

    /// Back to the good split.
    pub fn rollback(&mut self, service: &str) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.done(&["rollback", service]).map(drop),
            Self::StandIn(stand_in) => stand_in.shift(service, "0%"),
        }
    }

    /// The agent, where it is one.
    pub fn agent(&mut self) -> Option<&mut Agent<'lab>> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::StandIn(_) => None,
        }
    }
}
