//! The demo: live traffic goes from blue to green by steps and back at once.

use std::{
    collections::BTreeMap,
    io::Write,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::Value;
use shifter_tests::{
    agent::{Settings, number},
    mover::{Mover, Service},
    topology::{Family, Lab, Placement, Side},
    traffic::{
        requests::{Requests, Tally},
        server,
        storm::{Plan, Progress, Storm},
    },
};

/// Ramps live traffic from blue to green in network namespaces of its own and
/// rolls back, printing what happens. Needs root; removes what it makes.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Where shifter's programs attach: auto, xdp or tc.
    #[arg(long, default_value = "auto", value_parser = ["auto", "xdp", "tc"])]
    hook: String,
    /// Length of each of the five steps.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Short requests a second.
    #[arg(long, default_value_t = 400)]
    rate: u32,
}

/// The weights that the demo goes through.
const STEPS: [&str; 5] = ["0%", "5%", "25%", "50%", "100%"];
/// Connections that are kept open, begun at 0% and again at 50%.
const LONG_LIVED: u32 = 100;
/// How long the demo watches after the rollback.
const AFTER: Duration = Duration::from_secs(4);

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    catch_signals();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lets SIGINT, SIGTERM and SIGHUP end the demo in good order.
fn catch_signals() {
    extern "C" fn stop(_: i32) {
        STOP.store(true, Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, stop as extern "C" fn(i32) as usize) };
    }
}

/// Sleeps, or fails when the demo is to end.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if STOP.load(Relaxed) {
            bail!("interrupted; what the demo made is removed");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    // Whoever closed the pipe has seen enough.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn run(arguments: &Arguments) -> Result<bool> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("network namespaces need root: run it with sudo");
    }
    say("Making a client, a host, a blue and a green server, each in a network namespace.");
    let lab = Lab::new(Placement::Container)?;
    let _servers = server::start_both(&lab)?;
    let hook = match arguments.hook.as_str() {
        "xdp" => "xdp",
        "tc" => "tc",
        _ => "auto",
    };
    let mut mover = Mover::start(&lab, Settings::hook(hook)).context("start the agent")?;
    introduce(&mut mover, &lab)?;
    let mut service = Service::of(&lab, "tcp", Family::V4);
    service.name = "web".to_owned();
    mover.apply(&[service])?;
    ramp(&lab, &mut mover, arguments)
}

