//! Links, addresses and routes of a lab.

use std::thread;

use anyhow::Result;

use super::{Lab, Netns, PUBLISHED_PORT, Placement, SERVER_PORT, Side, VIP_PORT};
use crate::command::run;

/// MSS that the ends announce whatever their own link's MTU is, so that only
/// path MTU discovery can find a small link.
const MSS4: u32 = 1460;
const MSS6: u32 = 1440;

/// Makes every link of the lab.
pub(super) fn connect(lab: &Lab) -> Result<()> {
    for ns in namespaces(lab) {
        prepare(ns)?;
    }
    forwarding(&lab.host)?;
    front(lab)?;
    match lab.options.placement {
        Placement::HostPorts | Placement::Vip => Ok(()),
        Placement::RemoteSame => Ok(()),
        Placement::RemoteOther => remote_other(lab),
        Placement::ContainerVeth => container_veths(lab),
        placement if placement.is_behind_bridge() => {
            container_bridge(lab)?;
            match placement {
                Placement::Container => Ok(()),
                _ => publish(lab),
            }
        }
        _ => unreachable!("every placement is handled above"),
    }
}

fn namespaces(lab: &Lab) -> impl Iterator<Item = &Netns> {
    [&lab.client, &lab.host]
        .into_iter()
        .chain(&lab.blue)
        .chain(&lab.green)
        .chain(&lab.client_router)
        .chain(&lab.backend_net)
}

/// Limits and checks that would get in the way of every scenario.
fn prepare(ns: &Netns) -> Result<()> {
    for (key, value) in [
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        // Where clients and servers share a link, the host's kernel tells each
        // to go to the other directly; DNAT does not survive that.
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("core/somaxconn", "8192"),
        ("ipv4/tcp_max_syn_backlog", "8192"),
        ("ipv4/ip_local_port_range", "10000 65000"),
        ("ipv4/tcp_tw_reuse", "1"),
    ] {
        ns.sysctl(key, value)?;
    }
    Ok(())
}

fn forwarding(ns: &Netns) -> Result<()> {
    ns.sysctl("ipv4/ip_forward", "1")?;
    ns.sysctl("ipv6/conf/all/forwarding", "1")
}

/// A veth pair with the same MTU on both ends, both up.
fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str, mtu: u32) -> Result<()> {
    a.ip(&[
        format!(
            "link add {a_name} mtu {mtu} type veth peer name {b_name} mtu {mtu} netns {}",
            b.name()
        ),
        format!("link set {a_name} up"),
    ])?;
    b.ip(&[format!("link set {b_name} up")])?;
    // A redirect into a veth needs NAPI on its peer, which GRO switches on.
    a.ethtool(a_name, &["gro", "on"])?;
    b.ethtool(b_name, &["gro", "on"])
}

/// Has each flow's packets handled by one CPU, whichever CPU sent them
/// (`Options::one_cpu_a_flow`). Of the interface that packets reach a server by.
fn steer_flows(lab: &Lab, ns: &Netns, interface: &str) -> Result<()> {
    if !lab.options.one_cpu_a_flow {
        return Ok(());
    }
    let cpus = thread::available_parallelism()?.get().min(32);
    let mask = u32::MAX >> (32 - cpus);
    let queues = format!("/sys/class/net/{interface}/queues/rx-*/rps_cpus");
    let script = format!("for queue in {queues}; do echo {mask:x} > $queue || exit 1; done");
    run(ns.command_with_sys("sh").args(["-c", &script]))?;
    Ok(())
}

