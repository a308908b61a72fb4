//! Checks as files and requests write them.

use super::*;
use crate::model::file::{Format, parse_services, spec_from_json, spec_to_json};

fn file(health: &str) -> String {
    format!(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:80/tcp\"\n\
         pools = {{ blue = [\"10.0.0.1:80\", \"10.0.0.2:80\"], green = [\"10.0.1.1:80\"] }}\n\
         [service.health]\n{health}"
    )
}

fn read(health: &str) -> Result<HealthSpec, String> {
    parse_services(&file(health), "f", Format::Toml)
        .map(|mut specs| specs.remove(0).health.unwrap())
        .map_err(|error| error.to_string())
}

#[test]
fn what_is_not_written_has_its_default() {
    let spec = read("type = \"http\"").unwrap();
    assert_eq!(
        spec.to_string(),
        "type http, path /, status 200-299, interval 2s, timeout 1s, rise 2, fall 3, min_healthy 1, on_pool_down other"
    );
    let spec = read("type = \"tcp\"\ninterval = \"500ms\"").unwrap();
    assert_eq!(spec.timeout, Duration::from_millis(500));
}

#[test]
fn every_key_outlives_the_store_and_a_request() {
    for health in [
        "type = \"tcp\"\nport = 9000\nrise = 1\nfall = 100\nmin_healthy = 0\non_pool_down = \"hold\"",
        "type = \"http\"\npath = \"/healthz?a=b\"\nstatus = \"200,204,301-308\"\nhost = \"shop.example\"\n\
         body_contains = \"all is \\\"well\\\"\"\nheaders = { X-A = \"1 2\", B = \"\" }\ninterval = \"1500ms\"\ntimeout = \"1100ms\"",
        "type = \"https\"\nca = \"/etc/our-ca.pem\"",
        "type = \"https\"\ninsecure = true\nhost = \"[2001:db8::1]:80\"",
        "type = \"grpc\"\nservice = \"shop.Cart\"\ntls = true\ninsecure = true\nhost = \"a\"",
        "type = \"exec\"\nfile = \"check-it.sh\"\ninterval = \"5s\"\ntimeout = \"4s\"",
    ] {
        let specs = parse_services(&file(health), "f", Format::Toml).unwrap();
        let stored = spec_from_json(&spec_to_json(&specs[0])).unwrap();
        assert_eq!(stored, specs[0], "{health}");
        let spec = specs[0].health.clone().unwrap();
        assert_eq!(spec.write().read().unwrap(), spec, "{health}");
        assert!(spec.asks_the_same(&spec));
    }
}

