//! Tests of the metrics page and of the dashboard over it.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
};

use tokio::{runtime::Runtime, sync::watch};

use super::{Receipts, bind, is_drop, render, serve};
use crate::{
    control::{
        fake::FakeAgent,
        testbed::{Directory, Testbed},
    },
    model::{breaker::Breaker, health::Written},
    reconcile::controller::{
        BreakerView, DeadManView, Receipt, RolloutFigures, RolloutView, Standing,
    },
};

/// A page on which every metric has a sample.
fn full_page() -> String {
    let testbed = Testbed::with_web();
    testbed.agent.edit("web", |view| {
        view.dead_man = Some(DeadManView {
            safe_share: 0.0,
            remaining_s: 598.5,
            passed: false,
        });
        view.first_flow = Some((1, 1_200_000));
        view.cohorts = "on";
        view.backends[0].health = "up";
        view.backends[0].checks = Some(Standing {
            passed: 7,
            failures: [("refused", 2), ("answer", 1)].into(),
            took: std::time::Duration::from_millis(3),
            ..Standing::default()
        });
        let tcp = Written {
            kind: Some("tcp".into()),
            ..Written::default()
        };
        view.spec.health = tcp.read().ok();
        view.breaker = Some(BreakerView {
            breaker: Breaker::default(),
            attempts: 40,
            failures: 4,
            tripped_ago_s: None,
            warning: None,
        });
    });
    let rollout = RolloutView {
        service: "web".into(),
        state: "holding".into(),
        step: 1,
        weight: "5%".into(),
        ..RolloutView::default()
    };
    let figures = RolloutFigures {
        outcomes: vec![("promoted".into(), 3)],
        reported: 4,
        without_interruption: 3,
        rollback_mean_ns: Some(250_000.0),
    };
    testbed.agent.roll_out(vec![rollout], figures);
    render(&*testbed.agent, &testbed.receipts).unwrap()
}

/// Names of the families on a page, with the suffixes of histograms.
fn names(page: &str) -> BTreeSet<&str> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect()
}

/// The families of a page as the rows of a table, with the labels of their samples.
fn table(page: &str) -> String {
    let mut rows = vec![
        "| metric | type | labels | what |".to_owned(),
        "|---|---|---|---|".to_owned(),
    ];
    let of = |kind: &str, name: &str| {
        let start = format!("# {kind} {name} ");
        let mut lines = page.lines();
        let text = lines.find_map(|line| line.strip_prefix(start.as_str()));
        text.unwrap_or_default().to_owned()
    };
    let heads = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut names: Vec<&str> = heads.filter_map(|head| head.split(' ').next()).collect();
    names.sort_unstable();
    for name in names {
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with('{') || rest.starts_with("_bucket{")
        };
        let plain = [format!("{name} "), format!("{name}_bucket{{le=")];
        let is_plain = |line: &str| plain.iter().any(|start| line.starts_with(start));
        assert!(
            page.lines().any(|line| is_sample(&line) || is_plain(line)),
            "{name} has no sample on the page"
        );
        let labels = page.lines().find(is_sample).map_or(String::new(), |line| {
            let inside = line.split(['{', '}']).nth(1).unwrap_or_default();
            let keys = inside.split(',').filter_map(|pair| pair.split('=').next());
            let keys = keys.filter(|key| *key != "le");
            let keys: Vec<String> = keys.map(|key| format!("`{key}`")).collect();
            keys.join(", ")
        });
        let (kind, help) = (of("TYPE", name), of("HELP", name));
        rows.push(format!("| `{name}` | {kind} | {labels} | {help} |"));
    }
    rows.join("\n")
}

#[test]
fn every_metric_stands_in_the_docs() {
    let docs = include_str!("../../../docs/metrics.md");
    let rows = docs.lines().filter(|line| line.starts_with('|'));
    let written = rows.collect::<Vec<_>>().join("\n");
    let table = table(&full_page());
    assert!(
        written == table,
        "docs/metrics.md is not what is served; its table is to be\n\n{table}"
    );
}

