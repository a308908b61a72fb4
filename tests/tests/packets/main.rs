//! Packet tables: {frame in, hook, verdict, action, frame out}. They read as
//! the specification of the packet path; checksums of what must come out are
//! computed in full, never updated.

mod cohorts;
mod flows;
mod icmp;
mod nat;
mod other;
mod release;
mod room;
mod signals;
mod wire;
mod world;

use shifter::datapath::attach::Place;
use shifter_tests::scene::{Action, Outcome, Scene};

/// Ingress by either hook: one packet logic.
const INGRESS: &[Place] = &[Place::Xdp, Place::TcIngress];
const EGRESS: &[Place] = &[Place::TcEgress];
const EVERYWHERE: &[Place] = &[Place::Xdp, Place::TcIngress, Place::TcEgress];

/// One line of a table.
struct Row {
    name: &'static str,
    at: &'static [Place],
    packet: Vec<u8>,
    outcome: Outcome,
}

/// The frame passes as it came.
fn untouched(
    name: &'static str,
    at: &'static [Place],
    packet: Vec<u8>,
    verdict: &'static str,
) -> Row {
    let out = packet.clone();
    row(name, at, packet, verdict, Action::Pass, out)
}

fn row(
    name: &'static str,
    at: &'static [Place],
    packet: Vec<u8>,
    verdict: &'static str,
    action: Action,
    out: Vec<u8>,
) -> Row {
    let outcome = Outcome {
        action,
        verdict,
        frame: out,
    };
    Row {
        name,
        at,
        packet,
        outcome,
    }
}

/// Runs the lines in order over one scene and names all that went wrong.
fn check(scene: &mut Scene, rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows {
        for place in row.at {
            let is = scene.judge(*place, &row.packet);
            if is != row.outcome {
                wrong.push(format!(
                    "{} at {place:?}:\n   in {}\n   is {}\n must {}",
                    row.name,
                    hex(&row.packet),
                    text(&is),
                    text(&row.outcome)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Hex without separators, in groups of sixteen bytes.
fn text(outcome: &Outcome) -> String {
    format!(
        "{:?} {} {}",
        outcome.action,
        outcome.verdict,
        hex(&outcome.frame)
    )
}

fn hex(bytes: &[u8]) -> String {
    let group = |group: &[u8]| group.iter().map(|byte| format!("{byte:02x}")).collect();
    let groups: Vec<String> = bytes.chunks(16).map(group).collect();
    groups.join(" ")
}