fn introduce(mover: &mut Mover<'_>, lab: &Lab) -> Result<()> {
    let [vip, blue, green] = [
        lab.vip(Family::V4),
        lab.backend(Side::Blue, Family::V4),
        lab.backend(Side::Green, Family::V4),
    ];
    say(&format!(
        "Service web: VIP {vip}, blue {blue}, green {green}."
    ));
    if let Some(agent) = mover.agent() {
        let status = agent.json(&["status"])?;
        for interface in status["interfaces"].as_array().into_iter().flatten() {
            say(&format!(
                "Agent attached to {} at {} ({}).",
                text(&interface["name"]),
                text(&interface["hook"]),
                text(&interface["why"])
            ));
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Everything that is counted while the weight changes.
struct Watch {
    requests: Requests,
    long_lived: Vec<Storm>,
}

impl Watch {
    fn sum(&self, of: impl Fn(&Progress) -> u64) -> u64 {
        self.long_lived.iter().map(|s| of(s.progress())).sum()
    }

    /// Connections that are kept open from now on.
    fn hold(&mut self, lab: &Lab) -> Result<()> {
        let plan = Plan {
            tcp_to: vec![lab.vip(Family::V4)],
            udp_to: Vec::new(),
            tcp_flows: LONG_LIVED,
            udp_flows: 0,
            rate: 5,
        };
        let storm = Storm::start(&lab.client, plan)?;
        if !storm.wait_for(u64::from(LONG_LIVED), Duration::from_secs(10)) {
            bail!("not all long-lived connections are answered: {storm:?}");
        }
        self.long_lived.push(storm);
        Ok(())
    }
}

fn ramp(lab: &Lab, mover: &mut Mover<'_>, arguments: &Arguments) -> Result<bool> {
    let vip = lab.vip(Family::V4);
    let mut watch = Watch {
        requests: Requests::start(&lab.client, &[vip], 4, arguments.rate)?,
        long_lived: Vec::new(),
    };
    watch.hold(lab)?;
    say(&format!(
        "{LONG_LIVED} long-lived connections are open, {} short requests a second run beside them.\n",
        arguments.rate
    ));
    for (i, weight) in STEPS.into_iter().enumerate() {
        if i == 0 {
            say("All weight is on blue.");
        } else {
            let took = shift(mover, weight)?.map(|ms| format!("   (in force after {ms:.2} ms)"));
            let took = took.unwrap_or_default();
            say(&format!("$ shifter shift web --candidate {weight}{took}"));
        }
        if weight == "50%" {
            watch.hold(lab)?;
            say(&format!(
                "  {LONG_LIVED} more long-lived connections opened"
            ));
        }
        let before = watch.requests.tally();
        pause(Duration::from_secs(arguments.seconds))?;
        report_step(mover, &watch, &before)?;
    }
    watch.requests.mark();
    let begun = Instant::now();
    mover.rollback("web")?;
    say("$ shifter rollback web");
    pause(Duration::from_millis(500))?;
    let before = watch.requests.tally();
    pause(AFTER)?;
    report_step(mover, &watch, &before)?;
    conclude(watch, begun, &before)
}

/// Shifts; the receipt's milliseconds from request to programmed.
fn shift(mover: &mut Mover<'_>, weight: &str) -> Result<Option<f64>> {
    let Some(agent) = mover.agent() else {
        mover.shift("web", weight)?;
        return Ok(None);
    };
    let receipt = agent.json(&["shift", "web", "--candidate", weight])?;
    let ns = number(&receipt["programmed_ns"]).max(number(&receipt["receipt"]["programmed_ns"]));
    Ok((ns > 0).then_some(ns as f64 / 1e6))
}

fn report_step(mover: &mut Mover<'_>, watch: &Watch, before: &Tally) -> Result<()> {
    let tally = watch.requests.tally();
    if let Some(agent) = mover.agent() {
        let service = agent.service("web")?;
        say(&four_numbers(&service["weights"]));
    }
    say(&format!(
        "  new connections in this step: {}",
        shares(&watch.requests.since(before))
    ));
    say(&format!(
        "  so far {} requests, {} failures; {} long-lived connections, {} moved, {} cut\n",
        grouped(tally.answered + tally.failures),
        tally.failures,
        watch.sum(|p| p.answering.load(Relaxed)),
        watch.sum(|p| p.moved.load(Relaxed)),
        watch.sum(|p| p.failures.load(Relaxed)),
    ));
    Ok(())
}

/// "weight of green: configured 5%, programmed 5.00%, ...".
fn four_numbers(weights: &Value) -> String {
    let percent = |value: &Value| {
        value
            .as_f64()
            .map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", share * 100.0))
    };
    let observed = &weights["observed"];
    format!(
        "  weight of green: configured {}, programmed {}, observed {} [{} to {}], carried {}",
        text(&weights["configured"]),
        percent(&weights["programmed_share"]),
        percent(&observed["share"]),
        percent(&observed["low"]),
        percent(&observed["high"]),
        percent(&weights["carried"]["share"]),
    )
}

fn shares(by: &BTreeMap<u8, u64>) -> String {
    let count = |side: Side| by.get(&side.identity()).copied().unwrap_or(0);
    let total = (count(Side::Blue) + count(Side::Green)).max(1) as f64;
    Side::BOTH
        .map(|side| {
            let n = count(side);
            let percent = n as f64 * 100.0 / total;
            format!("{} {} ({percent:.1}%)", side.name(), grouped(n))
        })
        .join(", ")
}

/// 12345 as 12,345.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Prints the counts; whether all is as it has to be.
fn conclude(watch: Watch, rollback: Instant, before: &Tally) -> Result<bool> {
    let astray = watch
        .requests
        .since(before)
        .get(&Side::Green.identity())
        .copied()
        .unwrap_or(0);
    let tally = watch.requests.finish()?;
    let mut moved = 0;
    let mut cut = 0;
    let mut held = 0;
    for storm in watch.long_lived {
        let report = storm.finish()?;
        moved += report.moved;
        held += report.tcp_opened;
        cut += report.tcp_resets + report.tcp_unanswered + report.tcp_connect_failures;
        cut += u64::from(report.wrong_bytes > 0);
    }
    let failures = tally.failures + cut;
    say(&format!(
        "requests          {}",
        grouped(tally.answered + tally.failures)
    ));
    say(&format!("long-lived        {}", grouped(held)));
    say(&format!("failures          {failures}"));
    say(&format!("pins moved        {moved}"));
    say(&format!(
        "time to rollback  {}",
        time_to_rollback(&tally, rollback)
    ));
    for error in &tally.errors {
        say(&format!("failed: {error}"));
    }
    if astray > 0 {
        say(&format!(
            "{astray} new connections went to green after the rollback"
        ));
    }
    Ok(failures == 0 && moved == 0 && astray == 0)
}

/// From the command's start to the last new connection on green; where none
/// began in between, to the first on blue, which bounds it.
fn time_to_rollback(tally: &Tally, rollback: Instant) -> String {
    let ms = |at: Option<&Instant>| {
        at.map(|at| at.saturating_duration_since(rollback).as_secs_f64() * 1e3)
    };
    let last_green = ms(tally.last_begun.get(&Side::Green.identity()));
    let first_blue = ms(tally.first_begun.get(&Side::Blue.identity()));
    match (last_green, first_blue) {
        (Some(last), _) if last > 0.0 => {
            format!("{last:.1} ms, from the command's start to the last new connection on green")
        }
        (_, Some(first)) => format!(
            "below {first:.1} ms, from the command's start to the first new connection on blue"
        ),
        _ => "not seen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