#[test]
fn every_number_of_a_service_is_on_the_page() {
    let page = full_page();
    for line in [
        "shifter_backend_checks_passed_total{service=\"web\",pool=\"blue\",backend=\"10.0.0.11:8443\"} 7",
        "shifter_backend_checks_failed_total{service=\"web\",pool=\"blue\",backend=\"10.0.0.11:8443\",reason=\"refused\"} 2",
        "shifter_backend_check_seconds{service=\"web\",pool=\"blue\",backend=\"10.0.0.11:8443\"} 0.003",
        "shifter_pool_backends_up{service=\"web\",pool=\"blue\"} 1",
        "shifter_interface_program_in_force{interface=\"eth0\",direction=\"ingress\"} 1",
        "shifter_interface_program_in_force{interface=\"eth0\",direction=\"egress\"} 0",
        "shifter_build_info{version=\"0.1.0\",abi=\"5\",tag=\"t1\"} 1",
        "shifter_weight_configured_ratio{service=\"web\"} 0.05",
        "shifter_weight_programmed_ratio{service=\"web\"} 0.05",
        "shifter_weight_observed_ratio{service=\"web\"} 0.051",
        "shifter_weight_observed_low_ratio{service=\"web\"} 0.039",
        "shifter_weight_observed_high_ratio{service=\"web\"} 0.066",
        "shifter_weight_carried_ratio{service=\"web\"} 0.03",
        "shifter_dead_man_remaining_seconds{service=\"web\"} 598.5",
        "shifter_pool_new_flows_total{service=\"web\",pool=\"green\"} 51",
        "shifter_pool_adopted_flows_total{service=\"web\",pool=\"blue\"} 7",
        "shifter_pool_cohort_flows_total{service=\"web\",pool=\"green\"} 0",
        "shifter_pool_bytes_total{service=\"web\",pool=\"blue\",direction=\"reply\"} 34567890",
        "shifter_pool_attempts_total{service=\"web\",pool=\"green\"} 51",
        "shifter_pool_failures_total{service=\"web\",pool=\"green\",kind=\"refused\"} 2",
        "shifter_pool_retransmits_total{service=\"web\",pool=\"blue\",side=\"backend\"} 64",
        "shifter_pool_handshake_seconds_bucket{service=\"web\",pool=\"green\",le=\"0.002097152\"} 0",
        "shifter_pool_handshake_seconds_bucket{service=\"web\",pool=\"green\",le=\"0.004194304\"} 49",
        "shifter_pool_handshake_seconds_count{service=\"web\",pool=\"green\"} 49",
        "shifter_breaker_tripped{service=\"web\"} 0",
        "shifter_breaker_failures{service=\"web\"} 4",
        "shifter_service_fragments_total{service=\"web\"} 4",
        "shifter_backend_packets_total{service=\"web\",pool=\"green\",backend=\"10.0.1.11:8443\",direction=\"reply\"} 0",
        "shifter_backend_up{service=\"web\",pool=\"blue\",backend=\"10.0.0.11:8443\"} 1",
        "shifter_verdict_packets_total{hook=\"tc\",reason=\"table_full\",drop=\"1\"} 15",
        "shifter_flow_table_flows{state=\"proven\"} 90",
        "shifter_flow_table_evicted_total{state=\"half_open\"} 7",
        "shifter_flow_table_capacity_flows 1048576",
        "shifter_limit_used{limit=\"services\"} 1",
        "shifter_writes_total{verb=\"apply\",result=\"ok\"} 1",
        "shifter_write_programmed_seconds_bucket{le=\"0.00025\"} 1",
        "shifter_write_programmed_seconds_sum 0.000214",
        "shifter_rollout_state{service=\"web\",state=\"holding\"} 1",
        "shifter_rollout_step{service=\"web\"} 2",
        "shifter_rollout_weight_ratio{service=\"web\"} 0.05",
        "shifter_rollouts_ended{outcome=\"promoted\"} 3",
        "shifter_rollouts_without_interruption_ratio 0.75",
        "shifter_rollout_rollback_mean_seconds 0.00025",
        "shifter_agent_warnings 1",
    ] {
        assert!(
            page.lines().any(|l| l == line),
            "{line} is not on the page:\n{page}"
        );
    }
    assert!(
        !page.contains("shifter_backend_up{service=\"web\",pool=\"green\""),
        "unknown health is shown"
    );
}

#[test]
fn each_family_has_one_help_one_type_and_a_name_that_fits_its_type() {
    let page = full_page();
    let mut seen = BTreeSet::new();
    let mut family = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(seen.insert(name), "{name} comes twice");
            assert_eq!(
                name.ends_with("_total"),
                kind == "counter",
                "{name} is a {kind}"
            );
            family = (name, kind);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = match family.1 {
                "histogram" => name
                    .trim_end_matches("_bucket")
                    .trim_end_matches("_sum")
                    .trim_end_matches("_count"),
                _ => name,
            };
            assert_eq!(base, family.0, "{line} is in another family");
        }
    }
    assert_eq!(page.matches("# HELP ").count(), seen.len());
}

