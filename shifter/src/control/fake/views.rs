//! What the agent in memory shows.

use std::net::SocketAddr;

use shifter_common::{
    abi::{
        BackendCounters, PoolCounters,
        stats::{VERDICTS, Verdict},
    },
    histogram::bucket_of,
};

use crate::{
    datapath::{Census, FlowRow, HookStatus, LimitUse, ProgramState, ProgramStatus, VerdictCount},
    model::{
        PoolName, Protocol, ServiceSpec, Weight,
        signals::{Histogram, PoolSignals},
    },
    reconcile::controller::{
        Audit, BackendView, Change, FlowView, InfoView, Observed, Receipt, Recorded, ServiceView,
        ShareOf,
    },
};

pub(super) fn receipt(view: &ServiceView, before: f64) -> Receipt {
    Receipt {
        service: view.spec.name.clone(),
        generation: view.generation,
        etag: view.etag.clone(),
        moved_share: (view.programmed_share - before).abs(),
        green_share: view.programmed_share,
        programmed_ns: 214_000,
        total_ns: 480_000,
        unchanged: false,
        warnings: Vec::new(),
    }
}

/// A service as the fake shows it: 1,000 new flows, 5.1% of them on green.
pub(super) fn view(spec: &ServiceSpec, generation: u32) -> ServiceView {
    let mut backends = Vec::new();
    for pool in [PoolName::Blue, PoolName::Green] {
        for spec in spec.pool(pool) {
            let silent = pool == PoolName::Green;
            backends.push(BackendView {
                id: backends.len() as u16 + 1,
                pool,
                spec: *spec,
                health: "unknown",
                checks: None,
                placement: "host",
                live_flows: if silent { 3 } else { 97 },
                counters: BackendCounters {
                    flows: 500,
                    forward_packets: 12_345,
                    forward_bytes: 1_234_567,
                    reply_packets: if silent { 0 } else { 23_456 },
                    reply_bytes: if silent { 0 } else { 34_567_890 },
                },
                warnings: match silent {
                    true => vec![format!("{} was sent flows and answered none through this host: its route to the clients must lead here", spec.addr)],
                    false => Vec::new(),
                },
            });
        }
    }
    let counters = |new_flows| PoolCounters {
        new_flows,
        adopted_flows: 7,
        unpinned_flows: 1,
        forward_packets: 12_345,
        forward_bytes: 1_234_567,
        reply_packets: 23_456,
        reply_bytes: 34_567_890,
        cohort_flows: 0,
        fragments: 2,
    };
    ServiceView {
        spec: spec.clone(),
        etag: format!("e{generation}"),
        generation,
        programmed_share: spec.green.share(),
        observed: Observed {
            window_s: 60,
            green: 51,
            total: 1_000,
            interval: Some((0.051, 0.039, 0.066)),
            adopted: 7,
            unpinned: 1,
            cohort: 0,
        },
        carried: [97, 3],
        idle: [2, 0],
        dead_man: None,
        backends,
        first_flow: None,
        adoption: "single",
        counters: [counters(949), counters(51)],
        signals: [signals(949, 300_000), signals(51, 3_000_000)],
        breaker: None,
        cohorts: if spec.cohorts.is_empty() { "" } else { "on" },
        warnings: Vec::new(),
        cuts: Vec::new(),
        ended_flows: [("rollback", 0), ("drain", 0), ("down", 0)],
    }
}

/// Two refused, 64 segments sent again, all handshakes of one length.
fn signals(attempts: u64, handshake_ns: u64) -> PoolSignals {
    let mut handshake = Histogram::default();
    handshake.0[bucket_of(handshake_ns)] = attempts - 2;
    PoolSignals {
        attempts,
        answered: attempts - 2,
        refused: 2,
        backend_retransmits: 64,
        ended: attempts - 10,
        bytes: 1_000_000,
        handshake,
        ..PoolSignals::default()
    }
}

