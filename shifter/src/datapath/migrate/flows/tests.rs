//! Tables in plain memory, of the layout before and of this one.

use std::{
    fs::File,
    os::fd::{AsFd as _, FromRawFd as _},
};

use shifter_common::abi::{
    config::{DEFAULT_TIMEOUTS_S, ticks_of_seconds},
    old::{OWN, V3},
};

use super::*;

/// Memory laid out as a map's.
fn memory(sets: u32) -> MappedArray<FlowSet> {
    // SAFETY: a name that is a C string; the descriptor has one owner.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"table".as_ptr(), 0)) };
    file.set_len(u64::from(sets) * 1_024).unwrap();
    MappedArray::new(file.as_fd(), sets).unwrap()
}

/// The first settings of a table of so many sets.
fn config(sets: u32) -> Config {
    // SAFETY: a name that is a C string; the descriptor has one owner.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"config".as_ptr(), 0)) };
    file.set_len(4_096).unwrap();
    let zero = MappedArray::<Config>::new(file.as_fd(), 1).unwrap().read(0);
    Config {
        set_mask: sets - 1,
        table_key: [3, 4],
        timeouts: DEFAULT_TIMEOUTS_S.map(ticks_of_seconds),
        ..zero
    }
}

fn flow(number: u16, state: u8) -> FlowEntry {
    let mut client = [0; 16];
    client[0] = 10;
    FlowEntry {
        control: control_word(state, 0x55, 9, 0),
        client,
        client_port: number.to_be_bytes(),
        flags: FLOW_GREEN | FLOW_SYN_ACK,
        service: 3,
        backend: 7,
        next_hop: 0,
        route_generation: 0,
        generation: 21,
        last_seen: now_tick(),
        created: now_tick() - 100,
        seq_a: 1_000,
        seq_b: 2_000,
        high: 3_000,
        home: 0,
    }
}

/// A table of layout 3 with these flows.
fn table_of_v3(flows: &[FlowEntry]) -> OldTable {
    let sets = memory(flows.len().div_ceil(SET_ENTRIES).next_power_of_two() as u32);
    for (i, flow) in flows.iter().enumerate() {
        let mut bytes = [0u8; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(V3.control, &flow.control.to_ne_bytes());
        put(V3.client, &flow.client);
        put(V3.client_port, &flow.client_port);
        put(V3.flags, &flow.flags.to_ne_bytes());
        put(V3.service, &flow.service.to_ne_bytes());
        put(V3.backend, &flow.backend.to_ne_bytes());
        put(V3.generation, &flow.generation.to_ne_bytes());
        put(V3.last_seen, &flow.last_seen.to_ne_bytes());
        put(V3.created, &flow.created.to_ne_bytes());
        put(V3.seq_a, &flow.seq_a.to_ne_bytes());
        put(V3.seq_b, &flow.seq_b.to_ne_bytes());
        put(V3.high, &flow.high.to_ne_bytes());
        let at = sets.at((i / SET_ENTRIES) as u32).cast::<[u8; 64]>();
        // SAFETY: within the set.
        unsafe { at.add(i % SET_ENTRIES).write_volatile(bytes) };
    }
    OldTable {
        sets,
        layout: V3,
        version: 4,
    }
}

/// All live entries, and whether each is found from its home by its marks.
fn live(sets: &MappedArray<FlowSet>, config: &Config) -> Vec<FlowEntry> {
    let table = NewTable {
        sets,
        config: *config,
        forget_times: &|_, _| {},
    };
    let mut found = Vec::new();
    for set in 0..sets.count() {
        for (position, entry) in sets.read(set).into_iter().enumerate() {
            if !is_live(control_state(entry.control)) {
                continue;
            }
            let places = table.places(&entry);
            assert_eq!(control_tag(entry.control), places.tag);
            let which = places.sets.iter().position(|s| *s == set).unwrap();
            let distance = (position as u32).wrapping_sub(places.homes[which]) & 15;
            let home = sets.read(set)[places.homes[which] as usize].home;
            assert!(home >> distance & 1 == 1, "no mark leads to it");
            let first = sets.read(places.sets[0])[places.homes[0] as usize].home;
            assert!(
                which == 0 || first & HOME_OVERFLOW != 0,
                "no mark leads to the second set"
            );
            found.push(FlowEntry {
                control: u64::from(control_state(entry.control)),
                home: 0,
                ..entry
            });
        }
    }
    found.sort_by_key(|flow| flow.client_port);
    found
}

#[test]
fn every_flow_of_an_older_layout_is_found_in_the_new_table_as_it_was() {
    let states = [
        STATE_HALF_OPEN,
        STATE_ADOPTED,
        STATE_ESTABLISHED,
        STATE_CLOSING,
    ];
    let flows: Vec<_> = (0..2_000u16)
        .map(|i| flow(i, states[usize::from(i % 4)]))
        .collect();
    let (old, new, config) = (table_of_v3(&flows), memory(256), config(256));
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &|_, _| {},
    };
    assert_eq!(
        table.take_in(&old),
        Passed {
            placed: 2_000,
            ..Passed::default()
        }
    );
    let expected: Vec<_> = flows
        .iter()
        .map(|flow| FlowEntry {
            control: u64::from(control_state(flow.control)),
            ..*flow
        })
        .collect();
    assert_eq!(live(&new, &config), expected);
    assert_eq!(
        table.take_in(&old),
        Passed::default(),
        "a second pass changes nothing"
    );
}

