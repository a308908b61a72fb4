//! Placements asked for anew, and requests that run at the same time.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use super::rig::{Rig, context, other, web};
use crate::{
    datapath::Placement,
    model::PoolName,
    reconcile::{Controller as _, reconciler::lock},
};

/// Makes the next question to the host wait: tells when it is asked, and goes
/// on when told.
fn gate(rig: &Rig) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (asked, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    *lock(&rig.facts.gate) = Some(Box::new(move || {
        asked.send(()).unwrap();
        may_go_on.recv().unwrap();
    }));
    (is_asked, go_on)
}

#[test]
fn a_slow_host_delays_neither_a_shift_nor_a_rollback() {
    let rig = Rig::with_web();
    let green = "10.0.1.1:8443".parse().unwrap();
    lock(&rig.facts.placements).insert(green, Placement::Host);
    let (is_asked, go_on) = gate(&rig);
    let reconciler = Arc::clone(&rig.reconciler);
    let refresh = thread::spawn(move || reconciler.refresh_placements());
    is_asked.recv().unwrap();
    // The host has not answered, and does not before both are done.
    rig.shift("50%").unwrap();
    assert_eq!(rig.green(), "50%");
    rig.rollback(0).unwrap();
    assert_eq!(rig.green(), "0%");
    go_on.send(()).unwrap();
    refresh.join().unwrap();
    let id = rig.backend("10.0.1.1:8443");
    let placement = rig.datapath.with(|k| k.backends[&id].placement);
    assert_eq!(placement, Placement::Host);
    assert_eq!(
        rig.datapath
            .with(|k| k.services[&0].local_backends[1].clone()),
        [id]
    );
}

#[test]
fn a_slow_host_asked_for_an_apply_or_a_plan_delays_neither_a_shift_nor_a_rollback() {
    for is_plan in [false, true] {
        let rig = Rig::with_web();
        let (is_asked, go_on) = gate(&rig);
        let reconciler = Arc::clone(&rig.reconciler);
        let slow = thread::spawn(move || {
            let api = [other("api", 11)];
            match is_plan {
                true => reconciler.plan(&api).map(drop),
                false => reconciler.apply(&api, &context()).map(drop),
            }
        });
        is_asked.recv().unwrap();
        // The host has not answered, and does not before both are done.
        rig.shift("50%").unwrap();
        rig.rollback(0).unwrap();
        assert_eq!(rig.green(), "0%");
        assert!(rig.reconciler.get("api").is_err());
        go_on.send(()).unwrap();
        slow.join().unwrap().unwrap();
        assert_eq!(rig.reconciler.get("api").is_ok(), !is_plan);
    }
}

#[test]
fn what_is_wrong_in_itself_is_refused_without_asking_the_host() {
    let rig = Rig::with_web();
    let (is_asked, _go_on) = gate(&rig);
    let mut spec = other("api", 11);
    spec.blue_pool[0].addr = "127.0.0.1:8443".parse().unwrap();
    rig.apply(&[spec]).unwrap_err();
    assert!(is_asked.try_recv().is_err());
}

#[test]
fn an_apply_asks_once_for_what_its_services_share() {
    let rig = Rig::with_web();
    let before = rig.facts.questions();
    rig.apply(&[other("api", 11), other("third", 12)]).unwrap();
    // Two backends and two VIPs, each once as an address, and each VIP once more.
    assert_eq!(rig.facts.questions() - before, 6);
}

#[test]
fn a_backend_named_during_a_refresh_is_where_the_host_says_after_it() {
    let rig = Rig::with_web();
    let (is_asked, go_on) = gate(&rig);
    let reconciler = Arc::clone(&rig.reconciler);
    let refresh = thread::spawn(move || reconciler.refresh_placements());
    is_asked.recv().unwrap();
    let mut spec = other("api", 11);
    spec.blue_pool[0].addr = "10.0.7.1:8443".parse().unwrap();
    let reconciler = Arc::clone(&rig.reconciler);
    let apply = thread::spawn(move || reconciler.apply(&[spec], &context()).map(drop));
    let addr = "10.0.7.1:8443".parse().unwrap();
    lock(&rig.facts.placements).insert(addr, Placement::Host);
    go_on.send(()).unwrap();
    refresh.join().unwrap();
    apply.join().unwrap().unwrap();
    let id = rig.backend("10.0.7.1:8443");
    let placement = rig.datapath.with(|k| k.backends[&id].placement);
    assert_eq!(placement, Placement::Host);
}

