//! What a trial cannot show: frames that come in by an interface, where the
//! kernel has taken the VLAN tag out before tc sees them.

use std::time::Duration;

use shifter::datapath::{Datapath as _, attach::Ingress};
use shifter_tests::{
    command::eventually,
    need,
    packet::{Packet, SYN},
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
