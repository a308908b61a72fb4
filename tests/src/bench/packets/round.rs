//! One round: a fresh load, on which every case visits every program.

use anyhow::{Result, ensure};
use shifter::datapath::Datapath as _;

use super::{
    bed::{Bed, Counts, Subject},
    case::Case,
    frames::Role,
    reference::forget,
    table::Snapshot,
};

/// Packets that a changing case is measured on, in at most so many passes.
const CHANGING_PACKETS: u32 = 65_536;
const PASSES: u32 = 32;
/// Packets before a measurement, for caches to fill.
const WARM_UP: u32 = 131_072;

/// ns a packet of each program, the driver's own included, in [`Subject::ALL`]'s order.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub case: Case,
    pub flows: u32,
    pub packet_ns: [f64; Subject::ALL.len()],
}

/// What a round is about.
pub struct Round<'a> {
    pub cases: &'a [Case],
    /// Numbers of flows, rising.
    pub flows: &'a [u32],
    /// Packets of a measurement, at least.
    pub packets: u32,
    /// Turns the order of programs.
    pub turn: usize,
}

impl Round<'_> {
    /// Measures everything on one bed.
    pub fn run(&self, bed: &mut Bed) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for &flows in self.flows {
            self.changing(bed, flows, &mut samples)?;
            for &case in self.cases.iter().filter(|case| !case.changes()) {
                bed.fill(case.role(), flows)?;
                samples.push(self.steady(bed, case, flows)?);
            }
        }
        Ok(samples)
    }

    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let turn = self.turn;
        (0..Subject::ALL.len()).map(move |i| (i + turn) % Subject::ALL.len())
    }

    fn has(&self, case: Case, flows: u32) -> bool {
        // The time of one packet alone cannot be told from that of the clock.
        flows > 1 && self.cases.contains(&case)
    }

    /// Opens and proves flows, measuring on the way what changes the table;
    /// ends with every flow proven.
    fn changing(&self, bed: &mut Bed, flows: u32, samples: &mut Vec<Sample>) -> Result<()> {
        if self.has(Case::Adopt, flows) {
            bed.table.clear();
            bed.fill(Role::Data, flows)?;
            let (_, counts) = bed.counted(flows, Case::Adopt.verdict())?;
            check(Case::Adopt, flows, flows, &counts)?;
            let free = bed.table.snapshot();
            samples.push(self.again(bed, Case::Adopt, flows, &free)?);
        }
        bed.table.clear();
        bed.fill(Role::Open, flows)?;
        let (_, counts) = bed.counted(flows, Case::Open.verdict())?;
        check(Case::Open, flows, flows, &counts)?;
        bed.run(Subject::Reference, flows)?;
        if self.has(Case::Open, flows) {
            let free = bed.table.snapshot();
            samples.push(self.again(bed, Case::Open, flows, &free)?);
        }
        let pinned = bed.read_pins(flows);
        ensure!(
            flows - pinned <= unplaced(flows),
            "of {flows} flows only {pinned} are pinned"
        );
        bed.fill(Role::Answer, flows)?;
        bed.counted(flows, "reply_redirect")?;
        let half_open = self.has(Case::Proof, flows).then(|| bed.table.snapshot());
        bed.fill(Role::Data, flows)?;
        bed.run(Subject::Shifter, flows)?;
        if let Some(half_open) = &half_open {
            samples.push(self.again(bed, Case::Proof, flows, half_open)?);
        }
        bed.fill(Role::Reply, flows)?;
        bed.run(Subject::Shifter, flows)?;
        let census = bed.scene.datapath.census();
        // The ACK of a flow that found no place may take the one of a flow whose own
        // is still to come.
        ensure!(
            census.proven + u64::from(unplaced(flows)) >= u64::from(pinned),
            "of {pinned} pinned flows only {} are proven",
            census.proven
        );
        Ok(())
    }

    /// Passes over all flows, the table taken back before each.
    fn again(&self, bed: &Bed, case: Case, flows: u32, before: &Snapshot) -> Result<Sample> {
        let passes = (CHANGING_PACKETS / flows).clamp(1, PASSES);
        let mut packet_ns = [0.0; Subject::ALL.len()];
        for i in self.order() {
            let mut sum = 0;
            for _ in 0..passes {
                sum += match Subject::ALL[i] {
                    subject @ (Subject::Empty | Subject::Wait) => {
                        bed.run(subject, flows)?.packet_ns
                    }
                    Subject::Reference => {
                        if case != Case::Proof {
                            forget(&bed.object, bed.kind, flows)?;
                        }
                        bed.run(Subject::Reference, flows)?.packet_ns
                    }
                    Subject::Shifter => pass(bed, case, flows, before)?,
                };
            }
            packet_ns[i] = f64::from(sum) / f64::from(passes);
        }
        Ok(Sample {
            case,
            flows,
            packet_ns,
        })
    }

    /// Packets that leave the table as it is.
    fn steady(&self, bed: &Bed, case: Case, flows: u32) -> Result<Sample> {
        let packets = self.packets.max(flows);
        let mut packet_ns = [0.0; Subject::ALL.len()];
        for i in self.order() {
            let subject = Subject::ALL[i];
            bed.run(subject, WARM_UP.min(packets))?;
            let took = match subject {
                Subject::Empty | Subject::Wait => bed.run(subject, packets)?,
                Subject::Shifter => {
                    let (took, counts) = bed.counted(packets, case.verdict())?;
                    check(case, flows, packets, &counts)?;
                    took
                }
                Subject::Reference => {
                    let (took, missed) = bed.missed(packets)?;
                    ensure!(
                        missed <= u64::from(packets) / 100,
                        "the reference program lost the pins of {missed} of {packets} packets: its times mean nothing"
                    );
                    took
                }
            };
            packet_ns[i] = took.thread_ns as f64 / f64::from(packets);
        }
        Ok(Sample {
            case,
            flows,
            packet_ns,
        })
    }
}

