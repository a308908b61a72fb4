//! nft DNAT rules in shifter's place: a scenario that passes over them is
//! sound, so that what fails over shifter is shifter's.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result, bail};
use shifter::model::Weight;

use crate::{
    mover::Service,
    topology::{Family, Lab, Side},
};

/// DNAT by random weight; conntrack keeps established flows where they are.
#[derive(Debug)]
pub struct StandIn<'lab> {
    lab: &'lab Lab,
    services: Vec<Service>,
}

/// Weights are counted in millionths.
const ONE: f64 = 1e6;

impl<'lab> StandIn<'lab> {
    /// A stand-in without services.
    pub fn start(lab: &'lab Lab) -> Self {
        Self {
            lab,
            services: Vec::new(),
        }
    }

    /// Adds services, or replaces those of the same name.
    pub fn apply(&mut self, services: &[Service]) -> Result<()> {
        for service in services {
            self.services.retain(|old| old.name != service.name);
            self.services.push(service.clone());
        }
        self.load()
    }

    /// Sets green's weight.
    pub fn shift(&mut self, service: &str, green: &str) -> Result<()> {
        let service = self
            .services
            .iter_mut()
            .find(|s| s.name == service)
            .with_context(|| format!("no service {service}"))?;
        green.clone_into(&mut service.green_weight);
        self.load()
    }

    fn load(&self) -> Result<()> {
        // The chain stays, or conntrack would forget what it tracks.
        let mut script = String::new();
        for family in ["ip", "ip6"] {
            // A rule that nothing meets: conntrack tracks only where one could translate.
            let nowhere = match family {
                "ip" => "ip daddr 255.255.255.255 tcp dport 9 dnat to 10.255.255.255:9",
                _ => "ip6 daddr ff0e::9 tcp dport 9 dnat to [fdff::9]:9",
            };
            let mut rules = format!("add rule {family} standin pre {nowhere}\n");
            for service in &self.services {
                if service.vip.is_ipv4() == (family == "ip") {
                    rules += &self.rules_of(service, family)?;
                }
            }
            // Writing into a String cannot fail.
            let _ = write!(
                script,
                "add table {family} standin\n\
                 add chain {family} standin pre {{ type nat hook prerouting priority dstnat - 10; }}\n\
                 flush chain {family} standin pre\n{rules}"
            );
        }
        self.lab.host.nft(&script)
    }

    fn rules_of(&self, service: &Service, family: &str) -> Result<String> {
        let share = service.green_weight.parse::<Weight>()?.share();
        let below = (share * ONE).round();
        let draw = match service.affinity {
            "flow" => format!("numgen random mod {ONE}"),
            "client" => format!("jhash {family} saddr mod {ONE} seed 0x5f1d"),
            other => bail!("the stand-in knows no affinity {other:?}"),
        };
        let (Some(blue), Some(green)) = (service.blue.first(), service.green.first()) else {
            bail!(
                "the stand-in wants a backend in each pool of {}",
                service.name
            );
        };
        let (blue, green) = (self.behind(*blue), self.behind(*green));
        let meets = format!(
            "{family} daddr {} {} dport {}",
            service.vip.ip(),
            service.protocol,
            service.vip.port()
        );
        let add = format!("add rule {family} standin pre");
        let mut rules = String::new();
        if below >= ONE {
            let _ = writeln!(rules, "{add} {meets} dnat to {green}");
        } else if below > 0.0 {
            let _ = writeln!(rules, "{add} {meets} {draw} < {below} dnat to {green}");
        }
        if blue != service.vip {
            let _ = writeln!(rules, "{add} {meets} dnat to {blue}");
        }
        Ok(rules)
    }

    /// Where a published port leads, because nft translates a packet once only.
    fn behind(&self, backend: SocketAddr) -> SocketAddr {
        let lab = self.lab;
        Side::BOTH
            .into_iter()
            .flat_map(|side| Family::BOTH.map(|family| (side, family)))
            .find(|(side, family)| lab.backend(*side, *family) == backend)
            .filter(|(_, family)| backend != lab.vip(*family))
            .map_or(backend, |(side, family)| lab.listen(side, family))
    }
}
