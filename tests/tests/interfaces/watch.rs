//! What the agent says and what lies in the kernel, looked at every millisecond
//! after a change until it is right.

use std::{
    collections::BTreeMap,
    ffi::CString,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use shifter::{
    datapath::{backends::address_bytes, memory::MappedArray},
    proto::{Info, Interface},
};
use shifter_common::abi::{
    Backend, Config, MAX_BACKEND_IDS, MAX_NEXT_HOPS, NextHop, backend::BACKEND_USED,
};
use shifter_tests::{
    agent::Agent,
    rpc::Rpc,
    scene::open_pin,
    topology::{Family, Lab, Netns, Side},
};

/// In which every change has to be followed, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(1);
/// And most of those of one kind, which a pass of each second would not do.
const MEDIAN: Duration = Duration::from_millis(400);

pub struct Watch<'a> {
    agent: &'a Agent<'a>,
    lab: &'a Lab,
    rpc: Rpc,
    config: MappedArray<Config>,
    hops: MappedArray<NextHop>,
    backends: MappedArray<Backend>,
    took: BTreeMap<String, Vec<Duration>>,
    what: &'static str,
}

impl<'a> Watch<'a> {
    /// `what` stands before each measured line.
    pub fn start(what: &'static str, lab: &'a Lab, agent: &'a Agent<'a>) -> Self {
        let pin = |name| open_pin(&lab.bpffs().join("shifter/maps").join(name));
        Self {
            agent,
            lab,
            rpc: Rpc::connect(agent).unwrap(),
            config: MappedArray::new(pin("CONFIG"), 1).unwrap(),
            hops: MappedArray::new(pin("NEXT_HOPS"), MAX_NEXT_HOPS).unwrap(),
            backends: MappedArray::new(pin("BACKENDS"), MAX_BACKEND_IDS).unwrap(),
            took: BTreeMap::new(),
            what,
        }
    }

    /// Makes a change, and waits until what it leads to is there. `event` is what
    /// the agent logs of the kernel's notice; empty where it logs none.
    pub fn followed(
        &mut self,
        what: &str,
        event: &str,
        change: impl FnOnce(),
        mut right: impl FnMut(&mut Self) -> bool,
    ) {
        let (whose, told) = (self.what, self.told(event));
        change();
        let begun = Instant::now();
        while !right(self) {
            assert!(
                begun.elapsed() < LIMIT,
                "{whose}: {what} is not followed within {LIMIT:?}: {:#?}",
                self.info()
            );
            thread::sleep(Duration::from_millis(1));
        }
        let took = begun.elapsed();
        assert!(
            event.is_empty() || self.told(event) > told,
            "{}: {what} is right, but no notice led to it",
            self.what
        );
        self.took.entry(what.to_owned()).or_default().push(took);
    }

    fn told(&self, event: &str) -> usize {
        let log = self.agent.log();
        log.matches(&format!("event={event}")).count()
    }

    /// Prints what was measured, and holds it to the bound.
    pub fn finish(self) {
        for (what, mut took) in self.took {
            took.sort_unstable();
            let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
            println!(
                "{}: {what}: median {:.1} ms, longest {:.1} ms of {}",
                self.what,
                median.as_secs_f64() * 1e3,
                most.as_secs_f64() * 1e3,
                took.len()
            );
            assert!(median < MEDIAN, "{}: {what}: {took:?}", self.what);
        }
    }

    pub fn info(&mut self) -> Info {
        self.rpc.info().unwrap()
    }

    /// One interface as `status` shows it.
    pub fn interface(&mut self, name: &str) -> Option<Interface> {
        let all = self.info().interfaces;
        all.into_iter().find(|interface| interface.name == name)
    }

    /// Both programs are ours, and on the interface that has this name now.
    pub fn is_whole(&mut self, name: &str) -> bool {
        let index = index_of(&self.lab.host, name);
        let ours = |interface: Interface| {
            let programs = interface.programs;
            interface.index == index
                && programs.len() == 2
                && programs.iter().all(|program| program.state == "ours")
        };
        index != 0 && self.interface(name).is_some_and(ours)
    }

    pub fn is_up(&mut self, name: &str) -> bool {
        self.interface(name).is_some_and(|interface| interface.up)
    }

    /// Whether something with these words is loud.
    pub fn is_loud(&mut self, words: &str) -> bool {
        self.info().warnings.iter().any(|w| w.contains(words))
    }

    /// Rises when flows shall look their next hop up again.
    pub fn route_generation(&self) -> u32 {
        self.config.read(0).route_generation
    }

    /// Next hops of a side's backends, over both families and protocols; `None`
    /// for one that is left to the kernel.
    pub fn hops_of(&self, side: Side) -> Vec<Option<NextHop>> {
        let addresses = Family::BOTH.map(|family| {
            let backend = self.lab.backend(side, family);
            address_bytes(backend.ip()).0
        });
        (1..self.backends.count())
            .map(|id| self.backends.read(id))
            .filter(|b| b.flags & BACKEND_USED != 0 && addresses.contains(&b.key.addr))
            .map(|backend| Some(self.hops.read(backend.next_hop)).filter(|hop| hop.ifindex != 0))
            .collect()
    }

    /// All valid next hops out of an interface.
    pub fn hops_out_of(&self, name: &str) -> Vec<NextHop> {
        let index = index_of(&self.lab.host, name);
        (1..self.hops.count())
            .map(|id| self.hops.read(id))
            .filter(|hop| hop.ifindex == index)
            .collect()
    }

    /// Next hops that packets to clients find by their MAC.
    pub fn hops_by_key(&self) -> Vec<NextHop> {
        let path = self.lab.bpffs().join("shifter/maps/NEXT_HOP_IDS");
        let map = Map::HashMap(MapData::from_pin(path).unwrap());
        let ids: BpfHashMap<_, [u8; 12], u32> = BpfHashMap::try_from(map).unwrap();
        ids.iter()
            .flatten()
            .map(|(_, id)| self.hops.read(id))
            .collect()
    }

    /// Packets that were too long to be redirected.
    pub fn too_big(&mut self) -> u64 {
        let verdicts = self.info().verdicts;
        let counted = verdicts.iter().filter(|v| v.reason == "too_big");
        counted.map(|v| v.packets).sum()
    }
}

/// Index of an interface; 0 where there is none.
pub fn index_of(ns: &Netns, name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a C string that outlives the call.
    ns.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) })
}
