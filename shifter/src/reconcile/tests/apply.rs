//! Apply and plan: refusals, all or nothing, moved shares.

use super::rig::{Rig, context, other, specs, web};
use crate::{
    datapath::Placement,
    model::{BackendState, PoolName, ServiceSpec},
    reconcile::{
        Controller as _,
        controller::{ControlError, WriteContext},
        reconciler::lock,
    },
};

fn refused(rig: &Rig, specs: &[ServiceSpec]) -> String {
    let before = rig.datapath.with(|k| (k.services.clone(), k.publications));
    let error = rig.apply(specs).unwrap_err().to_string();
    let after = rig.datapath.with(|k| (k.services.clone(), k.publications));
    assert_eq!(before, after, "a refused apply changed the kernel");
    error
}

#[test]
fn a_new_service_is_in_the_kernel_and_in_the_store() {
    let rig = Rig::new();
    let receipts = rig.apply(&[web()]).unwrap();
    assert_eq!((receipts[0].generation, receipts[0].unchanged), (1, false));
    assert_eq!(receipts[0].moved_share, 1.0);
    let (image, rings) = rig
        .datapath
        .with(|k| (k.services[&0].clone(), k.rings[&0].clone()));
    assert_eq!(image.vip, web().vip);
    assert_eq!((image.threshold, image.live), (0, PoolName::Blue));
    assert!(image.settle_until_ns > 0 && !image.live_has_vip);
    assert_eq!(rings[0], vec![rig.backend("10.0.0.1:8443"); 127]);
    assert_eq!(rings[1], vec![rig.backend("10.0.1.1:8443"); 127]);
    assert_eq!(image.vip_backend, rig.backend("203.0.113.10:443"));
    assert_eq!(rig.actions(), ["tester apply"]);
}

#[test]
fn the_same_again_is_unchanged_and_makes_no_generation() {
    let rig = Rig::with_web();
    let publications = rig.datapath.with(|k| k.publications);
    let receipts = rig.apply(&[web()]).unwrap();
    assert!(receipts[0].unchanged && receipts[0].generation == 1);
    let mut without_seed = web();
    without_seed.seed = None;
    assert!(rig.apply(&[without_seed]).unwrap()[0].unchanged);
    assert_eq!(rig.datapath.with(|k| k.publications), publications);
}

#[test]
fn a_service_without_a_seed_gets_one_of_its_own() {
    let rig = Rig::new();
    let (mut a, mut b) = (web(), other("api", 11));
    (a.seed, b.seed) = (None, None);
    rig.apply(&[a, b]).unwrap();
    let seeds = rig
        .datapath
        .with(|k| (k.services[&0].seed, k.services[&1].seed));
    assert!(seeds.0 != seeds.1 && seeds.0.0 != [0, 0]);
}

#[test]
fn each_clash_with_other_services_has_its_own_refusal() {
    let rig = Rig::with_web();
    let mut same_vip = other("api", 10);
    assert!(refused(&rig, &[same_vip.clone()]).contains("belongs to service \"web\""));
    same_vip.vip.addr = "203.0.113.11:443".parse().unwrap();
    same_vip.blue_pool[0].addr = "203.0.113.10:443".parse().unwrap();
    assert!(refused(&rig, &[same_vip]).contains("is the VIP of service \"web\""));
    let mut moved = web();
    moved.vip.addr = "203.0.113.12:443".parse().unwrap();
    assert!(
        refused(&rig, &[moved]).contains("its VIP is 203.0.113.10:443/tcp and does not change")
    );
    let mut user = other("api", 11);
    user.blue_pool[0].addr = "203.0.113.20:443".parse().unwrap();
    rig.apply(&[user]).unwrap();
    let text = refused(&rig, &[other("new", 20)]);
    assert!(text.contains("is a backend of service \"api\""), "{text}");
    assert!(refused(&rig, &[]).contains("names no service"));
    assert!(refused(&rig, &[web(), web()]).contains("give each its own"));
}