#[test]
fn an_agent_without_services_has_a_page_too() {
    let page = render(&FakeAgent::new(), &Receipts::default()).unwrap();
    assert!(
        page.contains("shifter_write_total_seconds_count 0"),
        "{page}"
    );
    assert!(!page.contains("service="), "{page}");
}

#[test]
fn only_drop_verdicts_count_as_drops() {
    let drops: Vec<_> = shifter_common::abi::stats::VERDICTS
        .iter()
        .filter(|(verdict, _)| is_drop(*verdict as u32))
        .map(|(_, name)| *name)
        .collect();
    assert_eq!(
        drops,
        ["table_full", "tuple_clash", "no_backend", "rewrite_failed"]
    );
}

fn ask(addr: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    let request = format!("{head} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_read_only_over_http() {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(bind(([127, 0, 0, 1], 0).into())).unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let receipts = Arc::new(Receipts::default());
    receipts.record("rollback", &Receipt::default());
    let server = runtime.spawn(serve(
        listener,
        Arc::new(FakeAgent::new()),
        receipts,
        stopped,
    ));
    let answer = ask(addr, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(
        answer.contains("shifter_writes_total{verb=\"rollback\",result=\"ok\"} 1\n"),
        "{answer}"
    );
    assert!(ask(addr, "GET /healthz").ends_with("\r\n\r\nok\n"));
    assert!(ask(addr, "GET /").starts_with("HTTP/1.1 404"));
    let answer = ask(addr, "POST /metrics");
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET"),
        "{answer}"
    );
    let busy = runtime.block_on(bind(addr)).unwrap_err().to_string();
    assert!(busy.contains("[metrics] listen"), "{busy}");
    stop.send_replace(true);
    runtime.block_on(server).unwrap();
}

/// The queries of every panel.
fn panel_queries(dashboard: &serde_json::Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// Gives `input` to promtool, which has nothing to say about what is right.
/// Without promtool the test is skipped, loudly; under CI that is a failure.
fn promtool(args: &[&str], input: &str) {
    let started = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        assert!(
            std::env::var_os("CI").is_none(),
            "promtool is missing: apt-get install prometheus"
        );
        eprintln!("SKIPPED: promtool is missing (apt-get install prometheus)");
        return;
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let said = promtool.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    assert!(said.status.success(), "promtool {args:?}: {out}{err}");
}

#[test]
fn promtool_finds_nothing_wrong_with_the_page() {
    promtool(&["check", "metrics"], &full_page());
}

#[test]
fn promtool_understands_every_query_of_the_dashboard() {
    let text = include_str!("../../../packaging/grafana/shifter.json");
    let queries = panel_queries(&serde_json::from_str(text).unwrap());
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(index, query)| {
            let expr = query
                .replace("$__rate_interval", "1m")
                .replace("$service", ".*");
            serde_json::json!({ "record": format!("query:{index}"), "expr": expr })
        })
        .collect();
    // JSON is YAML as well.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let directory = Directory::new();
    let path = directory.0.join("rules.yml");
    std::fs::write(&path, rules.to_string()).unwrap();
    promtool(&["check", "rules", path.to_str().unwrap()], "");
}

#[test]
fn the_dashboard_parses_and_asks_only_for_metrics_that_exist() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/grafana/shifter.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let page = full_page();
    let known = names(&page);
    for panel in dashboard["panels"].as_array().unwrap() {
        assert_eq!(
            panel["datasource"]["uid"], "${datasource}",
            "{}",
            panel["title"]
        );
    }
    let mut queries = panel_queries(&dashboard);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let of_variables = variables
        .iter()
        .filter_map(|variable| variable["query"]["query"].as_str());
    queries.extend(of_variables.map(str::to_owned));
    let mut asked = BTreeSet::new();
    for query in &queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked.extend(words.filter(|word| word.starts_with("shifter_")));
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert_eq!(
        unknown,
        Vec::<&&str>::new(),
        "the dashboard asks for what is not there"
    );
    for needed in [
        "shifter_weight_observed_low_ratio",
        "shifter_build_info",
        "shifter_backend_packets_total",
        "shifter_write_programmed_seconds_bucket",
        "shifter_rollouts_without_interruption_ratio",
        "shifter_rollout_rollback_mean_seconds",
    ] {
        assert!(asked.contains(needed), "no panel shows {needed}");
    }
}
