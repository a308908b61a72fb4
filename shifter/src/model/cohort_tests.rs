//! Tests of cohorts: texts, checks and the longest prefix.

use super::*;
use crate::model::file::{
    Format, parse_services, parse_services_with, spec_from_json, spec_to_json,
};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const HEAD: &str = "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\npools = { blue = [\"10.0.0.1:80\"], green = [\"10.0.0.2:80\"] }\n";

fn with(cohorts: &str) -> Result<ServiceSpec, String> {
    let text = format!("{HEAD}{cohorts}");
    parse_services(&text, "f", Format::Toml)
        .map(|mut specs| specs.remove(0))
        .map_err(|error| error.to_string())
}

/// An address as its bits, '0' and '1'.
fn bits_of(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
    }
}

/// The next of a stream of numbers (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Addresses that differ in few bits, so that prefixes meet them.
fn address(state: &mut u64) -> IpAddr {
    let noise = next(state) & next(state) & next(state);
    match next(state) % 2 {
        0 => IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 ^ noise as u32)),
        _ => {
            let wide =
                u128::from(noise) << 64 | u128::from(next(state) & next(state) & next(state));
            IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) ^ wide))
        }
    }
}

#[test]
fn the_longest_prefix_is_that_of_a_comparison_bit_by_bit() {
    let mut state = 0x7e57_c0de;
    let mut met = 0;
    for _ in 0..300 {
        let count = 1 + next(&mut state) as usize % 40;
        let mut prefixes: Vec<Prefix> = (0..count)
            .map(|_| {
                let addr = address(&mut state);
                let width = if addr.is_ipv4() { 33 } else { 129 };
                Prefix::cut(addr, (next(&mut state) % width) as u8).unwrap()
            })
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let (first, second) = prefixes.split_at(prefixes.len() / 2);
        let cohorts = [("a", first), ("b", second)].map(|(name, prefixes)| CohortSpec {
            name: name.into(),
            pool: None,
            prefixes: prefixes.into(),
        });
        for _ in 0..40 {
            let client = address(&mut state);
            let mut naive: Option<Prefix> = None;
            for prefix in &prefixes {
                let head = &bits_of(prefix.addr())[..usize::from(prefix.bits())];
                let fits = prefix.addr().is_ipv4() == client.is_ipv4()
                    && bits_of(client).starts_with(head);
                if fits && naive.is_none_or(|best| best.bits() < prefix.bits()) {
                    naive = Some(*prefix);
                }
            }
            let found = longest(&cohorts, client);
            assert_eq!(found.map(|(_, prefix)| prefix), naive, "{client}");
            if let Some((cohort, prefix)) = found {
                assert!(cohort.prefixes.contains(&prefix));
                met += 1;
            }
        }
    }
    assert!(met > 1_000, "only {met} clients were in a prefix");
}

