//! The lab itself: servers answer over the routed path in every placement,
//! so that a scenario that fails is not the lab's doing.

use shifter_tests::{
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{bulk, requests, server},
};

#[test]
fn servers_answer_over_the_routed_path_in_every_placement() {
    need!();
    for placement in Placement::ALL {
        let lab = Lab::new(placement).unwrap();
        let _servers = server::start_both(&lab).unwrap();
        for (side, family) in Side::BOTH
            .into_iter()
            .flat_map(|side| Family::BOTH.map(|family| (side, family)))
        {
            let addr = lab.backend(side, family);
            let what = format!("{placement:?} {side:?} at {addr}");
            let (tcp, udp) = lab
                .client
                .run(|| (requests::ask(addr, None), requests::ask_udp(addr, None)));
            assert_eq!(tcp.expect(&what), side.identity(), "{what}");
            assert_eq!(udp.expect(&what), side.identity(), "{what}");
            let report = bulk::transfer(&lab.client, addr, 1 << 20).expect(&what);
            report.assert_intact(&what, 1 << 20);
            let other = requests::client_address(addr, 7);
            let from_other = lab.client.run(|| requests::ask(addr, Some(other)));
            assert_eq!(from_other.expect(&what), side.identity(), "{what}");
        }
    }
}
