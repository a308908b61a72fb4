//! Certificates, and grpc.health.v1.

use std::net::SocketAddr;

use shifter_tests::{
    agent::{Agent, Settings},
    certificates::Certificates,
    command::eventually,
    need,
    topology::{Family, Lab, Netns, Placement, Side},
};

use crate::{HTTP, SOON, apply, backend, becomes, falls, reason, server::Server, toml};

#[test]
fn a_certificate_is_verified_against_the_authority_and_the_name() {
    need!("nginx", "openssl");
    let lab = Lab::new(Placement::Container).unwrap();
    let certificates = Certificates::make(lab.dir(), "shop.example").unwrap();
    let file = |name: &str| lab.dir().join(name).display().to_string();
    let mut blue = Server::new(&lab, Side::Blue, 7_101);
    blue.run(&format!(
        " ssl; ssl_certificate {}; ssl_certificate_key {}",
        certificates.cert.display(),
        certificates.key.display()
    ));
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let https = |more: &str| {
        let health = HTTP.replace("\"http\"", "\"https\"");
        // One check is what each of these is about.
        let health = health
            .replace("rise = 2", "rise = 1")
            .replace("fall = 2", "fall = 1");
        let text = toml(&lab, &[blue.addr], &[], "", &format!("{health}\n{more}"));
        apply(&agent, &text);
    };
    https(&format!("ca = \"{}\"", certificates.ca.display()));
    becomes(&agent, blue.addr, "up");
    https("");
    falls(
        &agent,
        blue.addr,
        "its certificate is not accepted: UnknownIssuer",
    );
    https("insecure = true");
    becomes(&agent, blue.addr, "up");
    let other = format!("ca = \"{}\"", certificates.ca.display());
    let health = HTTP
        .replace("\"http\"", "\"https\"")
        .replace("shop.example", "other.example");
    apply(
        &agent,
        &toml(&lab, &[blue.addr], &[], "", &format!("{health}\n{other}")),
    );
    falls(&agent, blue.addr, "its certificate is not accepted");
    https(&format!("ca = \"{}\"", file("nothing.pem")));
    let said = eventually(SOON, || {
        reason(&agent, blue.addr).contains("nothing.pem failed")
    });
    assert!(said, "{}", backend(&agent, blue.addr));
}

/// A gRPC server with grpc.health.v1; each name sent changes what `shop.Cart` is.
fn grpc(ns: &Netns, addr: SocketAddr) -> tokio::sync::mpsc::UnboundedSender<bool> {
    let (serving, mut told) = tokio::sync::mpsc::unbounded_channel();
    ns.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            let server = tonic::transport::Server::builder().add_service(health);
            let server = tokio::spawn(server.serve(addr));
            while let Some(is_serving) = told.recv().await {
                let status = match is_serving {
                    true => tonic_health::ServingStatus::Serving,
                    false => tonic_health::ServingStatus::NotServing,
                };
                reporter.set_service_status("shop.Cart", status).await;
            }
            server.abort();
        });
    })
    .unwrap();
    serving
}

#[test]
fn grpc_health_says_who_serves() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let addr = Lab::at_port(lab.listen(Side::Blue, Family::V4), 7_101);
    let serving = grpc(lab.server_ns(Side::Blue), addr);
    serving.send(true).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let check = |service: &str| {
        format!(
            "type = \"grpc\"\nservice = \"{service}\"\ninterval = \"300ms\"\nrise = 1\nfall = 2"
        )
    };
    apply(&agent, &toml(&lab, &[addr], &[], "", &check("shop.Cart")));
    becomes(&agent, addr, "up");
    serving.send(false).unwrap();
    falls(&agent, addr, "it says NOT_SERVING");
    serving.send(true).unwrap();
    becomes(&agent, addr, "up");
    apply(
        &agent,
        &toml(&lab, &[addr], &[], "", &check("shop.Unknown")),
    );
    falls(&agent, addr, "it does not know this service");
    apply(&agent, &toml(&lab, &[addr], &[], "", &check("shop.Cart")));
    becomes(&agent, addr, "up");
    drop(serving);
    falls(&agent, addr, "connection refused");
}
