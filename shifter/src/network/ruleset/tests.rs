//! Rules as nft 1.0.6 and iptables 1.8 print them, and what is made of them.

use super::*;

const BASES: &str = r#"
{"table": {"family": "ip", "name": "nat", "handle": 1}},
{"set": {"family": "ip", "name": "ports", "table": "nat", "type": "inet_service", "flags": ["interval"], "elem": [{"range": [1, 5]}, 22]}},
{"chain": {"family": "ip", "table": "nat", "name": "DOCKER", "handle": 1}},
{"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "handle": 2, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
{"chain": {"family": "ip", "table": "raw", "name": "PREROUTING", "handle": 1, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}},
{"chain": {"family": "inet", "table": "filter", "name": "forward", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}"#;
const DPORT: &str = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;
const DADDR: &str = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;

/// The chains above with these rules: family, table, chain, statements.
fn nft_rules(rules: &[(&str, &str, &str, &str)]) -> Ruleset {
    let mut json = format!(r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {BASES}"#);
    for (family, table, chain, statements) in rules {
        json += &format!(
            r#",{{"rule": {{"family": "{family}", "table": "{table}", "chain": "{chain}", "handle": 9, "expr": [{statements}]}}}}"#
        );
    }
    nft::parse(&(json + "]}")).unwrap().0
}

/// One rule in nat PREROUTING.
fn translating(statements: &str) -> Ruleset {
    nft_rules(&[("ip", "nat", "PREROUTING", statements)])
}

fn probe(address: &str, port: u16) -> Probe<'static> {
    Probe {
        address: address.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
        inputs: &[],
        output: None,
        local: true,
    }
}

fn equal(left: &str, right: &str) -> String {
    format!(r#"{{"match": {{"op": "==", "left": {left}, "right": {right}}}}}"#)
}

#[test]
fn published_port_is_translated_behind_its_jump() {
    let jump = r#"{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}, {"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "DOCKER"}}"#;
    let not_bridge =
        r#"{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}}"#;
    let dnat = format!(
        r#"{not_bridge}, {}, {{"counter": {{"packets": 0, "bytes": 0}}}}, {{"dnat": {{"addr": "172.17.0.2", "port": 80}}}}"#,
        equal(DPORT, "8080")
    );
    let rules = nft_rules(&[
        ("ip", "nat", "PREROUTING", jump),
        ("ip", "nat", "DOCKER", &dnat),
        ("ip", "nat", "DOCKER", r#"{"return": null}"#),
    ]);
    let by = rules.translates(&probe("192.0.2.1", 8080));
    assert_eq!(by.as_deref(), Some("ip nat PREROUTING"));
    assert_eq!(rules.translates(&probe("192.0.2.1", 80)), None);
    assert_eq!(rules.translates(&probe("2001:db8::1", 8080)), None);
    let udp = Probe {
        protocol: Protocol::Udp,
        ..probe("192.0.2.1", 8080)
    };
    assert_eq!(rules.translates(&udp), None);
    let routed = Probe {
        local: false,
        ..probe("192.0.2.1", 8080)
    };
    assert_eq!(rules.translates(&routed), None);
    let bridge = ["docker0".to_owned()];
    let from_inside = Probe {
        inputs: &bridge,
        ..probe("192.0.2.1", 8080)
    };
    assert_eq!(rules.translates(&from_inside), None);
}

#[test]
fn sets_ranges_prefixes_and_names_are_read() {
    let dnat = r#"{"dnat": {"addr": "10.0.0.2"}}"#;
    let redirect = r#"{"redirect": {"port": 99}}"#;
    let hits = |statements: String, address: &str, port: u16| {
        translating(&statements)
            .translates(&probe(address, port))
            .is_some()
    };
    let set = || {
        format!(
            "{}, {dnat}",
            equal(DPORT, r#"{"set": [80, {"range": [440, 443]}]}"#)
        )
    };
    assert!(hits(set(), "1.2.3.4", 80) && hits(set(), "1.2.3.4", 441));
    assert!(!hits(set(), "1.2.3.4", 81));
    let prefix = || {
        format!(
            "{}, {dnat}",
            equal(DADDR, r#"{"prefix": {"addr": "1.2.3.0", "len": 24}}"#)
        )
    };
    assert!(hits(prefix(), "1.2.3.255", 9) && !hits(prefix(), "1.2.4.0", 9));
    let named = || format!("{}, {redirect}", equal(DPORT, "\"@ports\""));
    assert!(hits(named(), "1.2.3.4", 22) && hits(named(), "1.2.3.4", 3));
    assert!(!hits(named(), "1.2.3.4", 6));
    let pair = || {
        let key = format!(r#"{{"concat": [{DADDR}, {DPORT}]}}"#);
        format!(
            "{}, {dnat}",
            equal(&key, r#"{"set": [{"concat": ["1.2.3.4", 80]}]}"#)
        )
    };
    assert!(hits(pair(), "1.2.3.4", 80));
    assert!(!hits(pair(), "1.2.3.4", 81) && !hits(pair(), "1.2.3.5", 80));
    let map = || {
        format!(
            r#"{{"dnat": {{"addr": {{"map": {{"key": {DPORT}, "data": {{"set": [[8080, "10.0.0.3"]]}}}}}}}}}}"#
        )
    };
    assert!(hits(map(), "1.2.3.4", 8080) && !hits(map(), "1.2.3.4", 8081));
}

#[test]
fn verdict_maps_are_followed() {
    let vmap = format!(
        r#"{{"vmap": {{"key": {{"concat": [{DADDR}, {DPORT}]}}, "data": {{"set": [[{{"concat": ["1.2.3.4", 80]}}, {{"jump": {{"target": "DOCKER"}}}}]]}}}}}}"#
    );
    let rules = nft_rules(&[
        ("ip", "nat", "PREROUTING", &vmap),
        ("ip", "nat", "DOCKER", r#"{"dnat": {"addr": "10.0.0.2"}}"#),
    ]);
    assert!(rules.translates(&probe("1.2.3.4", 80)).is_some());
    assert!(rules.translates(&probe("1.2.3.4", 443)).is_none());
}

#[test]
fn what_cannot_be_told_counts_as_translation_and_not_as_drop() {
    let mark =
        r#"{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 255]}, "right": 1}}"#;
    let rules = translating(&format!(r#"{mark}, {{"dnat": {{"addr": "10.0.0.2"}}}}"#));
    assert!(rules.translates(&probe("1.2.3.4", 80)).is_some());
    let accept = format!(r#"{mark}, {{"accept": null}}"#);
    let rules = nft_rules(&[("inet", "filter", "forward", &accept)]);
    assert_eq!(
        rules.fate(Hook::Forward, &probe("1.2.3.4", 80)),
        Fate::CannotTell
    );
    let drop = format!(r#"{mark}, {{"drop": null}}"#);
    let rules = nft_rules(&[("ip", "raw", "PREROUTING", &drop)]);
    assert_eq!(
        rules.fate(Hook::Prerouting, &probe("1.2.3.4", 80)),
        Fate::CannotTell
    );
}

#[test]
fn policy_drop_without_a_rule_for_new_flows_is_named() {
    let established = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}"#;
    let vmap = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}"#;
    let translated = r#"{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, {"accept": null}"#;
    let mut rules = vec![
        ("inet", "filter", "forward", established),
        ("inet", "filter", "forward", vmap),
        ("inet", "filter", "forward", translated),
    ];
    let dropped = Fate::Dropped("inet filter forward (policy drop)".into());
    let found = nft_rules(&rules).fate(Hook::Forward, &probe("10.0.0.2", 80));
    assert_eq!(found, dropped);
    let out = equal(
        r#"{"meta": {"key": "oifname"}}"#,
        r#"{"set": ["br-*", "docker0"]}"#,
    );
    let accept = format!(r#"{out}, {}, {{"accept": null}}"#, equal(DPORT, "80"));
    rules.push(("inet", "filter", "forward", &accept));
    let fate = |output, port| {
        let probe = Probe {
            output,
            ..probe("10.0.0.2", port)
        };
        nft_rules(&rules).fate(Hook::Forward, &probe)
    };
    assert_eq!(fate(Some("docker0"), 80), Fate::Passes);
    assert_eq!(fate(Some("br-17"), 80), Fate::Passes);
    assert_eq!(fate(Some("docker0"), 81), dropped);
    assert_eq!(fate(Some("eth1"), 80), dropped);
    assert_eq!(fate(None, 80), Fate::CannotTell);
}

#[test]
fn rules_of_iptables_that_nft_cannot_show_count_as_translation() {
    let foreign = r#"{"xt": null}, {"counter": {"packets": 0, "bytes": 0}}, {"xt": null}"#;
    let rules = translating(&format!("{}, {foreign}", equal(DADDR, "\"1.2.3.4\"")));
    assert!(rules.translates(&probe("1.2.3.4", 80)).is_some());
    assert!(rules.translates(&probe("1.2.3.5", 80)).is_none());
    let json = format!(
        r#"{{"nftables": [{BASES}, {{"rule": {{"family": "ip", "table": "nat", "chain": "DOCKER", "expr": [{{"xt": {{"type": "target", "name": "DNAT"}}}}]}}}}]}}"#
    );
    let (_, foreign) = nft::parse(&json).unwrap();
    assert_eq!(foreign, [(Family::Ip, "nat".to_owned())]);
}

const DOCKER: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables)
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "web -j ACCEPT \"x\"" -j DNAT --to-destination 172.17.0.2:80
-A DOCKER ! -i docker0 -p udp -m multiport --dports 53,5000:5010 -j DNAT --to-destination 172.17.0.3
COMMIT
"#;

#[test]
fn rules_of_docker_are_read_from_iptables_save() {
    let rules = Ruleset {
        chains: iptables::parse(DOCKER, Family::Ip),
        problem: None,
    };
    let inputs = ["eth0".to_owned()];
    let from_outside = |address, port| Probe {
        inputs: &inputs,
        output: Some("docker0"),
        ..probe(address, port)
    };
    assert!(rules.translates(&from_outside("192.0.2.1", 8080)).is_some());
    assert!(rules.translates(&from_outside("192.0.2.1", 8081)).is_none());
    let udp = Probe {
        protocol: Protocol::Udp,
        ..from_outside("192.0.2.1", 5005)
    };
    assert!(rules.translates(&udp).is_some());

    let fate = |hook, address, port| rules.fate(hook, &from_outside(address, port));
    let raw = Fate::Dropped("ip raw PREROUTING".into());
    assert_eq!(fate(Hook::Prerouting, "172.17.0.2", 80), raw);
    assert_eq!(fate(Hook::Prerouting, "172.17.0.9", 80), Fate::Passes);
    assert_eq!(fate(Hook::Forward, "172.17.0.2", 80), Fate::Passes);
    let chain = Fate::Dropped("ip filter DOCKER".into());
    assert_eq!(fate(Hook::Forward, "172.17.0.2", 81), chain);
    let elsewhere = Probe {
        output: Some("eth1"),
        ..from_outside("10.0.0.1", 80)
    };
    let policy = Fate::Dropped("ip filter FORWARD (policy drop)".into());
    assert_eq!(rules.fate(Hook::Forward, &elsewhere), policy);
}

#[test]
fn unknown_matches_of_iptables_are_not_certain() {
    let save =
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m set --match-set ok dst -j ACCEPT\nCOMMIT\n";
    let rules = Ruleset {
        chains: iptables::parse(save, Family::Ip),
        problem: None,
    };
    assert_eq!(
        rules.fate(Hook::Forward, &probe("10.0.0.2", 80)),
        Fate::CannotTell
    );
}

#[test]
fn subnets_end_where_they_should() {
    let holds = |subnet: &str, prefix, ip: &str| {
        contains(subnet.parse().unwrap(), prefix, ip.parse().unwrap())
    };
    assert!(holds("10.0.0.7", 8, "10.255.255.255") && !holds("10.0.0.7", 8, "11.0.0.0"));
    assert!(holds("0.0.0.0", 0, "255.1.2.3") && !holds("0.0.0.0", 0, "::1"));
    assert!(holds("10.0.0.1", 32, "10.0.0.1") && !holds("10.0.0.1", 32, "10.0.0.2"));
    assert!(holds("fd00::", 64, "fd00::ffff") && !holds("fd00::", 64, "fd00:0:0:1::"));
    assert!(holds("::", 0, "ffff::") && holds("::1", 128, "::1"));
}

#[test]
fn rules_that_could_not_be_read_whole_may_translate() {
    let mut rules = Ruleset::default();
    assert!(!rules.may_translate(&probe("10.1.0.1", 8080)));
    rules.problem = Some("nft failed: exit status: 1".into());
    assert!(rules.may_translate(&probe("10.1.0.1", 8080)));
}
