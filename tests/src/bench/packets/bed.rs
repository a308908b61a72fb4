//! One fresh load: shifter and the bench's programs, a service, and flows.

use std::{cell::Cell, os::fd::BorrowedFd, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use shifter::{
    datapath::{
        BackendId, Datapath as _, FlowFilter, NextHopImage, Placement, attach::Place,
        load::flow_sets, memory::MappedArray,
    },
    model::Protocol,
};

use super::{
    frames::{BACKENDS, Kind, Role, Template, fill, number},
    reference::Service,
    run::{Took, run},
    table::Table,
};
use crate::{
    bench::object::Object,
    scene::{Scene, hook_name, image, neighbour},
};

/// Interfaces of next hops, among those that a scene lets frames leave by.
const TO_BACKENDS: u32 = 77;
const TO_CLIENTS: u32 = 78;
const MTU: u32 = 1_500;
const SERVICE: u16 = 1;
const VIP_ID: BackendId = 100;
const FIRST_BACKEND: BackendId = 1;

/// A program under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// Nothing: the driver's own cost.
    Empty,
    /// Nothing but to wait for the frame.
    Wait,
    Shifter,
    /// The usual way.
    Reference,
}

impl Subject {
    pub const ALL: [Self; 4] = [Self::Empty, Self::Wait, Self::Shifter, Self::Reference];
}

/// See `Course` in `shifter-ebpf/src/bench/maps.rs`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Course {
    next: u64,
    mask: u32,
    shift: u32,
    seen: u64,
    zero: u64,
}

/// What the kernel counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Packets of the verdict that is looked for.
    pub verdict: u64,
    /// Of any verdict.
    pub packets: u64,
    pub new_flows: u64,
    pub adopted_flows: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            verdict: self.verdict - before.verdict,
            packets: self.packets - before.packets,
            new_flows: self.new_flows - before.new_flows,
            adopted_flows: self.adopted_flows - before.adopted_flows,
        }
    }
}

/// Everything that one load measures with.
pub struct Bed<'a> {
    pub scene: &'a Scene,
    pub object: Object,
    pub kind: Kind,
    pub place: Place,
    pub table: Table,
    templates: MappedArray<Template>,
    course: MappedArray<Course>,
    misses: MappedArray<u64>,
    frame: Vec<u8>,
    /// The program under test at the moment.
    subject: Cell<Option<Subject>>,
    /// By flow: which backend it is pinned to.
    backends: Vec<u8>,
}

impl<'a> Bed<'a> {
    /// Sets up a service with 8 backends, half of the weight on green.
    pub fn new(
        scene: &'a Scene,
        object: &Path,
        kind: Kind,
        place: Place,
        capacity: u32,
        most: u32,
    ) -> Result<Self> {
        let protocol = if kind.is_udp {
            Protocol::Udp
        } else {
            Protocol::Tcp
        };
        let hop = neighbour(TO_BACKENDS, 2, MTU);
        scene.backend(VIP_ID, kind.vip(), protocol, Placement::Host);
        for i in 0..BACKENDS {
            let id = FIRST_BACKEND + i as BackendId;
            scene.backend(id, kind.backend(i), protocol, Placement::NextHop(hop));
        }
        let to_clients = scene.route_to_clients(TO_CLIENTS, MTU);
        scene.datapath.set_next_hops(&[to_clients])?;
        publish(scene, kind, protocol);
        let hook = hook_name(place);
        let mut object = Object::load(
            object,
            &["driver", "empty", "wait", "reference"].map(|name| format!("bench_{hook}_{name}")),
            &[("TEMPLATES", most), ("REF_PINS", 2 * capacity.max(most))],
        )?;
        if place == Place::Xdp {
            // A repeated run of an XDP program that is attached nowhere makes
            // the kernel patch its dispatcher before and after, for tens of ms.
            object.attach_generic("bench_xdp_driver", "lo")?;
        }
        put_reference(&object, kind, hop, to_clients)?;
        let sets = flow_sets(capacity);
        Ok(Self {
            table: Table::new(scene.map("FLOWS", sets)),
            templates: object.mapped("TEMPLATES", most)?,
            course: object.mapped("COURSE", 1)?,
            misses: object.mapped("REF_MISSES", 1)?,
            scene,
            object,
            kind,
            place,
            frame: Vec::new(),
            subject: Cell::new(None),
            backends: vec![0; most as usize],
        })
    }

