//! The XDP slot, taken by somebody else and freed again.

use std::{path::Path, process::Command, thread, time::Duration};

use shifter_tests::{
    agent::{Agent, Settings},
    blocker::pin_program,
    command::{eventually, run},
    need,
    topology::{Lab, Placement, Side},
    traffic::server,
};

use crate::{
    goes_on, rounds, start, storm, turn,
    watch::{Watch, index_of},
};

/// Takes our link off and puts another's program in. Netlink alone cannot: the
/// kernel lets nobody replace a link, whatever the force.
fn take(lab: &Lab, program: &Path) {
    let link = lab.bpffs().join("shifter/links");
    let link = link.join(format!("{}-xdp", index_of(&lab.host, "h0")));
    // The agent's pass may come between the two and put ours back.
    let taken = eventually(Duration::from_secs(5), || {
        let mut detach = Command::new("bpftool");
        detach.args(["link", "detach", "pinned"]).arg(&link);
        let mut set = lab.host.command("ip");
        set.args(["-force", "link", "set", "dev", "h0", "xdpdrv", "pinned"]);
        run(&mut detach).is_ok() && run(set.arg(program)).is_ok()
    });
    assert!(taken, "nobody can take the slot");
}

fn free(lab: &Lab) {
    let mut set = lab.host.command("ip");
    run(set.args(["link", "set", "dev", "h0", "xdpdrv", "off"])).unwrap();
}

/// State and program id at ingress.
fn ingress(watch: &mut Watch<'_>) -> (String, u32) {
    let interface = watch.interface("h0").unwrap();
    let program = &interface.programs[0];
    (program.state.clone(), program.id)
}

fn is_said(agent: &Agent<'_>) -> usize {
    let words = "another's program has taken the place of ours";
    agent.log().matches(words).count()
}

#[test]
fn a_slot_that_another_takes_is_loud_at_once_not_fought_over_and_used_when_it_is_free() {
    need!("bpftool");
    let _turn = turn();
    // All flows stay on the VIP: they need no program.
    let lab = Lab::new(Placement::Vip).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("xdp"), "0%");
    let program = lab.bpffs().join("another");
    pin_program(&program).unwrap();
    let storm = storm(&lab, 20);
    let mut watch = Watch::start("slot", &lab, &agent);
    for round in 1..=rounds() {
        watch.followed(
            "XDP slot taken",
            "XdpChanged",
            || take(&lab, &program),
            |watch| watch.is_loud("which this agent did not load") && ingress(watch).0 == "other",
        );
        assert_eq!(is_said(&agent), round as usize, "{}", agent.log());
        let theirs = ingress(&mut watch);
        if round == 1 {
            thread::sleep(Duration::from_millis(2_500));
            assert_eq!(ingress(&mut watch), theirs, "nobody fights over it");
            goes_on(&storm);
        }
        watch.followed(
            "XDP slot freed",
            "XdpChanged",
            || free(&lab),
            |watch| watch.is_whole("h0") && !watch.is_loud("interface h0"),
        );
        goes_on(&storm);
    }
    let report = storm.finish().unwrap();
    report.assert_untouched("the XDP slot is taken and freed");
    let blue = Side::Blue.identity();
    assert!(report.tcp_by_identity.keys().all(|by| *by == blue));
    watch.finish();
}
