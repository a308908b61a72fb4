//! The page of metrics, and what services, backends and the flow table have on it.

use shifter_common::abi::{ABI_VERSION, PoolCounters};

use super::{
    checks, cohorts, cuts, interfaces, is_drop,
    receipts::Receipts,
    rollouts,
    text::{
        Kind::{Counter, Gauge},
        Page,
    },
};
use crate::{
    model::PoolName,
    reconcile::{
        Controller,
        controller::{BackendView, ControlError, InfoView, ServiceView},
    },
};

pub(super) const POOLS: [PoolName; 2] = [PoolName::Blue, PoolName::Green];

/// The whole page at this moment. Reads the agent's state; takes some ms.
pub fn render(controller: &dyn Controller, receipts: &Receipts) -> Result<String, ControlError> {
    let services = controller.list()?;
    let info = controller.info()?;
    let mut page = Page::default();
    agent(&mut page, &info);
    weights(&mut page, &services);
    dead_men(&mut page, &services);
    pools(&mut page, &services);
    super::signals::families(&mut page, &services);
    backends(&mut page, &services);
    verdicts(&mut page, &info);
    table(&mut page, &info);
    writes(&mut page, receipts);
    rollouts::families(&mut page, controller)?;
    Ok(page.finish())
}

fn agent(page: &mut Page, info: &InfoView) {
    let abi = ABI_VERSION.to_string();
    page.family("shifter_build_info", Gauge, "The agent's build; always 1.")
        .sample(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("abi", &abi),
                ("tag", &info.tag),
            ],
            1,
        );
    page.family(
        "shifter_agent_uptime_seconds",
        Gauge,
        "Time since the agent's start.",
    )
    .sample(&[], info.uptime_s);
    page.family(
        "shifter_agent_warnings",
        Gauge,
        "Warnings of the agent itself; `shifter status` prints them.",
    )
    .sample(&[], info.warnings.len());
    interfaces::families(page, info);
    let mut family = page.family("shifter_limit_used", Gauge, "What of a limit is used.");
    for limit in &info.limits {
        family.sample(&[("limit", limit.name)], limit.used);
    }
    let mut family = page.family(
        "shifter_limit_max",
        Gauge,
        "A limit, fixed at the agent's start.",
    );
    for limit in &info.limits {
        family.sample(&[("limit", limit.name)], limit.limit);
    }
    let mut family = page.family(
        "shifter_limit_memory_bytes",
        Gauge,
        "Kernel memory that a whole limit takes.",
    );
    for limit in &info.limits {
        family.sample(&[("limit", limit.name)], limit.memory_bytes);
    }
}

/// One gauge with a sample per service that has a value.
fn by_service(
    page: &mut Page,
    services: &[ServiceView],
    name: &'static str,
    help: &str,
    value: impl Fn(&ServiceView) -> Option<f64>,
) {
    let mut family = page.family(name, Gauge, help);
    for view in services {
        if let Some(value) = value(view) {
            family.sample(&[("service", &view.spec.name)], value);
        }
    }
}

fn weights(page: &mut Page, services: &[ServiceView]) {
    by_service(
        page,
        services,
        "shifter_weight_configured_ratio",
        "Share of new flows that green shall get.",
        |view| Some(view.spec.green.share()),
    );
    by_service(
        page,
        services,
        "shifter_weight_programmed_ratio",
        "Share of green that the kernel acts on, the dead-man included.",
        |view| Some(view.programmed_share),
    );
    by_service(
        page,
        services,
        "shifter_weight_observed_ratio",
        "Share of green among the new affinity keys of the window; absent without any.",
        |view| view.observed.interval.map(|(share, _, _)| share),
    );
    by_service(
        page,
        services,
        "shifter_weight_observed_low_ratio",
        "Lower end of the observed share's 95% Wilson interval.",
        |view| view.observed.interval.map(|(_, low, _)| low),
    );
    by_service(
        page,
        services,
        "shifter_weight_observed_high_ratio",
        "Upper end of the observed share's 95% Wilson interval.",
        |view| view.observed.interval.map(|(_, _, high)| high),
    );
    by_service(
        page,
        services,
        "shifter_weight_observed_keys",
        "New affinity keys in the window.",
        |view| Some(view.observed.total as f64),
    );
    by_service(
        page,
        services,
        "shifter_weight_observed_window_seconds",
        "The window of the observed share.",
        |view| Some(f64::from(view.observed.window_s)),
    );
    by_service(
        page,
        services,
        "shifter_weight_carried_ratio",
        "Share of green among live flows; absent without any.",
        |view| {
            let [blue, green] = view.carried;
            (blue + green > 0).then(|| green as f64 / (blue + green) as f64)
        },
    );
    by_service(
        page,
        services,
        "shifter_service_generation",
        "Generation that is in force.",
        |view| Some(f64::from(view.generation)),
    );
    by_service(
        page,
        services,
        "shifter_service_live_green",
        "1 where the live pool is green, 0 where it is blue.",
        |view| Some(f64::from(u8::from(view.spec.live == PoolName::Green))),
    );
    by_service(
        page,
        services,
        "shifter_service_warnings",
        "Warnings of a service; `shifter get services` prints them.",
        |view| Some(view.warnings.len() as f64),
    );
    by_service(
        page,
        services,
        "shifter_first_flow_seconds",
        "From the newest publication to the first flow chosen under it.",
        |view| view.first_flow.map(|(_, ns)| ns as f64 / 1e9),
    );
}