#[test]
fn an_answer_for_an_address_that_is_gone_is_dropped() {
    let rig = Rig::with_web();
    let old = rig.backend("10.0.1.1:8443");
    lock(&rig.facts.placements).insert("10.0.1.1:8443".parse().unwrap(), Placement::Host);
    let (is_asked, go_on) = gate(&rig);
    let reconciler = Arc::clone(&rig.reconciler);
    let refresh = thread::spawn(move || reconciler.refresh_placements());
    is_asked.recv().unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    rig.reconciler.maintain();
    let mut spec = other("api", 11);
    spec.blue_pool[0].addr = "10.0.7.1:8443".parse().unwrap();
    spec.green_pool[0].addr = "10.0.7.2:8443".parse().unwrap();
    go_on.send(()).unwrap();
    refresh.join().unwrap();
    assert!(!rig.datapath.with(|k| k.backends.contains_key(&old)));
    rig.apply(&[spec]).unwrap();
    let image = rig.datapath.with(|k| k.backends[&old]);
    assert_ne!(image.addr, "10.0.1.1:8443".parse().unwrap());
    assert_eq!(image.placement, Placement::Kernel { netns: None });
}

#[test]
fn overlapping_requests_with_one_id_are_carried_out_once() {
    let rig = Rig::with_web();
    let mut context = context();
    context.request_id = "a".into();
    // While this is held, no request gets beyond its beginning.
    let held = lock(&rig.reconciler.core);
    let requests: Vec<_> = (0..2)
        .map(|_| {
            let (reconciler, context) = (Arc::clone(&rig.reconciler), context.clone());
            thread::spawn(move || reconciler.promote("web", &context).unwrap())
        })
        .collect();
    while rig.reconciler.answered.begun() < 2 {
        thread::yield_now();
    }
    drop(held);
    let receipts: Vec<_> = requests.into_iter().map(|r| r.join().unwrap()).collect();
    assert_eq!(receipts[0], receipts[1]);
    assert_eq!(
        rig.live(),
        PoolName::Green,
        "a second promote takes it back"
    );
}

#[test]
fn an_apply_that_comes_again_gets_its_first_answer_unless_it_names_something_else() {
    let rig = Rig::with_web();
    let mut context = context();
    context.request_id = "a".into();
    let mut spec = web();
    spec.green = "5%".parse().unwrap();
    let first = rig.reconciler.apply(&[spec.clone()], &context).unwrap();
    rig.shift("50%").unwrap();
    let again = rig.reconciler.apply(&[spec.clone()], &context).unwrap();
    assert_eq!(first, again);
    assert_eq!(rig.green(), "50%", "it was carried out a second time");
    spec.green = "7%".parse().unwrap();
    rig.reconciler.apply(&[spec], &context).unwrap();
    assert_eq!(rig.green(), "7%");
}

#[test]
fn a_request_that_failed_is_carried_out_when_it_comes_again() {
    let rig = Rig::with_web();
    let mut context = context();
    context.request_id = "a".into();
    rig.disk_full(true);
    rig.reconciler.promote("web", &context).unwrap_err();
    rig.disk_full(false);
    rig.reconciler.promote("web", &context).unwrap();
    assert_eq!(rig.live(), PoolName::Green);
}

#[test]
fn a_packet_filter_that_cannot_be_read_is_loud_and_counts_as_dnat_until_it_can() {
    let rig = Rig::with_web();
    let tell = |problem: Option<&str>| {
        *lock(&rig.facts.filter_problem) = problem.map(str::to_owned);
        rig.reconciler.maintain();
        let loud = rig.reconciler.loud().join("; ");
        let adoption = rig.reconciler.get("web").unwrap().adoption;
        (loud.contains("nft failed: exit status: 1"), adoption)
    };
    assert_eq!(tell(Some("nft failed: exit status: 1")), (true, "refused"));
    let refused = rig.apply(&[other("api", 11)]).unwrap_err().to_string();
    assert!(refused.contains("nft failed: exit status: 1"), "{refused}");
    assert_eq!(tell(None), (false, "single"));
    rig.apply(&[other("api", 11)]).unwrap();
}
