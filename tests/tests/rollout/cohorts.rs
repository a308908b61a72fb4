//! A cohort of two prefixes, one of each family, sees green before anyone else; and no
//! longer once green is found bad.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use shifter_tests::{
    agent::{Agent, Settings},
    mover::{Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::{self, Requests, client_address},
        resetting::Resetting,
        server,
    },
};

use super::{SOON, apply_text, await_state_of, begin_for, state_of};

const BLUE: u8 = Side::Blue.identity();
const GREEN: u8 = Side::Green.identity();

/// For services of either family.
pub const STAFF: &str = "[[service.cohort]]\nname = \"staff\"\n\
                         prefixes = [\"10.82.1.0/24\", \"fd82::100/120\"]\n";
/// Clients of the cohort, and those right beside it and far from it.
const INSIDE: [u16; 3] = [0x100, 0x142, 0x1ff];
const OUTSIDE: [u16; 3] = [0x0ff, 0x200, 0x001];

/// Who answers clients with these numbers.
fn answers(lab: &Lab, to: SocketAddr, clients: &[u16]) -> BTreeSet<u8> {
    let ask = |client: &u16| requests::ask(to, Some(client_address(to, *client))).unwrap();
    lab.client.run(|| clients.iter().map(ask).collect())
}

/// Who answers all of the cohort.
pub fn answers_staff(lab: &Lab, service: &Service) -> u8 {
    let all = answers(lab, service.vip, &INSIDE);
    assert_eq!(all.len(), 1, "{}: {all:?}", service.name);
    *all.first().unwrap()
}

fn services(lab: &Lab) -> [Service; 2] {
    Family::BOTH.map(|family| Service::of(lab, "tcp", family))
}

fn apply(agent: &Agent<'_>, services: &[Service]) {
    let with = |service: &Service| to_toml(std::slice::from_ref(service)) + STAFF;
    apply_text(agent, &services.iter().map(with).collect::<String>());
}

/// The cohort sees green, others blue, and no share of them is given to green.
fn assert_cohort_alone(lab: &Lab, agent: &Agent<'_>, service: &Service) {
    assert_eq!(answers_staff(lab, service), GREEN, "{}", service.name);
    let others = answers(lab, service.vip, &OUTSIDE);
    assert_eq!(others, BTreeSet::from([BLUE]), "{}", service.name);
    let shown = agent.service(&service.name).unwrap();
    assert_eq!(shown["spec"]["green"], "0%", "{shown}");
}

#[test]
fn a_cohort_sees_green_first_and_everyone_when_told_to_advance() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let services = services(&lab);
    apply(&agent, &services);
    let vips = services.each_ref().map(|service| service.vip);
    let everyone = Requests::start(&lab.client, &vips, 2, 100).unwrap();
    for service in &services {
        // Suspended until the rollout has it see green again.
        agent.done(&["rollback", &service.name]).unwrap();
        assert_eq!(answers_staff(&lab, service), BLUE, "{}", service.name);
        let words = "cohort-first --steps 50% --interval 2s";
        begin_for(&agent, &service.name, words);
    }
    for service in &services {
        await_state_of(&agent, &service.name, "holding", SOON);
        assert_cohort_alone(&lab, &agent, service);
    }
    let tally = everyone.tally();
    assert!(tally.answered > 20, "{tally:?}");
    assert!(!tally.by_identity.contains_key(&GREEN), "{tally:?}");
    for service in &services {
        agent.done(&["rollout", "advance", &service.name]).unwrap();
    }
    for service in &services {
        await_state_of(&agent, &service.name, "promoted", SOON);
        let all = answers(&lab, service.vip, &OUTSIDE);
        assert_eq!(all, BTreeSet::from([GREEN]), "{}", service.name);
    }
    let tally = everyone.finish().unwrap();
    assert_eq!(tally.failures, 0, "{:?}", tally.errors);
    assert_eq!(tally.by_identity.len(), 2, "{tally:?}");
}

#[test]
fn a_bad_green_is_taken_back_from_the_cohort_that_saw_it_first() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _blue = server::start(&lab, Side::Blue).unwrap();
    let _green = Family::BOTH.map(|family| Resetting::start(&lab, Side::Green, family, 3));
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let services = services(&lab);
    apply(&agent, &services);
    let vips = services.each_ref().map(|service| service.vip);
    let everyone = Requests::start(&lab.client, &vips, 2, 200).unwrap();
    for service in &services {
        let words = r#"cohort-first --gates [{"judge":"sequential","min_samples":20}]"#;
        begin_for(&agent, &service.name, words);
    }
    for service in &services {
        let begun = Instant::now();
        let mut failed = 0;
        while state_of(&agent, &service.name) != "rolled back" {
            let asked = lab.client.run(|| {
                let from = |client| Some(client_address(service.vip, client));
                let ask = |client| requests::ask(service.vip, from(client));
                (0x100..0x120).map(ask).collect::<Vec<_>>()
            });
            failed += asked.iter().filter(|answer| answer.is_err()).count();
            assert!(begun.elapsed() < Duration::from_secs(60), "{failed} failed");
        }
        assert!(failed > 0);
        let shown = agent.done(&["rollout", "status", &service.name]).unwrap();
        assert!(shown.contains("gate \"sequential\" failed"), "{shown}");
        assert_eq!(answers_staff(&lab, service), BLUE, "{}", service.name);
    }
    let tally = everyone.finish().unwrap();
    assert_eq!(tally.failures, 0, "others saw green: {:?}", tally.errors);
    assert!(!tally.by_identity.contains_key(&GREEN), "{tally:?}");
}