#[test]
fn a_vip_that_is_not_local_is_refused_with_the_line_that_mends_it() {
    let rig = Rig::new();
    let mut spec = web();
    spec.vip.addr = "198.51.100.7:443".parse().unwrap();
    let text = refused(&rig, std::slice::from_ref(&spec));
    assert!(
        text.contains("`ip addr add 198.51.100.7/32 dev eth0`"),
        "{text}"
    );
    spec.vip_routed = true;
    rig.apply(&[spec]).unwrap();
    let v6 = specs(
        "[[service]]\nname = \"six\"\nvip = \"[2001:db8:1::7]:443/tcp\"\n\
         pools = { blue = [\"[2001:db8::11]:443\"] }\n",
    );
    let text = refused(&rig, &v6);
    assert!(
        text.contains("`ip addr add 2001:db8:1::7/128 dev eth0`"),
        "{text}"
    );
}

#[test]
fn dnat_before_the_vip_is_refused_unless_the_live_pool_holds_the_vip_or_forced() {
    let rig = Rig::new();
    let spec = web();
    lock(&rig.facts.translated).insert(spec.vip.addr);
    let text = refused(&rig, std::slice::from_ref(&spec));
    assert!(
        text.contains("DNAT stands in front of 203.0.113.10:443/tcp"),
        "{text}"
    );
    assert!(text.contains("name 203.0.113.10:443 in blue"), "{text}");
    let mut with_vip = spec.clone();
    with_vip.blue_pool[0].addr = spec.vip.addr;
    rig.apply(&[with_vip]).unwrap();
    assert_eq!(rig.reconciler.get("web").unwrap().adoption, "vip");
    let text = refused(&rig, std::slice::from_ref(&spec));
    assert!(text.contains("DNAT"), "{text}");
    let mut force = context();
    force.force = true;
    let (receipts, _) = rig
        .reconciler
        .apply(std::slice::from_ref(&spec), &force)
        .unwrap();
    assert!(receipts[0].warnings[0].contains("DNAT"));
    assert_eq!(rig.reconciler.get("web").unwrap().adoption, "refused");
    let mut changed = spec;
    changed.green = "5%".parse().unwrap();
    rig.apply(&[changed]).unwrap();
}

#[test]
fn adoption_cases_are_told_apart() {
    let rig = Rig::with_web();
    assert_eq!(rig.reconciler.get("web").unwrap().adoption, "single");
    let mut spec = web();
    spec.blue_pool.push(spec.blue_pool[0]);
    spec.blue_pool[1].addr = "10.0.0.2:8443".parse().unwrap();
    let plan = rig.reconciler.plan(&[spec.clone()]).unwrap();
    assert!(
        plan[0]
            .details
            .iter()
            .any(|d| d.starts_with("adoption: hash")),
        "{plan:?}"
    );
    rig.apply(&[spec]).unwrap();
    assert_eq!(rig.reconciler.get("web").unwrap().adoption, "hash");
}

#[test]
fn taking_over_the_server_at_the_vip_moves_nothing() {
    let rig = Rig::new();
    let mut spec = web();
    spec.blue_pool[0].addr = spec.vip.addr;
    let plan = rig.reconciler.plan(&[spec.clone()]).unwrap();
    assert_eq!((plan[0].action, plan[0].moved_share), ("create", 0.0));
    spec.green = "25%".parse().unwrap();
    let plan = rig.reconciler.plan(&[spec.clone()]).unwrap();
    assert!((plan[0].moved_share - 0.25).abs() < 1e-6);
    assert!(
        rig.reconciler.list().unwrap().is_empty(),
        "a plan changed something"
    );
    rig.apply(&[spec]).unwrap();
    let image = rig.datapath.with(|k| k.services[&0].clone());
    assert!(image.live_has_vip);
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.backends[0].placement, "vip");
}

#[test]
fn a_plan_says_each_change_in_a_line() {
    let rig = Rig::with_web();
    let mut spec = web();
    spec.green = "10%".parse().unwrap();
    spec.blue_pool.push(spec.blue_pool[0]);
    spec.blue_pool[1].addr = "10.0.0.2:8443".parse().unwrap();
    spec.blue_pool[0].weight = 3;
    spec.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    spec.green_pool.push(spec.green_pool[0]);
    spec.green_pool[1].addr = "10.0.1.3:8443".parse().unwrap();
    spec.green_pool[1].state = BackendState::Drain;
    let flow = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    rig.datapath.with(|k| k.flows.push(flow));
    // The count of flows may be a second old.
    rig.reconciler.fresh_census();
    let change = &rig.reconciler.plan(&[spec]).unwrap()[0];
    assert_eq!(change.action, "update");
    assert_eq!(
        change.details[..6],
        [
            "green: 0% -> 10%",
            "blue: 10.0.0.1:8443 weight 1 -> 3",
            "blue: + 10.0.0.2:8443",
            "green: + 10.0.1.2:8443",
            "green: + 10.0.1.3:8443",
            "green: - 10.0.1.1:8443",
        ]
    );
    // 10% change the pool, and a quarter of what stays in blue goes to the second backend.
    assert!(
        (change.moved_share - (0.1 + 0.9 * 0.25)).abs() < 0.02,
        "{}",
        change.moved_share
    );
    assert_eq!(change.flows_that_stay, 1);
}