fn dead_men(page: &mut Page, services: &[ServiceView]) {
    by_service(
        page,
        services,
        "shifter_dead_man_remaining_seconds",
        "Time until the safe split holds; absent where no dead-man is armed.",
        |view| view.dead_man.map(|dead_man| dead_man.remaining_s.max(0.0)),
    );
    by_service(
        page,
        services,
        "shifter_dead_man_passed",
        "1 where the deadline has passed and the safe split holds.",
        |view| {
            view.dead_man
                .map(|dead_man| f64::from(u8::from(dead_man.passed)))
        },
    );
}

/// One family with a sample per service and pool.
fn by_pool(
    page: &mut Page,
    services: &[ServiceView],
    (name, help): (&'static str, &str),
    value: impl Fn(&PoolCounters) -> u64,
) {
    let mut family = page.family(name, Counter, help);
    for view in services {
        for pool in POOLS {
            let labels = [("service", view.spec.name.as_str()), ("pool", word(pool))];
            family.sample(&labels, value(&view.counters[pool.index()]));
        }
    }
}

/// As [`by_pool`], for both directions.
fn by_pool_and_direction(
    page: &mut Page,
    services: &[ServiceView],
    (name, help): (&'static str, &str),
    value: impl Fn(&PoolCounters) -> [u64; 2],
) {
    let mut family = page.family(name, Counter, help);
    for view in services {
        for pool in POOLS {
            let values = value(&view.counters[pool.index()]);
            for (direction, value) in DIRECTIONS.into_iter().zip(values) {
                let labels = [
                    ("service", view.spec.name.as_str()),
                    ("pool", word(pool)),
                    ("direction", direction),
                ];
                family.sample(&labels, value);
            }
        }
    }
}

/// From clients to backends, and back.
const DIRECTIONS: [&str; 2] = ["forward", "reply"];

pub(super) const fn word(pool: PoolName) -> &'static str {
    match pool {
        PoolName::Blue => "blue",
        PoolName::Green => "green",
    }
}

fn pools(page: &mut Page, services: &[ServiceView]) {
    by_pool(
        page,
        services,
        (
            "shifter_pool_new_flows_total",
            "Flows chosen by weight and pinned.",
        ),
        |c| c.new_flows,
    );
    by_pool(
        page,
        services,
        (
            "shifter_pool_adopted_flows_total",
            "Flows taken over, not chosen.",
        ),
        |c| c.adopted_flows,
    );
    by_pool(
        page,
        services,
        (
            "shifter_pool_cohort_flows_total",
            "New flows whose pool a cohort forced; not among those chosen by weight.",
        ),
        |c| c.cohort_flows,
    );
    by_pool(
        page,
        services,
        (
            "shifter_pool_unpinned_flows_total",
            "New flows forwarded without an entry.",
        ),
        |c| c.unpinned_flows,
    );
    by_pool_and_direction(
        page,
        services,
        (
            "shifter_pool_packets_total",
            "Packets of a pool by direction.",
        ),
        |c| [c.forward_packets, c.reply_packets],
    );
    by_pool_and_direction(
        page,
        services,
        (
            "shifter_pool_bytes_total",
            "Bytes of a pool at layer 3 by direction.",
        ),
        |c| [c.forward_bytes, c.reply_bytes],
    );
    let mut family = page.family(
        "shifter_service_fragments_total",
        Counter,
        "Fragments to the VIP, passed untouched.",
    );
    for view in services {
        let fragments: u64 = view.counters.iter().map(|c| c.fragments).sum();
        family.sample(&[("service", &view.spec.name)], fragments);
    }
    cohorts::family(page, services);
    cuts::family(page, services);
    let mut family = page.family("shifter_pool_flows", Gauge, "Live flows of a pool.");
    for view in services {
        for pool in POOLS {
            let labels = [("service", view.spec.name.as_str()), ("pool", word(pool))];
            family.sample(&labels, view.carried[pool.index()]);
        }
    }
}

/// Calls `each` with every backend and its labels.
pub(super) fn each_backend(
    services: &[ServiceView],
    mut each: impl FnMut(&BackendView, [(&'static str, &str); 3]),
) {
    for view in services {
        for backend in &view.backends {
            let address = backend.spec.addr.to_string();
            let service = view.spec.name.as_str();
            each(
                backend,
                [
                    ("service", service),
                    ("pool", word(backend.pool)),
                    ("backend", &address),
                ],
            );
        }
    }
}

fn backends(page: &mut Page, services: &[ServiceView]) {
    // Counted per backend of the host: one that two services share shows the same count in both.
    let mut family = page.family(
        "shifter_backend_new_flows_total",
        Counter,
        "Flows pinned to a backend, by whichever service.",
    );
    each_backend(services, |backend, labels| {
        family.sample(&labels, backend.counters.flows);
    });
    let mut family = page.family("shifter_backend_flows", Gauge, "Live flows of a backend.");
    each_backend(services, |backend, labels| {
        family.sample(&labels, backend.live_flows);
    });
    let mut family = page.family(
        "shifter_backend_packets_total",
        Counter,
        "Packets of a backend by direction.",
    );
    each_backend(services, |backend, [a, b, c]| {
        family.sample(
            &[a, b, c, ("direction", "forward")],
            backend.counters.forward_packets,
        );
        family.sample(
            &[a, b, c, ("direction", "reply")],
            backend.counters.reply_packets,
        );
    });
    let mut family = page.family(
        "shifter_backend_bytes_total",
        Counter,
        "Bytes of a backend at layer 3 by direction.",
    );
    each_backend(services, |backend, [a, b, c]| {
        family.sample(
            &[a, b, c, ("direction", "forward")],
            backend.counters.forward_bytes,
        );
        family.sample(
            &[a, b, c, ("direction", "reply")],
            backend.counters.reply_bytes,
        );
    });
    let mut family = page.family(
        "shifter_backend_up",
        Gauge,
        "1 up, 0 down; absent where the health is unknown.",
    );
    each_backend(services, |backend, labels| {
        if backend.health != "unknown" {
            family.sample(&labels, u8::from(backend.health == "up"));
        }
    });
    checks::families(page, services);
    let mut family = page.family(
        "shifter_backend_warnings",
        Gauge,
        "Warnings of a backend; `shifter get backends` prints them.",
    );
    each_backend(services, |backend, labels| {
        family.sample(&labels, backend.warnings.len());
    });
}

fn verdicts(page: &mut Page, info: &InfoView) {
    let mut family = page.family(
        "shifter_verdict_packets_total",
        Counter,
        "Packets by the reason of their verdict; drop is 1 for those that were dropped.",
    );
    for count in &info.verdicts {
        let drop = if is_drop(count.number) { "1" } else { "0" };
        family.sample(
            &[
                ("hook", count.hook),
                ("reason", count.reason),
                ("drop", drop),
            ],
            count.packets,
        );
    }
}

fn table(page: &mut Page, info: &InfoView) {
    let census = &info.census;
    let mut family = page.family(
        "shifter_flow_table_flows",
        Gauge,
        "Entries of the flow table by state.",
    );
    for (state, flows) in [
        ("proven", census.proven),
        ("unproven", census.unproven),
        ("closing", census.closing),
    ] {
        family.sample(&[("state", state)], flows);
    }
    let mut family = page.family(
        "shifter_flow_table_evicted_total",
        Counter,
        "Flows that gave way to new ones, by the state they were in.",
    );
    for (state, flows) in &census.evicted {
        family.sample(&[("state", state)], *flows);
    }
    page.family(
        "shifter_flow_table_capacity_flows",
        Gauge,
        "Flows that the table can pin.",
    )
    .sample(&[], info.flow_capacity);
    page.family(
        "shifter_flow_table_memory_bytes",
        Gauge,
        "Kernel memory of the flow table.",
    )
    .sample(&[], info.table_memory_bytes);
    page.family(
        "shifter_flow_table_census_seconds",
        Gauge,
        "What the last pass over the flow table took.",
    )
    .sample(&[], census.took_ns as f64 / 1e9);
}

fn writes(page: &mut Page, receipts: &Receipts) {
    let mut family = page.family(
        "shifter_writes_total",
        Counter,
        "Writes over the API by verb and result: ok, unchanged, or why it was refused.",
    );
    for (verb, result, count) in receipts.writes() {
        family.sample(&[("verb", verb), ("result", result)], count);
    }
    page.histogram(
        "shifter_write_programmed_seconds",
        "From a write's arrival to its publication in the kernel.",
        &receipts.programmed(),
    );
    page.histogram(
        "shifter_write_total_seconds",
        "From a write's arrival to its answer, commit included.",
        &receipts.total(),
    );
}
