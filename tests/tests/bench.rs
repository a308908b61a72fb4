//! The bench in its shortest form: that it measures what it says. Times are
//! looked at by nobody here.

use shifter::datapath::attach::Place;
use shifter_tests::{
    bench::{control, migration, object, packets},
    need,
};

#[test]
fn every_case_of_the_bench_does_with_each_packet_what_it_says() {
    // Builds the programs of the bench, unless they are given.
    if std::env::var_os(object::OBJECT).is_some() {
        need!();
    } else {
        need!("rustup", "bpf-linker");
    }
    let options = packets::Options {
        object: object::path().unwrap(),
        places: vec![Place::Xdp, Place::TcIngress],
        cases: vec!["ipv4-tcp".to_owned(), "ipv6-udp".to_owned()],
        flows: vec![1, 64],
        loads: 1,
        packets: 256,
        flow_capacity: 1_024,
    };
    let lines = packets::measure(&options, &mut |_| {}).unwrap();
    // By hook: seven cases of TCP, four of them with a single flow; five of UDP, four of them.
    assert_eq!(lines.len(), 2 * (7 + 4 + 5 + 4));
    let report = packets::json(&lines);
    for line in report.as_array().unwrap() {
        for subject in ["driver_ns", "wait_ns", "shifter_ns", "reference_ns"] {
            let values = line[subject]["values"].as_array();
            assert_eq!(values.map(Vec::len), Some(1), "{line}");
        }
    }
    let table = packets::table(&lines);
    for case in ["ipv4-tcp-forward", "ipv6-udp-reply", "ipv4-tcp-adopt"] {
        assert!(table.contains(case), "{table}");
    }
}

#[test]
fn the_bench_of_a_migration_moves_every_flow() {
    need!();
    let options = control::Options {
        rounds: 1,
        flows: 4_096,
        flow_capacity: 4_096,
        ..control::Options::default()
    };
    let lines = migration::measure(&options, &mut |_| {}).unwrap();
    // Two of the agent; two kinds of traffic, before and while flows move.
    assert_eq!(lines.len(), 2 + 2 * 2 * 3, "{lines:?}");
}