#[test]
fn what_a_packet_still_wrote_in_the_old_entry_comes_after() {
    let (old, new, config) = (
        table_of_v3(&[flow(1, STATE_HALF_OPEN)]),
        memory(2),
        config(2),
    );
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &|_, _| {},
    };
    table.take_in(&old);
    let later = FlowEntry {
        seq_a: 5,
        seq_b: 6,
        high: 7,
        flags: FLOW_GREEN | FLOW_SYN_ACK | FLOW_FIN_CLIENT,
        ..flow(1, STATE_ESTABLISHED)
    };
    let created = live(&new, &config)[0].created;
    let old = table_of_v3(&[FlowEntry { created, ..later }]);
    assert_eq!(
        table.take_in(&old),
        Passed {
            merged: 1,
            ..Passed::default()
        }
    );
    let is = live(&new, &config)[0];
    assert_eq!(is.control, u64::from(STATE_ESTABLISHED));
    assert_eq!(
        (is.seq_a, is.seq_b, is.high, is.flags),
        (5, 6, 7, later.flags)
    );
}

#[test]
fn a_flow_that_was_chosen_anew_or_knows_more_stays() {
    let old = flow(1, STATE_HALF_OPEN);
    let ahead = FlowEntry {
        seq_a: 9,
        ..flow(1, STATE_ESTABLISHED)
    };
    assert_eq!(
        change(
            &FlowEntry {
                created: ahead.created,
                last_seen: ahead.last_seen,
                ..old
            },
            &ahead
        ),
        None
    );
    let anew = FlowEntry {
        created: old.created + 200,
        ..flow(1, STATE_HALF_OPEN)
    };
    assert_eq!(change(&flow(1, STATE_CLOSING), &anew), None);
    // A RST that the new table has seen undone since.
    let reset = FlowEntry {
        last_seen: old.last_seen - 1,
        created: ahead.created,
        ..flow(1, STATE_RESET)
    };
    assert_eq!(change(&reset, &ahead), None);
}

#[test]
fn only_a_proven_flow_has_others_give_way() {
    let full: Vec<_> = (0..32).map(|i| flow(i, STATE_HALF_OPEN)).collect();
    let (new, config) = (memory(2), config(2));
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &|_, _| {},
    };
    assert_eq!(table.take_in(&table_of_v3(&full)).placed, 32);
    let passed = table.take_in(&table_of_v3(&[flow(100, STATE_HALF_OPEN)]));
    assert_eq!(
        passed,
        Passed {
            given_up: 1,
            ..Passed::default()
        }
    );
    let proven: Vec<_> = (100..132).map(|i| flow(i, STATE_ESTABLISHED)).collect();
    assert_eq!(table.take_in(&table_of_v3(&proven)).placed, 32);
    let passed = table.take_in(&table_of_v3(&[flow(200, STATE_ESTABLISHED)]));
    assert_eq!(
        passed,
        Passed {
            without_place: 1,
            ..Passed::default()
        }
    );
}

