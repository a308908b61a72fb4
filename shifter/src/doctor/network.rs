//! Interfaces, settings and packet filters of the host.

use std::{net::IpAddr, sync::Arc};

use super::{Finding, Hook, Wanted, choose_hook};
use crate::network::{Link, Network, forwarding_off, sysctl};

/// Looks at the network of the namespace that this thread is in.
pub(super) fn check(wanted: Option<&Wanted>, findings: &mut Vec<Finding>) {
    let attached = wanted.map_or_else(Vec::new, |wanted| wanted.interfaces.clone());
    let network = match Network::start(attached) {
        Ok(network) => network,
        Err(error) => {
            findings.push(Finding::error(
                format!("the network cannot be read: {error}"),
                "run doctor as root on the host itself",
            ));
            return;
        }
    };
    let default = Wanted::default();
    let wanted = wanted.unwrap_or(&default);
    let interfaces = match wanted.interfaces.is_empty() {
        true => candidates(&network),
        false => wanted.interfaces.clone(),
    };
    for name in &interfaces {
        interface(&network, name, wanted, findings);
    }
    forwarding(findings);
    for name in &interfaces {
        findings.extend(reverse_path(name, interfaces.len()));
    }
    conntrack(findings);
    if let Some(problem) = network.filter_problem() {
        findings.push(Finding::warning(
            format!("the packet filter is not known whole: {problem}"),
            "run doctor as root, and see that nft (or iptables-save) works",
        ));
    }
    services(&network, wanted, findings);
    findings.push(Finding::ok(
        "connections from this host itself are not shifted: they do not cross an interface",
    ));
}

/// Interfaces that clients may come in by, where none is configured.
fn candidates(network: &Network) -> Vec<String> {
    let links = network.links().into_iter();
    links
        .filter(|link| link.up && !link.loopback && link.mac.is_some() && link.master.is_none())
        .map(|link| link.name)
        .collect()
}

fn interface(network: &Arc<Network>, name: &str, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let Some(mut link) = network.link(name) else {
        let known: Vec<String> = network.links().into_iter().map(|link| link.name).collect();
        findings.push(Finding::error(
            format!("interface {name:?} does not exist"),
            format!("name one of {} in [agent] interfaces", known.join(", ")),
        ));
        return;
    };
    if !link.up {
        findings.push(Finding::warning(
            format!("interface {name} is down"),
            format!("ip link set {name} up"),
        ));
    } else if !link.running {
        findings.push(Finding::warning(
            format!("interface {name} has no carrier"),
            "see the cable, or the other end of it",
        ));
    }
    if let Some(slot) = link.xdp
        && wanted.own_programs.contains(&slot.program_id)
    {
        link.xdp = None;
    }
    hook(&link, wanted.hook, findings);
}

/// Which hook the interface gets, and what that brings.
fn hook(link: &Link, asked: Hook, findings: &mut Vec<Finding>) {
    let name = &link.name;
    let (hook, why) = choose_hook(link, asked);
    let driver = driver(name).or_else(|| link.kind.clone());
    let driver = driver.map_or_else(String::new, |driver| format!(" ({driver})"));
    match link.xdp {
        Some(slot) if hook == Hook::Xdp => {
            let id = slot.program_id;
            findings.push(Finding::error(
                format!("the XDP slot of {name} is taken by program {id}, and hook = \"xdp\" needs it"),
                format!("set hook = \"tc\" (or auto), or free the slot: bpftool prog show id {id} says whose it is, ip link set dev {name} xdp off"),
            ));
        }
        _ => findings.push(Finding::ok(format!(
            "interface {name}{driver}, MTU {}: hook {hook}, because {why}",
            link.mtu
        ))),
    }
    if hook == Hook::Xdp && link.kind.as_deref() == Some("veth") {
        findings.push(Finding::warning(
            format!("{name} is a veth with XDP: packets of senders on this host leave without a checksum and would arrive broken"),
            format!("on the other end of {name}: ethtool -K DEVICE tx off; or set hook = \"tc\""),
        ));
    }
}

/// Driver of a hardware interface.
fn driver(name: &str) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

fn forwarding(findings: &mut Vec<Finding>) {
    let families: [(IpAddr, &str); 2] = [
        (IpAddr::from([0; 4]), "IPv4"),
        (IpAddr::from([0u16; 8]), "IPv6"),
    ];
    for (any, family) in families {
        findings.push(match forwarding_off(any) {
            None => Finding::ok(format!("{family} is forwarded")),
            Some(setting) => Finding::warning(
                format!("{family} is not forwarded: {family} backends in containers and on other hosts get nothing; those on this host do"),
                format!("sysctl -w {setting}=1, if there are such backends"),
            ),
        });
    }
}

/// The stricter of the two settings is in force (Documentation/networking/ip-sysctl.rst).
fn reverse_path(name: &str, interfaces: usize) -> Option<Finding> {
    // A dot in a name would be read as a path.
    let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    let of_interface = std::fs::read_to_string(path).ok()?;
    let of_all = sysctl("net.ipv4.conf.all.rp_filter")?;
    let strict = of_interface.trim().max(of_all.as_str()) == "1";
    match (strict, interfaces) {
        (false, _) => None,
        (true, 0 | 1) => Some(Finding::ok(format!(
            "rp_filter is strict on {name}: right while the way back to every client leaves by it"
        ))),
        (true, _) => Some(Finding::warning(
            format!(
                "rp_filter is strict on {name}: the kernel drops packets of clients whose way back leaves by another interface"
            ),
            format!("where ways differ: sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
        )),
    }
}

fn conntrack(findings: &mut Vec<Finding>) {
    let number = |name: &str| {
        sysctl(&format!("net.netfilter.{name}"))?
            .parse::<u64>()
            .ok()
    };
    let (Some(count), Some(limit)) = (number("nf_conntrack_count"), number("nf_conntrack_max"))
    else {
        return;
    };
    findings.push(if count * 10 > limit * 9 {
        Finding::warning(
            format!("conntrack holds {count} of {limit} entries: new flows to containers are dropped when it is full"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit * 2),
        )
    } else {
        Finding::ok(format!("conntrack is there and holds {count} of {limit} entries"))
    });
}

/// VIPs and backends that were named.
fn services(network: &Network, wanted: &Wanted, findings: &mut Vec<Finding>) {
    for vip in &wanted.vips {
        let ip = vip.addr.ip();
        if !network.is_local(ip) {
            let prefix = if ip.is_ipv4() { 32 } else { 128 };
            let interface = network.interface_for(ip).unwrap_or_else(|| "lo".into());
            findings.push(Finding::error(
                format!("VIP {vip} is not an address of this host"),
                format!("ip addr add {ip}/{prefix} dev {interface}, or vip_routed = true"),
            ));
        }
        if network.vip_is_translated(vip) {
            findings.push(Finding::warning(
                format!("conntrack translates VIP {vip} (DNAT, as for a published container port): an attach keeps its connections only while the live pool is the VIP itself"),
                format!("make {} the only backend of the live pool, and take the other version as the candidate", vip.addr),
            ));
        }
    }
    for (backend, protocol) in &wanted.backends {
        for obstacle in network.backend_obstacles(*backend, *protocol) {
            findings.push(Finding::warning(obstacle.what, obstacle.remedy));
        }
    }
}
