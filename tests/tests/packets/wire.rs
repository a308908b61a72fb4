//! What a trial cannot show: frames that come in by an interface, where the
//! kernel has taken the VLAN tag out before tc sees them.

use std::time::Duration;

use shifter::datapath::{Datapath as _, attach::Ingress};
use shifter_tests::{
    command::eventually,
    need,
    packet::{ACK, Packet, SYN},
    scene::Scene,
};

use crate::world::*;

const NEAR: u32 = 90;
const WIRE: u32 = 91;

/// Puts a frame on an interface.
fn send(ifindex: u32, frame: &[u8]) {
    // SAFETY: plain system calls; the address is whole and outlives the call.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex.cast_signed();
        let sent = libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        );
        libc::close(socket);
        assert_eq!(sent, frame.len() as isize);
    }
}

fn count(scene: &Scene, reason: &str) -> u64 {
    let counts = scene.datapath.verdicts().unwrap();
    let count = counts
        .iter()
        .find(|count| count.hook == "tc" && count.reason == reason);
    count.map_or(0, |count| count.packets)
}

/// Packets that egress has looked at.
fn seen_at_egress(scene: &Scene) -> u64 {
    let counts = scene.datapath.verdicts().unwrap();
    let at_egress = counts.iter().filter(|count| count.hook == "egress");
    at_egress.map(|count| count.packets).sum()
}

#[test]
fn a_tag_that_lies_beside_the_frame_keeps_it_from_being_redirected() {
    need!();
    world(|scene| {
        scene.ip(&format!(
            "link add near index {NEAR} type veth peer name wire index {WIRE}"
        ));
        scene.ip("link set near up");
        scene.ip("link set wire up");
        let attached = scene
            .datapath
            .attach_ingress("near", NEAR, Ingress::Tc, "a test");
        attached.unwrap();
        let case = tcp4();
        let packet = Packet::tcp(case.client, case.vip, SYN);
        let seen = |reason| eventually(Duration::from_secs(5), || count(scene, reason) == 1);

        send(WIRE, &packet.clone().tagged(&[([0x81, 0], 5)]).frame());
        assert!(seen("forward_kernel"), "handed to the kernel");
        assert_eq!(count(scene, "forward_redirect"), 0);
        send(WIRE, &packet.frame());
        assert!(seen("forward_redirect"), "without a tag it is redirected");
    });
}

#[test]
fn what_ingress_redirects_is_not_looked_at_again_on_its_way_out() {
    need!();
    world(|scene| {
        scene.ip(&format!(
            "link add near index {NEAR} type veth peer name wire index {WIRE}"
        ));
        scene.ip(&format!("link add out index {OUT} type veth peer name far"));
        for link in ["near", "wire", "out", "far"] {
            // Nothing of the kernel's own shall leave there.
            scene.ip(&format!("link set {link} addrgenmode none"));
            scene.ip(&format!("link set {link} up"));
        }
        scene.datapath.attach_egress("out", OUT).unwrap();
        let attached = scene
            .datapath
            .attach_ingress("near", NEAR, Ingress::Tc, "a test");
        attached.unwrap();
        let case = tcp4();
        let before = seen_at_egress(scene);

        send(WIRE, &Packet::tcp(case.client, case.vip, SYN).frame());
        let is_redirected = || count(scene, "forward_redirect") == 1;
        assert!(eventually(Duration::from_secs(5), is_redirected));
        // What else leaves there, behind it, is looked at: a reply of a flow that is not.
        let other = Packet::tcp(case.backend, routed_tcp4().client, SYN | ACK);
        send(OUT, &other.frame());
        assert!(eventually(Duration::from_secs(5), || seen_at_egress(scene) > before));
        assert_eq!(
            seen_at_egress(scene),
            before + 1,
            "the redirected one is not counted"
        );
    });
}
