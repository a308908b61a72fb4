//! Gates over TLS: a real Prometheus with a certificate of its own.

use shifter_tests::{
    certificates::Certificates,
    command::eventually,
    need,
    prometheus::{self, PROMETHEUS},
    topology::{Lab, Placement},
};

use crate::{
    SOON,
    bed::{agent, at_once, await_state, begin, file, green, report, restart_with, service, why},
    hook_server::HOST,
};

/// A canary that asks Prometheus under this host of the URL; `[gates]` with `ca`.
fn asks(lab: &Lab, host: &str, ca: &str) -> String {
    let rollout = format!(
        "[service.rollout]\nstrategy = \"canary\"\nsteps = [\"10%\", \"50%\"]\ninterval = \"2s\"\nbake = \"1h\"\n\
         gates = [{{ judge = \"prometheus\", url = \"https://{host}\", query = \"vector(1)\", max = 5, \
         interval = \"1s\", timeout = \"3s\", on_error = \"hold\" }}]\n"
    );
    let hosts = "[gates]\n";
    file(&service(lab), None, &rollout).replace(hosts, &format!("{hosts}{ca}"))
}

#[test]
fn a_server_is_asked_over_tls_if_its_certificate_holds() {
    need!("prometheus", "openssl");
    let lab = Lab::new(Placement::Container).unwrap();
    let certificates = Certificates::make(lab.dir(), "localhost").unwrap();
    let _prometheus = prometheus::start_with_tls(&lab, "app", HOST, &certificates).unwrap();
    let ca = format!("ca = \"{}\"\n", certificates.ca.display());
    let port = PROMETHEUS.split_once(':').unwrap().1;
    let by_name = format!("localhost:{port}");

    let mut agent = agent(&lab, asks(&lab, &by_name, &ca));
    begin(&agent);
    assert!(
        eventually(SOON, || green(&agent) == "50%"),
        "{}",
        why(&agent)
    );
    at_once(&agent, &["rollout", "abort", crate::bed::NAME]);
    report(&agent, SOON);

    for (host, ca, part) in [
        // Nobody whom this host trusts has signed it.
        (
            &*by_name,
            "",
            "its certificate is not accepted: UnknownIssuer",
        ),
        // It is another's.
        (PROMETHEUS, &*ca, "certificate not valid for name"),
        (
            &*by_name,
            "ca = \"/nowhere.pem\"\n",
            "reading /nowhere.pem failed",
        ),
    ] {
        restart_with(&mut agent, asks(&lab, host, ca));
        begin(&agent);
        await_state(&agent, "holding", part, SOON);
        assert_eq!(green(&agent), "10%", "{part}");
        at_once(&agent, &["rollout", "abort", crate::bed::NAME]);
        report(&agent, SOON);
    }
}