    /// Puts the frames of `flows` flows in front of the driver.
    pub fn fill(&mut self, role: Role, flows: u32) -> Result<()> {
        ensure!(
            flows.is_power_of_two(),
            "the driver visits a power of two of flows, not {flows}"
        );
        let backends = &self.backends;
        self.frame = fill(&self.templates, self.kind, role, flows, |flow| {
            usize::from(backends[flow as usize])
        })?;
        let bits = flows.trailing_zeros();
        self.course.write(
            0,
            Course {
                next: 0,
                mask: flows - 1,
                shift: bits.div_ceil(2),
                seen: 0,
                zero: 0,
            },
        );
        Ok(())
    }

    /// Sends `packets` of the frames through a program.
    pub fn run(&self, subject: Subject, packets: u32) -> Result<Took> {
        let hook = hook_name(self.place);
        let own = |name: &str| self.object.program(&format!("bench_{hook}_{name}"));
        let program: BorrowedFd = match subject {
            Subject::Empty => own("empty")?,
            Subject::Wait => own("wait")?,
            Subject::Shifter => self.scene.program(self.place),
            Subject::Reference => own("reference")?,
        };
        let array = match self.place {
            Place::Xdp => "XDP_SUBJECT",
            _ => "TC_SUBJECT",
        };
        if self.subject.replace(Some(subject)) != Some(subject) {
            self.object.set_subject(array, program)?;
        }
        let took = run(own("driver")?, &self.frame, packets)
            .with_context(|| format!("running {subject:?} at {hook}"))?;
        if self.place == Place::Xdp && took.action == 0 {
            bail!("the driver could not call {subject:?}");
        }
        Ok(took)
    }

    /// Counters of shifter, `verdict` being the one that is looked for.
    pub fn counts(&self, verdict: &str) -> Result<Counts> {
        let hook = hook_name(self.place);
        let all = self.scene.datapath.verdicts()?;
        let here = all.iter().filter(|count| count.hook == hook);
        let pools = self.scene.datapath.pool_counters(SERVICE)?;
        Ok(Counts {
            verdict: here
                .clone()
                .filter(|count| count.reason == verdict)
                .map(|count| count.packets)
                .sum(),
            packets: here.map(|count| count.packets).sum(),
            new_flows: pools.iter().map(|pool| pool.new_flows).sum(),
            adopted_flows: pools.iter().map(|pool| pool.adopted_flows).sum(),
        })
    }

    /// Runs shifter, and what it counted meanwhile.
    pub fn counted(&self, packets: u32, verdict: &str) -> Result<(Took, Counts)> {
        let before = self.counts(verdict)?;
        let took = self.run(Subject::Shifter, packets)?;
        Ok((took, self.counts(verdict)?.since(before)))
    }

    /// Runs the reference program, and how many packets found no pin.
    pub fn missed(&self, packets: u32) -> Result<(Took, u64)> {
        let before = self.misses.read(0);
        let took = self.run(Subject::Reference, packets)?;
        Ok((took, self.misses.read(0) - before))
    }

    /// Reads which backend each of the first flows is pinned to; how many are.
    pub fn read_pins(&mut self, flows: u32) -> u32 {
        let (rows, _) = self.scene.datapath.flows(&FlowFilter {
            service: Some(SERVICE),
            limit: usize::MAX,
            ..FlowFilter::default()
        });
        let mut seen = vec![false; flows as usize];
        for row in rows {
            let flow = number(row.client) as usize;
            if flow < seen.len() {
                seen[flow] = true;
                self.backends[flow] = row.backend.saturating_sub(FIRST_BACKEND) as u8;
            }
        }
        seen.iter().filter(|is| **is).count() as u32
    }
}

fn publish(scene: &Scene, kind: Kind, protocol: Protocol) {
    let mut image = image(SERVICE, kind.vip(), protocol, VIP_ID);
    image.threshold = 1 << 31;
    // 100 slots a backend, as the agent makes them at least.
    let ring = |first: usize| -> Vec<BackendId> {
        let half = BACKENDS / 2;
        (0..100 * half)
            .map(|slot| FIRST_BACKEND + (first + slot % half) as BackendId)
            .collect()
    };
    scene.service(&image, &ring(0), &ring(BACKENDS / 2));
}

fn put_reference(
    object: &Object,
    kind: Kind,
    hop: NextHopImage,
    to_clients: NextHopImage,
) -> Result<()> {
    let backends: Vec<_> = (0..BACKENDS).map(|i| (kind.backend(i), hop)).collect();
    let service = Service {
        number: 1,
        vip: kind.vip(),
        is_udp: kind.is_udp,
        backends: &backends,
        to_clients,
    };
    service.put(object)
}