#[test]
fn what_stands_in_a_backends_way_is_in_the_receipt_and_the_view() {
    let rig = Rig::new();
    let addr = "10.0.1.1:8443".parse().unwrap();
    lock(&rig.facts.warnings).insert(
        addr,
        "ip_forward is off: sysctl -w net.ipv4.ip_forward=1".into(),
    );
    let receipts = rig.apply(&[web()]).unwrap();
    assert!(receipts[0].warnings[0].starts_with("backend 10.0.1.1:8443: ip_forward is off"));
    let view = rig.reconciler.get("web").unwrap();
    assert!(view.backends[1].warnings[0].starts_with("ip_forward is off"));
    lock(&rig.facts.warnings).clear();
    assert!(
        rig.reconciler.get("web").unwrap().backends[1]
            .warnings
            .is_empty()
    );
}

#[test]
fn services_share_the_ids_of_their_backends() {
    let rig = Rig::new();
    rig.apply(&[web(), other("api", 11)]).unwrap();
    // Two backends and two VIPs.
    assert_eq!(rig.datapath.with(|k| k.backends.len()), 4);
    let mut maint = web();
    maint.green_pool[0].state = BackendState::Maint;
    rig.apply(&[maint.clone()]).unwrap();
    let id = rig.backend("10.0.1.1:8443");
    assert!(
        !rig.datapath.with(|k| k.backends[&id].maint),
        "api still offers it"
    );
    let mut api = other("api", 11);
    api.green_pool[0].state = BackendState::Maint;
    rig.apply(&[api]).unwrap();
    assert!(rig.datapath.with(|k| k.backends[&id].maint));
}

#[test]
fn a_publication_that_fails_midway_takes_everything_back() {
    for failing in 1..=3 {
        let rig = Rig::with_web();
        let before = rig.datapath.with(|k| k.services[&0].clone());
        let mut changed = web();
        changed.green = "5%".parse().unwrap();
        changed.green_pool[0].addr = "10.0.1.9:8443".parse().unwrap();
        rig.datapath
            .with(|k| k.fail_publication = Some(k.publications + failing));
        let batch = [other("a", 11), changed, other("z", 12)];
        assert!(rig.apply(&batch).is_err());
        let after = rig.datapath.with(|k| k.services.clone());
        assert_eq!(after.len(), 1, "failing {failing}");
        assert_eq!(
            (after[&0].threshold, after[&0].desired_hash),
            (0, before.desired_hash)
        );
        let green = rig.backend("10.0.1.1:8443");
        assert_eq!(rig.datapath.with(|k| k.rings[&0][1][0]), green);
        assert_eq!(rig.reconciler.list().unwrap().len(), 1);
        // Nothing is left behind that keeps a later apply from working.
        rig.apply(&batch).unwrap();
        assert_eq!(rig.reconciler.list().unwrap().len(), 3);
    }
}

#[test]
fn an_apply_that_cannot_be_stored_changes_nothing() {
    let mut rig = Rig::with_web();
    rig.disk_full(true);
    let mut changed = web();
    changed.green = "5%".parse().unwrap();
    let text = rig
        .apply(&[changed, other("api", 11)])
        .unwrap_err()
        .to_string();
    assert!(text.contains("nothing was changed"), "{text}");
    rig.disk_full(false);
    rig.restart();
    assert_eq!(rig.green(), "0%");
    assert_eq!(rig.reconciler.list().unwrap().len(), 1);
}

