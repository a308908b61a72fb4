//! Services files: what is read, and each refusal with its place.

use super::*;
use crate::model::config::parse_config;

const GOOD: &str = r#"
[[service]]
name = "web"
vip = "203.0.113.10:443/tcp"
mode = "nat"
live = "blue"
green = "5%"
affinity = "client/24"
seed = "000102030405060708090a0b0c0d0e0f"
[service.pools]
blue  = ["10.0.0.11:8443", { addr = "10.0.0.12:8443", weight = 2, state = "drain" }]
green = ["10.0.1.11:8443"]

[[service]]
name = "dns"
vip = "[2001:db8::1]:53/udp"
live = "green"
pools = { green = ["[2001:db8::2]:53"] }
"#;

fn refused(text: &str) -> String {
    parse_services(text, "s.toml", Format::Toml)
        .unwrap_err()
        .to_string()
}

#[test]
fn toml_and_json_give_the_same_services() {
    let specs = parse_services(GOOD, "s.toml", Format::Toml).unwrap();
    assert_eq!(specs.len(), 2);
    assert_eq!(specs[0].green.to_string(), "5%");
    assert_eq!(specs[0].blue_pool[1].weight, 2);
    assert_eq!(specs[0].blue_pool[1].state, BackendState::Drain);
    assert_eq!(specs[1].green, PoolName::Green.all());
    assert!(specs[1].blue_pool.is_empty());
    let json = format!(
        "{{\"service\": [{}, {}]}}",
        spec_to_json(&specs[0]),
        spec_to_json(&specs[1])
    );
    assert_eq!(
        parse_services(&json, "s.json", Format::Json).unwrap(),
        specs
    );
    assert_eq!(spec_from_json(&spec_to_json(&specs[0])).unwrap(), specs[0]);
}

/// What is written for what, where the refusal points, and a part of its text.
const WRONG: &[(&str, &str, &str, &str)] = &[
    (
        "affinity",
        "afinity",
        "s.toml:8:1",
        "did you mean \"affinity\"?",
    ),
    (
        "mode = \"nat\"",
        "split = \"even\"",
        "s.toml:5:9",
        "write \"hash\" or \"exact\"",
    ),
    (
        "\"blue\"",
        "\"red\"",
        "s.toml:6:8",
        "write \"blue\" or \"green\"",
    ),
    ("\"5%\"", "\"105%\"", "s.toml:7:9", "write a percentage"),
    (
        "\"5%\"",
        "5",
        "s.toml:7:9",
        "green is a number: write it in quotes",
    ),
    ("443/tcp", "443", "s.toml:4:7", "203.0.113.10:443/tcp"),
    ("\"nat\"", "\"dsr\"", "s.toml:5:8", "write \"nat\""),
    (
        "weight = 2",
        "weight = 0",
        "s.toml:11:64",
        "write 1 to 1000",
    ),
    (
        "weight = 2",
        "wieght = 2",
        "s.toml:11:55",
        "did you mean \"weight\"?",
    ),
    (
        "10.0.1.11:8443",
        "127.0.0.1:8443",
        "s.toml:12:10",
        "bind the server",
    ),
    (
        "10.0.1.11:8443",
        "10.0.0.11:8443",
        "s.toml:12:10",
        "in blue and in green",
    ),
    (
        "10.0.1.11:8443",
        "10.0.1.11",
        "s.toml:12:10",
        "write address:port",
    ),
    ("000102", "xx0102", "s.toml:9:8", "32 hex digits"),
    ("\"dns\"", "\"web\"", "s.toml:15:8", "give each its own"),
    (
        "[2001:db8::1]:53/udp",
        "203.0.113.10:443/tcp",
        "s.toml",
        "another family",
    ),
    (
        "live = \"green\"\n",
        "",
        "s.toml",
        "the live pool blue has no backend",
    ),
    ("name = \"dns\"\n", "", "s.toml:14", "lacks the key name"),
];

#[test]
fn each_wrong_key_and_value_is_refused_with_its_place_and_remedy() {
    for (from, to, place, part) in WRONG {
        assert!(GOOD.contains(from), "{from}");
        let error = refused(&GOOD.replacen(from, to, 1));
        assert!(error.starts_with(place), "{from} -> {to}: {error}");
        assert!(error.contains(part), "{from} -> {to}: {error}");
    }
}

#[test]
fn a_duplicate_vip_names_the_service_that_has_it() {
    let text = GOOD
        .replace("[2001:db8::1]:53/udp", "203.0.113.10:443/tcp")
        .replace("[2001:db8::2]:53", "10.0.0.1:53");
    let error = refused(&text);
    assert!(error.starts_with("s.toml:16:7"), "{error}");
    assert!(error.contains("belongs to service \"web\""), "{error}");
}

#[test]
fn broken_files_are_refused_with_their_place() {
    let error = refused("[[service]]\nname = \"a\"\nname = \"b\"\n");
    assert!(error.starts_with("s.toml:3:1"), "{error}");
    let error = refused("[[service]]\nname = \n");
    assert!(error.starts_with("s.toml:2"), "{error}");
    assert!(refused("").contains("no service in this file"));
    assert!(refused("service = 1").contains("write [[service]]"));
    assert!(refused("[service]\nname = \"web\"").contains("write [[service]]"));
    let error = parse_services("{\"service\": [{\"name\": 1}]}", "s.json", Format::Json);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("s.json:1:23: name is a number"),
        "{error}"
    );
}

#[test]
fn a_seed_in_a_file_is_not_repeated_in_errors() {
    let error = refused(&GOOD.replace("000102", "zz0102"));
    assert!(!error.contains("zz0102"), "{error}");
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_read_or_refused_but_never_panics() {
    let mut refusals = 0;
    for end in 0..GOOD.len() {
        refusals += usize::from(parse_services(&GOOD[..end], "f", Format::Toml).is_err());
        parse_config(&GOOD[..end], "f").unwrap_err();
    }
    assert!(refusals > GOOD.len() / 2);
}

#[test]
fn a_key_of_the_service_below_its_pools_is_told_where_it_belongs() {
    for key in [
        "split = \"exact\"",
        "live = \"blue\"",
        "affinity = \"client\"",
    ] {
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
             [service.pools]\nblue = [\"10.0.0.1:8443\"]\n{key}\n"
        );
        let error = parse_services(&text, "f", Format::Toml).unwrap_err();
        let name = key.split_once(' ').unwrap().0;
        assert_eq!(
            error.to_string(),
            format!(
                "f:6:1: pools has no key {name:?}: it belongs to the service: write it above [service.pools]"
            )
        );
    }
}
