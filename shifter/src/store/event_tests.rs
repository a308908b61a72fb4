//! The list of events: whole, in its order, bounded.

use std::path::PathBuf;

use super::*;
use crate::{
    rollout::Happened,
    store::{Audit, Commit, NewRollout, Progress, Store},
};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("shifter-event-{}-{name}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn change(service: &str, action: &str, at_unix_ms: i64) -> Commit<'static> {
    Commit {
        audit: vec![Audit {
            at_unix_ms,
            actor: "uid 0 pid 1".into(),
            service: service.into(),
            action: action.into(),
            reason: "release 7".into(),
            generation: 7,
            ..Audit::default()
        }],
        ..Commit::default()
    }
}

fn newest(limit: u32) -> EventQuery {
    EventQuery {
        limit,
        ..EventQuery::default()
    }
}

fn words(found: &Events) -> Vec<String> {
    let word = |event: &Event| format!("{} {}", event.kind, event.what);
    found.events.iter().map(word).collect()
}

/// A change, something that was told, and a rollout's note.
fn told(store: &mut Store) {
    store.commit(&change("web", "apply", 1_000)).unwrap();
    store
        .event_queue()
        .tell("health", "down", "web", "10.0.0.1:80 (refused)");
    let id = store
        .begin_rollout(&NewRollout {
            service: "web",
            spec: "{}",
            plan: "{}",
            state: "{}",
            actor: "uid 0",
            reason: "",
            at_unix_ms: 2_000,
        })
        .unwrap();
    let note = Happened {
        at_unix_ms: 2_500,
        kind: "holding".into(),
        text: "no flows yet".into(),
    };
    store
        .move_rollout(&Progress {
            id,
            state: "{}",
            at_unix_ms: 2_500,
            outcome: None,
            notes: &[note],
            windows: &[],
        })
        .unwrap();
}

#[test]
fn events_of_every_source_are_one_list_in_the_order_in_which_they_happened() {
    let mut store = Store::in_memory().unwrap();
    told(&mut store);
    let all = store.events(&newest(10)).unwrap();
    assert_eq!(
        words(&all),
        ["change apply", "health down", "rollout holding"]
    );
    let numbers: Vec<u64> = all.events.iter().map(|event| event.number).collect();
    assert_eq!((numbers, all.newest), (vec![1, 2, 3], 3));
    let [change, _, note] = &all.events[..] else {
        panic!("{all:?}")
    };
    assert_eq!((change.generation, change.text.as_str()), (7, "release 7"));
    assert_eq!((note.rollout, note.service.as_str()), (1, "web"));
}

#[test]
fn a_query_asks_for_a_service_a_kind_a_time_or_what_came_after() {
    let mut store = Store::in_memory().unwrap();
    told(&mut store);
    store.commit(&change("dns", "rollback", 9_000)).unwrap();
    store.commit(&change("*", "freeze", 9_500)).unwrap();
    let ask = |query: EventQuery| {
        let limit = if query.limit == 0 { 10 } else { query.limit };
        words(&store.events(&EventQuery { limit, ..query }).unwrap())
    };
    let of = |service: &str| EventQuery {
        service: service.into(),
        ..EventQuery::default()
    };
    assert_eq!(ask(of("dns")), ["change rollback", "change freeze"]);
    let kind = |kind: &str| EventQuery {
        kind: kind.into(),
        ..EventQuery::default()
    };
    assert_eq!(ask(kind("rollout")), ["rollout holding"]);
    assert_eq!(ask(kind("rollback")), ["change rollback"]);
    let since = EventQuery {
        since_unix_ms: 9_001,
        ..EventQuery::default()
    };
    // What is told now is later than that, too.
    assert_eq!(ask(since), ["health down", "change freeze"]);
    let after = EventQuery {
        after: Some(2),
        limit: 2,
        ..EventQuery::default()
    };
    assert_eq!(ask(after), ["rollout holding", "change rollback"]);
    assert_eq!(ask(newest(1)), ["change freeze"]);
}

#[test]
fn what_is_told_is_stored_beside_the_store_and_survives_a_kill() {
    let dir = Dir::new("kill");
    let mut store = Store::open(&dir.0).unwrap();
    store.commit(&change("web", "apply", 1_000)).unwrap();
    let mut file = store.event_file().unwrap();
    let mut stored = store.event_queue().stored();
    stored.mark_unchanged();
    store.event_queue().tell("interface", "down", "", "eth0");
    file.flush(&store.event_queue()).unwrap();
    assert!(stored.has_changed().unwrap());
    assert!(store.event_queue().waiting().is_empty());
    // As after a kill: nothing is closed.
    let second = Store::open(&dir.0).unwrap();
    let all = second.events(&newest(10)).unwrap();
    assert_eq!(words(&all), ["change apply", "interface down"]);
    assert_eq!(file.events(&newest(10)).unwrap(), all);
    std::mem::forget((store, file));
}

#[test]
fn what_a_failing_store_cannot_take_waits_up_to_a_bound_and_the_list_says_so() {
    let mut store = Store::in_memory().unwrap();
    let queue = store.event_queue();
    store.set_read_only(true).unwrap();
    for _ in 0..WAITING + 3 {
        queue.tell("health", "down", "web", "10.0.0.1:80");
    }
    store.probe().unwrap_err();
    for _ in 0..3 {
        queue.tell("test", "more", "", "lost");
        assert!(store.probe().is_err());
    }
    assert_eq!(queue.waiting().len(), WAITING, "what is lost takes no room");
    store.set_read_only(false).unwrap();
    for _ in 0..WAITING / TAKEN_ALONG + 2 {
        store.probe().unwrap();
    }
    assert!(queue.waiting().is_empty());
    let lost = store.events(&newest(10_000)).unwrap();
    assert_eq!(lost.events.len(), WAITING + 1);
    let said = lost.events.iter().find(|event| event.what == "lost");
    assert!(said.unwrap().text.starts_with("6 events are not"));
}

#[test]
fn backends_that_flap_do_not_push_out_what_was_changed() {
    let mut store = Store::in_memory().unwrap();
    store.commit(&change("web", "apply", 1_000)).unwrap();
    let tx = store.connection.transaction().unwrap();
    let flap = Event {
        kind: "health".into(),
        what: "down".into(),
        ..Event::default()
    };
    insert(&tx, &vec![flap; KEPT_OWN as usize + 5]).unwrap();
    tx.commit().unwrap();
    store.prune().unwrap();
    let left: u32 = store
        .connection
        .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, KEPT_OWN + 1);
    // The change is there still; what lies behind it has a hole.
    let all = store.events(&newest(1)).unwrap();
    assert_eq!(all.newest, u64::from(KEPT_OWN) + 6);
    assert_eq!(all.oldest, 7, "5 of those in between were dropped");
    let kind = EventQuery {
        kind: "change".into(),
        ..newest(10)
    };
    assert_eq!(words(&store.events(&kind).unwrap()), ["change apply"]);
}