fn bridge(ns: &Netns, name: &str) -> Result<()> {
    ns.ip(&[
        format!("link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
        format!("link set {name} up"),
    ])
}

fn plug(ns: &Netns, bridge: &str, port: &str) -> Result<()> {
    ns.ip(&[format!("link set {port} master {bridge}")])
}

/// Makes an interface stand for a wire: whole checksums, no segments over MTU.
fn as_wire(lab: &Lab, ns: &Netns, interface: &str) -> Result<()> {
    if lab.options.wire_offloads {
        return Ok(());
    }
    ns.ethtool(interface, &["tx", "off"])
}

fn address(ns: &Netns, interface: &str, v4: &str, v6: &str) -> Result<()> {
    ns.ip(&[
        format!("addr add {v4} dev {interface}"),
        format!("addr add {v6} dev {interface} nodad"),
    ])
}

fn default_route(ns: &Netns, v4: &str, v6: &str) -> Result<()> {
    ns.ip(&[
        format!("route add default via {v4} advmss {MSS4}"),
        format!("route add ::/0 via {v6} advmss {MSS6}"),
    ])
}

/// Client, router and the host's clients' side.
pub(super) fn front(lab: &Lab) -> Result<()> {
    let (host, client) = (&lab.host, &lab.client);
    match (&lab.client_router, &lab.backend_net) {
        (Some(router), _) if lab.options.placement != Placement::RemoteSame => {
            forwarding(router)?;
            veth(client, "c0", router, "r0", lab.options.mtu_client)?;
            veth(host, "h0", router, "r1", lab.options.mtu_front)?;
            as_wire(lab, router, "r1")?;
            address(client, "c0", "10.70.0.2/24", "fd70::2/64")?;
            address(router, "r0", "10.70.0.1/24", "fd70::1/64")?;
            address(router, "r1", "10.71.0.2/24", "fd71::2/64")?;
            default_route(client, "10.70.0.1", "fd70::1")?;
            default_route(router, "10.71.0.1", "fd71::1")?;
            router.ip(&via_client("10.70.0.2", "fd70::2"))?;
        }
        (_, Some(switch)) if lab.options.placement == Placement::RemoteSame => {
            bridge(switch, "br0")?;
            veth(client, "c0", switch, "pc", 1500)?;
            veth(host, "h0", switch, "ph", lab.options.mtu_front)?;
            plug(switch, "br0", "pc")?;
            plug(switch, "br0", "ph")?;
            // What GRO joined on the way is cut again here, checksums whole.
            as_wire(lab, switch, "ph")?;
            address(client, "c0", "10.71.0.2/24", "fd71::2/64")?;
            default_route(client, "10.71.0.1", "fd71::1")?;
            servers_behind(lab, switch, "br0", "10.72.0.1", "fd72::1")?;
        }
        _ => {
            veth(client, "c0", host, "h0", lab.options.mtu_front)?;
            address(client, "c0", "10.71.0.2/24", "fd71::2/64")?;
            default_route(client, "10.71.0.1", "fd71::1")?;
        }
    }
    as_wire(lab, client, "c0")?;
    if lab.blue.is_none() {
        steer_flows(lab, host, "h0")?;
    }
    address(host, "h0", "10.71.0.1/24", "fd71::1/64")?;
    address(host, "h0", "10.71.0.100/32", "fd71::100/128")?;
    if lab.options.placement == Placement::RemoteSame {
        address(host, "h0", "10.72.0.1/24", "fd72::1/64")?;
    }
    if lab.client_router.is_some() {
        host.ip(&[
            format!("route add 10.70.0.0/24 via 10.71.0.2 advmss {MSS4}"),
            format!("route add fd70::/64 via fd71::2 advmss {MSS6}"),
        ])?;
    }
    host.ip(&via_client("10.71.0.2", "fd71::2"))?;
    // IPv6 lets a socket bind to an address of a local route only with this.
    client.sysctl("ipv6/ip_nonlocal_bind", "1")?;
    client.ip(&[
        "route replace local 10.82.0.0/16 dev lo".to_owned(),
        "route replace local fd82::/64 dev lo".to_owned(),
    ])
}

/// Routes to the addresses that the client sends from besides its own.
fn via_client(v4: &str, v6: &str) -> Vec<String> {
    vec![
        format!("route add 10.80.0.0/15 via {v4}"),
        format!("route add 10.82.0.0/16 via {v4}"),
        format!("route add fd80::/64 via {v6}"),
        format!("route add fd82::/64 via {v6}"),
    ]
}

/// Blue and green on a bridge of `net`, their default route given.
fn servers_behind(lab: &Lab, net: &Netns, bridge: &str, via4: &str, via6: &str) -> Result<()> {
    for (side, last) in [(Side::Blue, 21), (Side::Green, 22)] {
        let ns = lab.server_ns(side);
        let port = format!("p{}", side.name());
        veth(ns, "b0", net, &port, lab.options.mtu_backend)?;
        steer_flows(lab, ns, "b0")?;
        plug(net, bridge, &port)?;
        as_wire(lab, ns, "b0")?;
        address(
            ns,
            "b0",
            &format!("10.72.0.{last}/24"),
            &format!("fd72::{last:x}/64"),
        )?;
        default_route(ns, via4, via6)?;
    }
    Ok(())
}

fn remote_other(lab: &Lab) -> Result<()> {
    let Some(net) = &lab.backend_net else {
        unreachable!("remote placements have a net namespace")
    };
    let host = &lab.host;
    bridge(net, "br0")?;
    veth(host, "h1", net, "ph", lab.options.mtu_back)?;
    as_wire(lab, net, "ph")?;
    if lab.options.backend_router {
        forwarding(net)?;
        address(host, "h1", "10.75.0.1/24", "fd75::1/64")?;
        address(net, "ph", "10.75.0.2/24", "fd75::2/64")?;
        address(net, "br0", "10.72.0.254/24", "fd72::254/64")?;
        default_route(net, "10.75.0.1", "fd75::1")?;
        host.ip(&[
            "route add 10.72.0.0/24 via 10.75.0.2".to_owned(),
            "route add fd72::/64 via fd75::2".to_owned(),
        ])?;
        servers_behind(lab, net, "br0", "10.72.0.254", "fd72::254")
    } else {
        plug(net, "br0", "ph")?;
        address(host, "h1", "10.72.0.1/24", "fd72::1/64")?;
        servers_behind(lab, net, "br0", "10.72.0.1", "fd72::1")
    }
}

fn container_bridge(lab: &Lab) -> Result<()> {
    let host = &lab.host;
    bridge(host, "cbr0")?;
    address(host, "cbr0", "10.73.0.1/24", "fd73::1/64")?;
    for (side, last) in [(Side::Blue, 21), (Side::Green, 22)] {
        let ns = lab.server_ns(side);
        let port = format!("v{}", side.name());
        veth(ns, "eth0", host, &port, lab.options.mtu_backend)?;
        steer_flows(lab, ns, "eth0")?;
        plug(host, "cbr0", &port)?;
        address(
            ns,
            "eth0",
            &format!("10.73.0.{last}/24"),
            &format!("fd73::{last:x}/64"),
        )?;
        default_route(ns, "10.73.0.1", "fd73::1")?;
    }
    Ok(())
}

fn container_veths(lab: &Lab) -> Result<()> {
    let host = &lab.host;
    for (side, net, last) in [(Side::Blue, 1, 21), (Side::Green, 2, 22)] {
        let ns = lab.server_ns(side);
        let port = format!("v{}", side.name());
        veth(ns, "eth0", host, &port, lab.options.mtu_backend)?;
        steer_flows(lab, ns, "eth0")?;
        address(
            host,
            &port,
            &format!("10.74.{net}.1/24"),
            &format!("fd74:{net}::1/64"),
        )?;
        address(
            ns,
            "eth0",
            &format!("10.74.{net}.{last}/24"),
            &format!("fd74:{net}::{last:x}/64"),
        )?;
        default_route(ns, &format!("10.74.{net}.1"), &format!("fd74:{net}::1"))?;
    }
    Ok(())
}

/// What a container engine does for a published port: DNAT on the way in,
/// masquerade on the way out. `VipPublished` publishes blue on the VIP.
fn publish(lab: &Lab) -> Result<()> {
    let mut rules4 = String::new();
    let mut rules6 = String::new();
    for (i, last) in [21, 22].into_iter().enumerate() {
        let (server, published) = (SERVER_PORT[i], PUBLISHED_PORT[i]);
        let at_vip = lab.options.placement == Placement::VipPublished && i == 0;
        let (v4, v6, port) = if at_vip {
            ("10.71.0.100", "fd71::100", VIP_PORT)
        } else {
            ("10.71.0.1", "fd71::1", published)
        };
        for protocol in ["tcp", "udp"] {
            rules4 +=
                &format!("ip daddr {v4} {protocol} dport {port} dnat to 10.73.0.{last}:{server}\n");
            rules6 += &format!(
                "ip6 daddr {v6} {protocol} dport {port} dnat to [fd73::{last:x}]:{server}\n"
            );
        }
    }
    lab.host.nft(&format!(
        "table ip publish {{
           chain pre {{ type nat hook prerouting priority dstnat;\n{rules4} }}
           chain post {{ type nat hook postrouting priority srcnat;
             ip saddr 10.73.0.0/24 oifname != \"cbr0\" masquerade
           }}
         }}
         table ip6 publish {{
           chain pre {{ type nat hook prerouting priority dstnat;\n{rules6} }}
           chain post {{ type nat hook postrouting priority srcnat;
             ip6 saddr fd73::/64 oifname != \"cbr0\" masquerade
           }}
         }}\n"
    ))
}