#[test]
fn what_is_wrong_is_refused_at_its_place_and_says_what_would_be_right() {
    for (health, place, text) in [
        (
            "",
            "5:1",
            "health.type: the key is missing: write type = \"tcp\", \"http\", \"https\", \"grpc\" or \"exec\"",
        ),
        (
            "type = \"ping\"",
            "6:8",
            "health.type: \"ping\" is unknown: write",
        ),
        (
            "type = \"exec\"",
            "5:1",
            "health.file: the key is missing: write a file of the agent's exec_dir",
        ),
        (
            "type = \"exec\"\nfile = \"../sh\"",
            "7:8",
            "health.file: \"../sh\" is no name of a program",
        ),
        (
            "type = \"exec\"\nfile = \"a\"\nport = 1",
            "8:8",
            "health.port: a check of type \"exec\" has none: it goes with type \"tcp\"",
        ),
        (
            "type = \"tcp\"\nfile = \"a\"",
            "7:8",
            "health.file: a check of type \"tcp\" has none: it goes with type \"exec\"",
        ),
        (
            "type = \"tcp\"\npath = \"/\"",
            "7:8",
            "health.path: a check of type \"tcp\" has none: it goes with type \"http\", \"https\"",
        ),
        (
            "type = \"http\"\nca = \"/x\"",
            "7:6",
            "health.ca: a check of type \"http\" has none: it goes with type \"https\", \"grpc\"",
        ),
        (
            "type = \"grpc\"\nca = \"/x\"",
            "7:6",
            "health.ca: it needs tls = true, which is not there",
        ),
        (
            "type = \"https\"\nca = \"x\"",
            "7:6",
            "health.ca: \"x\" is no absolute path",
        ),
        (
            "type = \"https\"\nca = \"/x\"\ninsecure = true",
            "8:12",
            "health.insecure: with it ca is not looked at",
        ),
        (
            "type = \"tcp\"\ninterval = \"10ms\"",
            "7:12",
            "health.interval: 10ms is out of range: write 100ms to 1h",
        ),
        (
            "type = \"tcp\"\ninterval = 2",
            "7:12",
            "interval is a number: write it in quotes",
        ),
        (
            "type = \"tcp\"\ntimeout = \"3s\"",
            "7:11",
            "health.timeout: 3s is longer than the interval of 2s",
        ),
        (
            "type = \"tcp\"\ntimeout = \"fast\"",
            "7:11",
            "health.timeout: \"fast\" is no duration",
        ),
        (
            "type = \"tcp\"\nrise = 0",
            "7:8",
            "health.rise: 0 is out of range: write 1 to 100",
        ),
        (
            "type = \"tcp\"\nfall = 101",
            "7:8",
            "health.fall: 101 is out of range: write 1 to 100",
        ),
        (
            "type = \"tcp\"\nport = 0",
            "7:8",
            "health.port: 0 is out of range: write 1 to 65535",
        ),
        (
            "type = \"tcp\"\nmin_healthy = 2",
            "7:15",
            "health.min_healthy is 2, but green has 1 in all",
        ),
        (
            "type = \"tcp\"\non_pool_down = \"drop\"",
            "7:16",
            "health.on_pool_down: \"drop\" is unknown: write \"other\" or \"hold\"",
        ),
        (
            "type = \"tcp\"\ntimout = \"1s\"",
            "7:1",
            "health has no key \"timout\": did you mean \"timeout\"?",
        ),
        (
            "type = \"http\"\npath = \"healthz\"",
            "7:8",
            "health.path: \"healthz\" is no path of a request",
        ),
        (
            "type = \"http\"\npath = \"/a b\"",
            "7:8",
            "health.path: \"/a b\" has spaces",
        ),
        (
            "type = \"http\"\nstatus = \"2xx\"",
            "7:10",
            "health.status: \"2xx\" is no list of statuses",
        ),
        (
            "type = \"http\"\nstatus = \"299-200\"",
            "7:10",
            "health.status",
        ),
        (
            "type = \"http\"\nstatus = \"200-600\"",
            "7:10",
            "health.status",
        ),
        (
            "type = \"http\"\nhost = \"a b\"",
            "7:8",
            "health.host: \"a b\" is no host",
        ),
        (
            "type = \"http\"\nbody_contains = \"\"",
            "7:17",
            "health.body_contains: 0 bytes: write 1 to 1024",
        ),
        (
            "type = \"http\"\nheaders = { Host = \"a\" }",
            "7:11",
            "health.headers: \"Host\" is set by the check: write the key host",
        ),
        (
            "type = \"http\"\nheaders = { \"a b\" = \"a\" }",
            "7:11",
            "health.headers: \"a b\" is no name of a header",
        ),
        (
            "type = \"http\"\nheaders = { a = \"x\\ny\" }",
            "7:11",
            "health.headers: the value of \"a\"",
        ),
        (
            "type = \"http\"\nheaders = { a = 1 }",
            "7:17",
            "the header a is a number: write it in quotes",
        ),
        (
            "type = \"http\"\nheaders = [\"a\"]",
            "7:11",
            "headers is a list: write a table",
        ),
        (
            "type = \"http\"\nheaders = { a = \"1\", A = \"2\" }",
            "7:11",
            "health.headers: \"A\" occurs twice",
        ),
    ] {
        let error = read(health).expect_err(health);
        assert!(
            error.starts_with(&format!("f:{place}: ")),
            "{health}: {error}"
        );
        assert!(error.contains(text), "{health}: {error}");
    }
}

#[test]
fn only_what_is_asked_of_a_backend_makes_its_standing_void() {
    let spec = read("type = \"tcp\"").unwrap();
    let other = |change: &str| read(&format!("type = \"tcp\"\n{change}")).unwrap();
    assert!(spec.asks_the_same(&other("on_pool_down = \"hold\"\nmin_healthy = 0")));
    assert!(!spec.asks_the_same(&other("fall = 4")));
    assert!(!spec.asks_the_same(&other("port = 81")));
}