/// One pass of shifter over all flows, the table as it was; ns a packet.
fn pass(bed: &Bed, case: Case, flows: u32, before: &Snapshot) -> Result<u32> {
    if case == Case::Proof {
        bed.table.restore(before);
        ensure!(bed.table.proven(before) == 0, "a flow is proven too early");
    } else {
        bed.table.free(before);
    }
    let (took, counts) = bed.counted(flows, case.verdict())?;
    check(case, flows, flows, &counts)?;
    if case == Case::Proof {
        let (proven, count) = (bed.table.proven(before), before.count());
        // A flow that had found no place takes that of one not proven yet.
        ensure!(
            proven <= count && count - proven <= unplaced(flows) as usize,
            "of {count} flows {proven} were proven"
        );
    }
    Ok(took.packet_ns)
}

/// Flows that may find no place in a full table (fewer than 1 in 100,000 in simulation).
fn unplaced(flows: u32) -> u32 {
    flows / 50_000
}

/// Whether shifter did with every packet what the case says.
fn check(case: Case, flows: u32, packets: u32, counts: &Counts) -> Result<()> {
    let slack = u64::from(unplaced(flows)) * u64::from(packets.div_ceil(flows));
    let packets = u64::from(packets);
    ensure!(
        counts.packets == packets,
        "{case:?}: {packets} packets were sent and {} counted",
        counts.packets
    );
    ensure!(
        counts.verdict + slack >= packets,
        "{case:?}: of {packets} packets only {} were {}",
        counts.verdict,
        case.verdict()
    );
    let (new, adopted) = match case {
        Case::Open => (packets, 0),
        Case::Adopt => (0, packets),
        _ => (0, 0),
    };
    ensure!(
        counts.new_flows.abs_diff(new) <= slack && counts.adopted_flows.abs_diff(adopted) <= slack,
        "{case:?}: {packets} packets made {} new flows and {} adopted ones",
        counts.new_flows,
        counts.adopted_flows
    );
    Ok(())
}