#[test]
fn prefixes_are_read_and_shown() {
    for (text, shown) in [
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8:1::/48", "2001:db8:1::/48"),
        ("2001:DB8::7", "2001:db8::7/128"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(prefix(text).to_string(), shown);
    }
    assert!(prefix("10.1.0.0/16").contains(ip("10.1.255.255")));
    assert!(!prefix("10.1.0.0/16").contains(ip("10.2.0.0")));
    assert!(!prefix("0.0.0.0/0").contains(ip("::1")));
    assert!(prefix("::/0").contains(ip("2001:db8::1")));
    for (text, part) in [
        ("10.1.0.1/16", "write \"10.1.0.0/16\""),
        ("2001:db8::1/32", "write \"2001:db8::/32\""),
        ("10.1.0.0/33", "is no client prefix"),
        ("10.1.0.0/", "is no client prefix"),
        ("10.1.0.0/+8", "is no client prefix"),
        ("10.1.0.0/08", "is no client prefix"),
        ("10.1/16", "is no client prefix"),
        ("staff", "is no client prefix"),
        ("", "is no client prefix"),
    ] {
        let error = text.parse::<Prefix>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn cohorts_of_a_file_are_read_and_come_back_from_the_store() {
    let spec = with("[[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\", \"2001:db8:1::/48\"]\n[[service.cohort]]\nname = \"not\"\npool = \"blue\"\nprefixes = [\"10.1.2.3\"]\n").unwrap();
    assert_eq!(spec.cohorts.len(), 2);
    assert_eq!(spec.cohorts[0].pool, None);
    assert_eq!(spec.cohorts[1].pool, Some(PoolName::Blue));
    assert!(spec.cohorts_on);
    let found = |client: &str| longest(&spec.cohorts, ip(client)).map(|(c, _)| c.name.as_str());
    assert_eq!(found("10.1.2.4"), Some("staff"));
    assert_eq!(found("10.1.2.3"), Some("not"));
    assert_eq!(found("10.2.0.0"), None);
    // Of the other family nothing is written.
    assert_eq!(rules(&spec).len(), 2);
    let mut off = spec.clone();
    off.cohorts_on = false;
    for spec in [spec, off] {
        assert_eq!(spec_from_json(&spec_to_json(&spec)).unwrap(), spec);
    }
}

#[test]
fn what_is_wrong_with_cohorts_is_refused_with_its_place() {
    let staff = "[[service.cohort]]\nname = \"staff\"\n";
    for (text, part) in [
        (
            staff.to_owned(),
            "f:5:1: cohort \"staff\" lacks the key prefixes",
        ),
        (
            format!("{staff}prefixes = [\"10.1.0.0/16\", \"10.1.0.1/24\"]\n"),
            "f:7:28: \"10.1.0.1/24\" has bits behind its length: write \"10.1.0.0/24\"",
        ),
        (
            format!("{staff}prefixes = [\"10.1.0.0/16\", \"10.1.0.0/16\"]\n"),
            "f:7:28: service \"web\": cohort \"staff\" names 10.1.0.0/16 twice",
        ),
        (
            format!(
                "{staff}prefixes = [\"10.1.0.0/16\"]\n[[service.cohort]]\nname = \"b\"\nprefixes = [\"10.1.0.0/16\"]\n"
            ),
            "10.1.0.0/16 is in cohorts \"staff\" and \"b\"",
        ),
        (
            format!("{staff}prefixes = [\"10.1.0.0/16\"]\n{staff}prefixes = [\"10.2.0.0/16\"]\n"),
            "two cohorts are called \"staff\"",
        ),
        (
            format!("{staff}prefixes = []\n"),
            "cohort \"staff\" has no prefix",
        ),
        (
            format!("{staff}prefixes = [\"2001:db8::/32\"]\n"),
            "no prefix of cohort \"staff\" is IPv4, as the VIP is",
        ),
        (
            format!("{staff}prefixes = [\"10.1.0.0/16\", \"::ffff:10.0.0.0/104\"]\n"),
            "written as IPv6",
        ),
        (
            format!("{staff}prefixes = \"10.1.0.0/16\"\n"),
            "prefixes is a string: write a list",
        ),
        (format!("{staff}prefixes = [1]\n"), "write it in quotes"),
        (
            format!("{staff}pool = \"red\"\nprefixes = [\"10.1.0.0/16\"]\n"),
            "f:7:8: pool: \"red\" is no pool: write \"blue\", \"green\" or \"candidate\"",
        ),
        (
            format!("{staff}prefixs = [\"10.1.0.0/16\"]\n"),
            "did you mean \"prefixes\"?",
        ),
        (
            format!("{staff}prefixes_file = \"staff.txt\"\n"),
            "begins with '/'",
        ),
        (
            format!("{staff}prefixes_file = \"/staff.txt\"\n"),
            "no file is read here",
        ),
        ("cohort = 3\n".to_owned(), "write [[service.cohort]]"),
        (
            "[[service.cohort]]\nname = \"a b\"\nprefixes = [\"10.1.0.0/16\"]\n".to_owned(),
            "a cohort's name has 1 to 63",
        ),
    ] {
        let error = with(&text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_cohort_needs_a_pool_with_a_backend_unless_it_is_off() {
    let text = "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\npools = { blue = [\"10.0.0.1:80\"] }\n";
    let cohort = "[[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n";
    let parse = |text: &str| parse_services(text, "f", Format::Toml);
    let error = parse(&format!("{text}{cohort}")).unwrap_err().to_string();
    assert!(error.contains("green has no backend"), "{error}");
    assert!(parse(&format!("{text}cohorts_on = false\n{cohort}")).is_ok());
}

#[test]
fn a_file_of_prefixes_has_one_a_line_and_comments() {
    let text =
        format!("{HEAD}[[service.cohort]]\nname = \"staff\"\nprefixes_file = \"/staff.txt\"\n");
    let parse = |file: &str| {
        let file = file.to_owned();
        parse_services_with(&text, "f", Format::Toml, &mut |path| {
            assert_eq!(path, "/staff.txt");
            Ok(file.clone())
        })
        .map_err(|error| error.to_string())
    };
    let specs = parse("# staff\n10.1.0.0/16\n\n  10.2.0.7 # a desk\n").unwrap();
    let prefixes: Vec<String> = specs[0].cohorts[0]
        .prefixes
        .iter()
        .map(Prefix::to_string)
        .collect();
    assert_eq!(prefixes, ["10.1.0.0/16", "10.2.0.7/32"]);
    let error = parse("10.1.0.0/16\n10.1.0.1/16\n").unwrap_err();
    assert!(
        error.starts_with("f:7:17: prefixes_file: /staff.txt:2: \"10.1.0.1/16\" has bits"),
        "{error}"
    );
    let error = parse("10.1.0.0/16\n10.1.0.0/16\n").unwrap_err();
    assert!(error.contains("twice"), "{error}");
    let error = parse_services_with(&text, "f", Format::Toml, &mut |_| Err("gone".into()));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("prefixes_file: gone")
    );
}

#[test]
fn what_changes_is_told() {
    let one = with(
        "[[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n",
    )
    .unwrap();
    let mut two = with("[[service.cohort]]\nname = \"staff\"\npool = \"green\"\nprefixes = [\"10.1.0.0/16\"]\n[[service.cohort]]\nname = \"beta\"\nprefixes = [\"10.3.0.0/16\"]\n").unwrap();
    two.cohorts_on = false;
    let none = with("").unwrap();
    let told = |before: &ServiceSpec, after: &ServiceSpec| {
        let mut lines = Vec::new();
        details(before, after, &mut lines);
        lines
    };
    let lines = told(&one, &two);
    assert_eq!(
        &lines[..4],
        [
            "cohort staff: 2 prefixes -> 1 (0 new, 1 gone)",
            "cohort staff: candidate -> green",
            "cohort beta: + 1 prefix to candidate",
            "cohorts: on -> suspended",
        ]
    );
    assert!(lines[4].contains("is not known"));
    assert_eq!(told(&one, &none)[0], "cohort staff: - 2 prefixes");
    assert!(told(&one, &one).is_empty());
}
