//! Each refusal with its own text.

use super::*;
use crate::model::{Mode, Weight};

fn backend(addr: &str) -> BackendSpec {
    BackendSpec {
        addr: addr.parse().unwrap(),
        weight: 1,
        state: BackendState::Ready,
    }
}

fn spec(vip: &str, blue: &[&str], green: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        vip: vip.parse().unwrap(),
        mode: Mode::Nat,
        live: PoolName::Blue,
        green: Weight::ZERO,
        split: SplitMethod::Hash,
        affinity: Affinity::Flow,
        seed: None,
        vip_routed: false,
        blue_pool: blue.iter().map(|b| backend(b)).collect(),
        health: None,
        green_pool: green.iter().map(|b| backend(b)).collect(),
        breaker: None,
        cohorts: Vec::new(),
        cohorts_on: true,
        rollout: None,
    }
}

fn text(spec: &ServiceSpec) -> String {
    service(spec).unwrap_err().to_string()
}

#[test]
fn each_wrong_vip_has_its_own_refusal() {
    for (vip, part) in [
        ("0.0.0.0:80/tcp", "has no address"),
        ("[::]:80/tcp", "has no address"),
        ("224.0.0.1:80/udp", "multicast"),
        ("255.255.255.255:80/udp", "multicast or broadcast"),
        ("[ff02::1]:80/udp", "multicast"),
        ("127.0.0.1:80/tcp", "loopback"),
        ("203.0.113.1:0/tcp", "port 0"),
        ("[::ffff:10.0.0.1]:80/tcp", "write it as IPv4"),
        ("[fe80::1]:80/tcp", "link-local"),
    ] {
        let family = if vip.starts_with('[') {
            "[2001:db8::2]:80"
        } else {
            "10.0.0.1:80"
        };
        let text = text(&spec(vip, &[family], &[]));
        assert!(text.contains(part), "{vip}: {text}");
    }
}

#[test]
fn each_wrong_backend_has_its_own_refusal() {
    for (wrong, part) in [
        ("127.0.0.1:80", "bind the server to an address of this host"),
        ("127.9.9.9:80", "bind the server to an address of this host"),
        ("0.0.0.0:80", "has no address"),
        ("239.1.1.1:80", "multicast"),
        ("10.0.0.1:0", "port 0"),
        ("[2001:db8::1]:80", "write an IPv4 address"),
    ] {
        let spec = spec("203.0.113.1:80/tcp", &["10.0.0.9:80"], &[wrong]);
        let error = service(&spec).unwrap_err();
        assert_eq!(error.place, Place::Backend(PoolName::Green, 0));
        assert!(error.to_string().contains(part), "{wrong}: {error}");
    }
    let v6 = spec("[2001:db8::1]:80/tcp", &["[::1]:80"], &[]);
    assert!(text(&v6).contains("bind the server"));
}

#[test]
fn a_backend_is_named_once() {
    let vip = "203.0.113.1:80/tcp";
    let twice = spec(vip, &["10.0.0.1:80", "10.0.0.1:80"], &[]);
    assert!(text(&twice).contains("occurs twice in this pool"));
    let both = spec(vip, &["10.0.0.1:80"], &["10.0.0.1:80"]);
    assert!(text(&both).contains("in blue and in green"));
}

#[test]
fn weight_goes_only_to_a_pool_that_can_carry_it() {
    let vip = "203.0.113.1:80/tcp";
    let mut s = spec(vip, &["10.0.0.1:80"], &[]);
    assert_eq!(service(&s), Ok(()));
    s.green = "5%".parse().unwrap();
    assert!(text(&s).contains("green would get 5% of new flows but has no backend"));
    s.green_pool = vec![backend("10.0.0.2:80")];
    assert_eq!(service(&s), Ok(()));
    s.green_pool[0].state = BackendState::Drain;
    assert!(text(&s).contains("none of its backends is ready"));
    s.green = Weight::ZERO;
    s.live = PoolName::Green;
    s.blue_pool.clear();
    assert!(text(&s).contains("blue would get 100% of new flows but has no backend"));
    s.green_pool.clear();
    assert!(text(&s).contains("the live pool green has no backend"));
}

#[test]
fn names_prefixes_and_backend_weights_have_bounds() {
    let vip = "203.0.113.1:80/tcp";
    let mut s = spec(vip, &["10.0.0.1:80"], &[]);
    for name in ["", "a b", "ä", "a/b", &"x".repeat(64)] {
        s.name = name.into();
        assert!(text(&s).contains("1 to 63 letters"), "{name:?} was taken");
    }
    s.name = "a-b_c.9".into();
    assert_eq!(service(&s), Ok(()));
    s.affinity = Affinity::Client(Some(33));
    assert!(text(&s).contains("write 1 to 32 bits"));
    s.affinity = Affinity::Client(None);
    s.split = SplitMethod::Exact;
    assert!(text(&s).contains("or affinity = \"flow\""));
    s.affinity = Affinity::Flow;
    assert_eq!(service(&s), Ok(()));
    for weight in [0, 1001] {
        s.blue_pool[0].weight = weight;
        assert!(text(&s).contains("write 1 to 1000"));
    }
}

#[test]
fn services_of_one_set_do_not_clash() {
    let a = spec("203.0.113.1:80/tcp", &["10.0.0.1:80"], &[]);
    let mut b = a.clone();
    let text = |b: &ServiceSpec| set(&[a.clone(), b.clone()]).unwrap_err().1.to_string();
    assert!(text(&b).contains("another service of this file has the same name"));
    b.name = "api".into();
    assert!(text(&b).contains("belongs to service \"web\""));
    b.vip = "203.0.113.1:80/udp".parse().unwrap();
    assert_eq!(set(&[a.clone(), b.clone()]), Ok(()));
    b.vip = "203.0.113.2:80/tcp".parse().unwrap();
    b.blue_pool = vec![backend("203.0.113.1:80")];
    assert!(text(&b).contains("is the VIP of service \"web\""));
    let mut own = a.clone();
    own.blue_pool = vec![backend("203.0.113.1:80")];
    assert_eq!(set(&[own.clone()]), Ok(()));
    assert_eq!(service(&own), Ok(()));
}