#[test]
fn an_etag_guards_an_apply_of_one_service() {
    let rig = Rig::with_web();
    let mut guarded = context();
    guarded.etag = Some("0000".into());
    let mut changed = web();
    changed.green = "5%".parse().unwrap();
    fn apply(rig: &Rig, specs: &[ServiceSpec], context: &WriteContext) -> Result<(), ControlError> {
        rig.reconciler.apply(specs, context).map(drop)
    }
    assert!(matches!(
        apply(&rig, &[changed.clone()], &guarded),
        Err(ControlError::Conflict { .. })
    ));
    let absent = apply(&rig, &[other("api", 11)], &guarded)
        .unwrap_err()
        .to_string();
    assert!(absent.contains("there is no such service"), "{absent}");
    let both = apply(&rig, &[changed.clone(), other("api", 11)], &guarded)
        .unwrap_err()
        .to_string();
    assert!(both.contains("an etag guards one service"), "{both}");
    guarded.etag = Some(rig.reconciler.get("web").unwrap().etag);
    apply(&rig, &[changed], &guarded).unwrap();
}

#[test]
fn the_limit_of_services_has_its_own_message() {
    let rig = Rig::new();
    let many: Vec<ServiceSpec> = (0..8_193u32)
        .map(|i| {
            let mut spec = web();
            spec.name = format!("s{i}");
            spec.vip.addr.set_port(1_000 + i as u16);
            spec
        })
        .collect();
    let error = rig.apply(&many).unwrap_err();
    assert!(
        matches!(&error, ControlError::Exhausted(text) if text.contains("8192 services")),
        "{error}"
    );
    assert!(rig.datapath.with(|k| k.services.is_empty()));
    rig.apply(&many[..8_192]).unwrap();
}

#[test]
fn the_limit_of_ring_slots_has_its_own_message() {
    let rig = Rig::new();
    let mut many = Vec::new();
    for i in 0..70u32 {
        let mut spec = web();
        spec.name = format!("s{i}");
        spec.vip.addr.set_port(1_000 + i as u16);
        spec.blue_pool[0].weight = 1_000;
        let mut second = spec.blue_pool[0];
        second.addr.set_port(1);
        second.weight = 1;
        spec.blue_pool.push(second);
        many.push(spec);
    }
    let error = rig.apply(&many).unwrap_err();
    assert!(
        matches!(&error, ControlError::Exhausted(text) if text.contains("ring slots")),
        "{error}"
    );
    assert!(rig.datapath.with(|k| k.services.is_empty()));
}

#[test]
fn the_limit_of_backends_has_its_own_message() {
    let rig = Rig::new();
    let mut spec = web();
    let first = spec.blue_pool[0];
    spec.blue_pool = (0..16_384u32)
        .map(|i| {
            let mut backend = first;
            backend.addr = std::net::SocketAddr::from(([10, 9, (i >> 8) as u8, i as u8], 80));
            backend
        })
        .collect();
    let error = rig.apply(&[spec]).unwrap_err();
    assert!(
        matches!(&error, ControlError::Exhausted(text) if text.contains("16384 backends")),
        "{error}"
    );
}

#[test]
fn placements_that_change_are_written_and_local_backends_follow() {
    let rig = Rig::with_web();
    let green: std::net::SocketAddr = "10.0.1.1:8443".parse().unwrap();
    let id = rig.backend("10.0.1.1:8443");
    lock(&rig.facts.placements).insert(green, Placement::Host);
    rig.reconciler.refresh_placements();
    let (backend, image) = rig
        .datapath
        .with(|k| (k.backends[&id], k.services[&0].clone()));
    assert_eq!(backend.placement, Placement::Host);
    assert_eq!(image.local_backends, [vec![], vec![id]]);
    let publications = rig.datapath.with(|k| k.publications);
    rig.reconciler.refresh_placements();
    assert_eq!(rig.datapath.with(|k| k.publications), publications);
}

#[test]
fn events_tell_watchers_what_changed() {
    let rig = Rig::new();
    let since = *rig.reconciler.version().borrow();
    rig.apply(&[web()]).unwrap();
    rig.shift("5%").unwrap();
    rig.shift("5%").unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    let events = rig.reconciler.events_since(since).unwrap();
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e.version - since, e.deleted))
        .collect();
    assert_eq!(seen, [(1, false), (2, false), (3, true)]);
    assert!(rig.reconciler.events_since(since - 1).is_none());
}