pub(super) fn weight_change(view: &ServiceView, green: Weight) -> Change {
    Change {
        service: view.spec.name.clone(),
        action: if view.spec.green == green {
            "unchanged"
        } else {
            "update"
        },
        details: vec![format!("green: {} -> {green}", view.spec.green)],
        moved_share: (green.share() - view.spec.green.share()).abs(),
        flows_that_stay: view.carried.iter().sum(),
        warnings: match green.share() > 0.5 {
            true => vec!["more than half of the new flows leave the live pool".to_owned()],
            false => Vec::new(),
        },
    }
}

pub(super) fn green_of(view: &ServiceView, share: ShareOf) -> Weight {
    match (share, view.spec.live) {
        (ShareOf::Green(weight), _) | (ShareOf::Candidate(weight), PoolName::Blue) => weight,
        (ShareOf::Blue(weight), _) | (ShareOf::Candidate(weight), PoolName::Green) => {
            weight.complement()
        }
    }
}

pub(super) fn flow(service: &str, port: u16, pool: PoolName) -> FlowView {
    FlowView {
        service: service.to_owned(),
        backend: SocketAddr::from(([10, 0, u8::from(pool == PoolName::Green), 11], 8443)),
        row: FlowRow {
            service: 0,
            client: SocketAddr::from(([192, 0, 2, 7], port)),
            protocol: Protocol::Tcp,
            pool,
            backend: 1,
            state: "established",
            proven: true,
            adopted: false,
            cohort: false,
            generation: 1,
            age_s: 3_725.0,
            idle_s: 0.25,
            bytes: 1_048_576,
        },
    }
}

/// The agent as the fake shows it.
pub(super) fn info(services: u64) -> InfoView {
    let verdict = |(number, (_, reason)): (usize, &(_, &'static str))| VerdictCount {
        hook: "tc",
        number: number as u32,
        reason,
        packets: number as u64 % 16,
    };
    InfoView {
        tag: "t1".to_owned(),
        uptime_s: 61.5,
        hooks: vec![HookStatus {
            interface: "eth0".to_owned(),
            ifindex: 2,
            hook: "tc".to_owned(),
            egress: "tcx".to_owned(),
            why: "auto: veth".to_owned(),
            tag: "t1".to_owned(),
            up: true,
            programs: vec![
                ProgramStatus {
                    direction: "ingress",
                    at: "tcx",
                    id: 41,
                    name: "shifter_ingress".to_owned(),
                    tag: "0f01020304050607".to_owned(),
                    state: ProgramState::Ours,
                },
                ProgramStatus {
                    direction: "egress",
                    at: "none",
                    ..ProgramStatus::default()
                },
            ],
        }],
        limits: vec![LimitUse {
            name: "services",
            used: services,
            limit: 8_192,
            memory_bytes: 3_145_728,
        }],
        census: Census {
            live: 100,
            proven: 90,
            unproven: 6,
            closing: 4,
            evicted: [("half_open", 7)].into(),
            took_ns: 1_500_000,
            ..Census::default()
        },
        flow_capacity: 1_048_576,
        table_memory_bytes: 134_217_728,
        // One of them goes on, the others are over.
        dropped_lately: [(("tc", Verdict::TableFull as u32), 9)].into(),
        verdicts: VERDICTS.iter().enumerate().map(verdict).collect(),
        warnings: vec!["16 Mi hugepages are missing".to_owned()],
        state_dir: "/var/lib/shifter".to_owned(),
    }
}

/// Two records, newest first.
pub(super) fn audit() -> Vec<Recorded> {
    let shift = Audit {
        at_unix_ms: 1_800_000_061_250,
        actor: "uid 0 pid 4242".into(),
        request_id: "r-7".into(),
        service: "web".into(),
        action: "shift".into(),
        reason: "canary".into(),
        before: "blue live, green 0%".into(),
        after: "blue live, green 5%".into(),
        generation: 2,
    };
    let apply = Audit {
        at_unix_ms: 1_800_000_000_000,
        request_id: String::new(),
        action: "apply".into(),
        reason: String::new(),
        before: String::new(),
        after: "create: vip: 203.0.113.10:443/tcp".into(),
        generation: 1,
        ..shift.clone()
    };
    let record = |(number, audit)| Recorded { number, audit };
    [(2, shift), (1, apply)].map(record).into()
}
