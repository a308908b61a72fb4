//! Shifter comes to a busy server and goes again, and nobody notices.

use std::{io, thread::JoinHandle, time::Duration};

use shifter_tests::{
    agent::Settings,
    command::eventually,
    mover::{Mover, Service},
    need,
    need::scaled,
    stat,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        bulk::{self, BulkReport},
        requests::Requests,
        server,
        storm::Storm,
    },
};

const TRANSFERS: usize = 200;
/// Bytes of each transfer, and bytes a second: 16 s, longer than all the rest.
const BYTES: u64 = 1 << 20;
const RATE: u32 = 64 << 10;

/// What is under way before shifter comes: transfers, and UDP flows.
struct Busy {
    transfers: Vec<JoinHandle<io::Result<BulkReport>>>,
    storm: Storm,
}

impl Busy {
    fn start(lab: &Lab) -> Self {
        let vips = Family::BOTH.map(|family| lab.vip(family));
        let transfers = bulk::start_many(&lab.client, &vips, TRANSFERS, BYTES, RATE).unwrap();
        let storm = Storm::answered(lab, 50, 50, 10).unwrap();
        Self { transfers, storm }
    }

    fn assert_untouched(self, what: &str) {
        let report = self.storm.finish().unwrap();
        report.assert_untouched(what);
        let blue = Side::Blue.identity();
        assert_eq!(report.udp_by_identity.get(&blue), Some(&50), "{what}");
        for transfer in self.transfers {
            let report = transfer.join().unwrap();
            let report = report.unwrap_or_else(|error| panic!("{what}: a transfer: {error}"));
            report.assert_intact(what, BYTES);
            assert_eq!(report.identity, blue, "{what}");
        }
    }
}

fn takeover(placement: Placement, hook: &'static str) {
    let what = format!("{placement:?} under {hook}");
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let busy = Busy::start(&lab);
    let mut mover = Mover::start(&lab, Settings::hook(hook).with_settle(2)).unwrap();
    let services = Service::all_four(&lab);
    let share: f64 = 0.1;
    if Mover::is_stand_in() {
        // Conntrack has to see what is under way before a rule draws lots.
        mover.apply(&services).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }
    let weighted: Vec<Service> = services
        .iter()
        .map(|service| service.clone().with_green("10%"))
        .collect();
    mover.apply(&weighted).unwrap();
    let vips = Family::BOTH.map(|family| lab.vip(family));
    let requests = Requests::start(&lab.client, &vips, 4, 800).unwrap();
    std::thread::sleep(scaled(Duration::from_secs(4), Duration::from_secs(6)));
    let tally = requests.finish().unwrap();
    assert_eq!(tally.failures, 0, "{what}: {:?}", tally.errors);
    let green = tally.by_identity.get(&Side::Green.identity()).copied();
    stat::assert_share(
        &what,
        green.unwrap_or(0),
        tally.answered,
        share,
        stat::FRESH_SEEDS,
    );
    for service in &services {
        mover.shift(&service.name, "0%").unwrap();
    }
    if let Some(agent) = mover.agent() {
        let empty = eventually(Duration::from_secs(30), || {
            services
                .iter()
                .all(|service| agent.carried(&service.name).unwrap()[1] == 0)
        });
        assert!(empty, "{what}: green still carries flows");
        agent.done(&["detach"]).unwrap();
    }
    busy.assert_untouched(&what);
}

#[test]
fn a_server_on_the_vip_is_taken_over_and_given_back_under_tc() {
    need!();
    takeover(Placement::Vip, "tc");
}

#[test]
fn a_server_on_the_vip_is_taken_over_and_given_back_under_xdp() {
    need!();
    takeover(Placement::Vip, "xdp");
}

#[test]
fn a_published_container_is_taken_over_and_given_back_under_tc() {
    need!();
    takeover(Placement::VipPublished, "tc");
}

#[test]
fn a_published_container_is_taken_over_and_given_back_under_xdp() {
    need!();
    takeover(Placement::VipPublished, "xdp");
}