#[test]
fn a_torn_or_free_place_is_no_flow() {
    let old = OldTable {
        sets: memory(1),
        layout: OWN,
        version: shifter_common::abi::ABI_VERSION,
    };
    let mut visited = 0;
    old.for_each(|_| visited += 1);
    assert_eq!(visited, 0);
}

#[test]
fn a_flow_that_moves_is_watched_by_nobody_and_counts_as_one_with_data() {
    let had = FLOW_GREEN | FLOW_WATCHED;
    let data = FLOW_CLIENT_DATA | FLOW_BACKEND_DATA;
    assert_eq!(flags_of(3, had, STATE_ESTABLISHED), FLOW_GREEN | data);
    assert_eq!(flags_of(3, had, STATE_HALF_OPEN), FLOW_GREEN);
    assert_eq!(flags_of(4, had, STATE_ESTABLISHED), FLOW_GREEN);
}

#[test]
fn times_of_who_lay_there_are_forgotten_and_only_these() {
    let (new, config) = (memory(2), config(2));
    let forgotten = std::cell::RefCell::new(Vec::new());
    let forget_times = |set, position| forgotten.borrow_mut().push((set, position));
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &forget_times,
    };
    let half: Vec<_> = (0..32).map(|i| flow(i, STATE_HALF_OPEN)).collect();
    assert_eq!(table.take_in(&table_of_v3(&half)).placed, 32);
    assert_eq!(*forgotten.borrow(), [], "nobody lay there");
    let passed = table.take_in(&table_of_v3(&[flow(100, STATE_ESTABLISHED)]));
    assert_eq!(passed.placed, 1);
    let is_it = |entry: &FlowEntry| entry.client_port == 100u16.to_be_bytes();
    let at = |(set, position): (u32, u32)| new.read(set)[position as usize];
    let places = forgotten.borrow();
    assert_eq!(places.len(), 1);
    assert!(is_it(&at(places[0])));
}

#[test]
fn a_flow_keeps_when_it_was_last_seen_though_that_is_long_ago() {
    let (new, config) = (memory(2), config(2));
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &|_, _| {},
    };
    let idle = FlowEntry {
        last_seen: now_tick().wrapping_sub(ticks_of_seconds(8 * 3_600)),
        ..flow(1, STATE_ESTABLISHED)
    };
    assert_eq!(table.take_in(&table_of_v3(&[idle])).placed, 1);
    assert_eq!(live(&new, &config)[0].last_seen, idle.last_seen);
}

#[test]
fn what_an_agent_left_that_was_killed_is_freed_and_nothing_else() {
    let flows: Vec<_> = (0..20).map(|i| flow(i, STATE_ESTABLISHED)).collect();
    let (new, config) = (memory(4), config(4));
    let table = NewTable {
        sets: &new,
        config,
        forget_times: &|_, _| {},
    };
    table.take_in(&table_of_v3(&flows));
    assert_eq!(table.mend(), 0);
    // One that it held, half written.
    let twice = flow(3, STATE_ESTABLISHED);
    let places = table.places(&flow(50, STATE_ESTABLISHED));
    let (which, distance, _) = table.free_place(&places, &twice, now_tick()).unwrap();
    let entry = table.at(places.sets[which], places.homes[which] + distance);
    let word = control(entry).load(Ordering::Relaxed);
    hold(entry, word, places.tag, now_tick()).unwrap();
    fill(entry, &flow(50, STATE_ESTABLISHED));
    // And a flow that is there twice.
    let places = table.places(&twice);
    let first = table.find(&places, &twice, None).unwrap();
    let free = (0..SET_ENTRIES as u32)
        .rev()
        .map(|distance| table.at(places.sets[1], places.homes[1] + distance))
        .find(|entry| control(*entry).load(Ordering::Relaxed) == 0)
        .unwrap();
    let word = control(first).load(Ordering::Relaxed);
    fill(free, &twice);
    control(free).store(word, Ordering::Relaxed);
    assert_eq!(table.mend(), 2);
    assert_eq!(live(&new, &config).len(), 20);
    assert_eq!(table.find(&places, &twice, None), Some(first));
}
