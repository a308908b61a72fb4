//! What is committed is there after reopening; what is no store is refused.

use std::path::PathBuf;

use super::*;
use crate::model::file::{Format, parse_services};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("shifter-store-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn spec() -> ServiceSpec {
    let text = "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\ngreen = \"5%\"\n\
                seed = \"000102030405060708090a0b0c0d0e0f\"\n\
                pools = { blue = [\"10.0.0.1:80\"], green = [\"10.0.0.2:80\"] }\n";
    parse_services(text, "f", Format::Toml).unwrap().remove(0)
}

fn row(spec: &ServiceSpec, generation: u32, whole: bool) -> Row<'_> {
    Row {
        spec,
        whole,
        generation,
        written: generation,
        dead_man: None,
        promoted: None,
    }
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let dir = Dir::new("reopen");
    let mut spec = spec();
    let mut store = Store::open(&dir.0).unwrap();
    store
        .note_pending(&[("web", Some(&spec)), ("old", None)])
        .unwrap();
    assert_eq!(
        Store::open(&dir.0).unwrap().load().unwrap().pending.len(),
        2
    );
    fn commit(rows: Vec<Row<'_>>) -> Commit<'_> {
        Commit {
            generation: 7,
            rows,
            ..Commit::default()
        }
    }
    store.commit(&commit(vec![row(&spec, 7, true)])).unwrap();
    spec.green = "1/3".parse().unwrap();
    let dead_man = StoredDeadMan {
        safe_threshold: 1 << 32,
        deadline_unix_ms: 5,
        after_ms: 6,
    };
    let promoted = Promoted {
        former: PoolName::Green,
        at_unix_ms: 9,
    };
    let mut second = row(&spec, 8, false);
    second.dead_man = Some(dead_man);
    second.promoted = Some(promoted);
    store.commit(&commit(vec![second])).unwrap();
    drop(store);

    let store = Store::open(&dir.0).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.generation, 7);
    assert!(loaded.pending.is_empty());
    let expected = StoredService {
        spec,
        generation: 8,
        written: 8,
        dead_man: Some(dead_man),
        promoted: Some(promoted),
    };
    assert_eq!(loaded.services, [expected]);
    let (live, green) = store.split("web", 7).unwrap().unwrap();
    assert_eq!((live, green.to_string()), (PoolName::Blue, "5%".into()));
    assert_eq!(store.split("web", 6).unwrap(), None);
    assert_eq!(store.nearest_generations("web", 100).unwrap(), [7, 8]);
}

#[test]
fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = Dir::new("mode");
    drop(Store::open(&dir.0).unwrap());
    let mode = std::fs::metadata(dir.0.join("shifter.db"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_log_of_another_file_is_not_played_back_into_a_new_one() {
    let dir = Dir::new("log");
    let spec = spec();
    let mut store = Store::open(&dir.0).unwrap();
    store
        .commit(&Commit {
            generation: 7,
            rows: vec![row(&spec, 7, true)],
            ..Commit::default()
        })
        .unwrap();
    let log = dir.0.join("shifter.db-wal");
    let left = std::fs::read(&log).unwrap();
    assert!(!left.is_empty());
    drop(store);
    std::fs::remove_file(dir.0.join("shifter.db")).unwrap();
    std::fs::write(&log, &left).unwrap();
    let loaded = Store::open(&dir.0).unwrap().load().unwrap();
    assert!(loaded.services.is_empty() && loaded.generation == 0);
    let aside = dir.0.join("shifter.db-wal.old");
    assert_eq!(std::fs::read(aside).unwrap(), left);
}

#[test]
fn a_damaged_file_and_a_newer_one_are_refused() {
    let dir = Dir::new("damaged");
    let path = dir.0.join("shifter.db");
    std::fs::write(
        &path,
        "this is no database, and long enough to be read as one".repeat(100),
    )
    .unwrap();
    let text = Store::open(&dir.0).err().unwrap().to_string();
    assert!(
        text.contains("damaged") && text.contains("move it away"),
        "{text}"
    );
    std::fs::remove_file(&path).unwrap();

    let store = Store::open(&dir.0).unwrap();
    store
        .connection
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(store);
    let text = Store::open(&dir.0).err().unwrap().to_string();
    assert!(
        text.contains("newer shifter (format 99, this one knows 6)"),
        "{text}"
    );
}

#[test]
fn a_foreign_database_is_refused() {
    let dir = Dir::new("foreign");
    let connection = Connection::open(dir.0.join("shifter.db")).unwrap();
    connection.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(connection);
    assert!(
        Store::open(&dir.0)
            .err()
            .unwrap()
            .to_string()
            .contains("no store of shifter")
    );
}

#[test]
fn a_failed_commit_changes_nothing() {
    let mut store = Store::in_memory().unwrap();
    let spec = spec();
    store.set_read_only(true).unwrap();
    let commit = Commit {
        generation: 3,
        rows: vec![row(&spec, 3, true)],
        ..Commit::default()
    };
    let text = store.commit(&commit).unwrap_err().to_string();
    assert!(text.contains("full or read-only"), "{text}");
    store.set_read_only(false).unwrap();
    assert_eq!(store.load().unwrap(), Loaded::default());
}

#[test]
fn what_is_published_without_a_write_makes_no_history() {
    let mut store = Store::in_memory().unwrap();
    let spec = spec();
    for (generation, written) in [(3, 3), (9, 3), (12, 3)] {
        let mut row = row(&spec, generation, true);
        row.written = written;
        let rows = vec![row];
        let commit = Commit {
            rows,
            ..Commit::default()
        };
        store.commit(&commit).unwrap();
    }
    let loaded = store.load().unwrap().services.remove(0);
    assert_eq!((loaded.generation, loaded.written), (12, 3));
    assert_eq!(store.nearest_generations("web", 12).unwrap(), [3]);
}

#[test]
fn history_is_bounded_per_service() {
    let mut store = Store::in_memory().unwrap();
    let spec = spec();
    let rows = (1..=HISTORY_PER_SERVICE + 5)
        .map(|g| row(&spec, g, true))
        .collect();
    let commit = Commit {
        rows,
        ..Commit::default()
    };
    store.commit(&commit).unwrap();
    store.prune().unwrap();
    assert_eq!(store.split("web", 5).unwrap(), None);
    assert!(store.split("web", 6).unwrap().is_some());
}

#[test]
fn a_file_of_the_first_format_is_brought_up_to_date_and_keeps_its_audit() {
    let dir = Dir::new("older");
    let mut store = Store::open(&dir.0).unwrap();
    store.commit(&audited(&["one"])).unwrap();
    store
        .connection
        .execute_batch(
            "ALTER TABLE audit DROP COLUMN request_id;
             ALTER TABLE service DROP COLUMN cohorts_on; DROP TABLE rollout;
             DROP TABLE rollout_note; DROP TABLE rollout_window; DROP TABLE frozen;
             DROP TRIGGER event_of_audit; DROP TRIGGER event_without_audit;
             DROP TABLE event; DROP TABLE event_dropped; DROP TABLE cut;
             PRAGMA user_version = 1",
        )
        .unwrap();
    drop(store);
    let store = Store::open(&dir.0).unwrap();
    let records = store.audit(&newest(9)).unwrap();
    assert_eq!(records[0].audit.action, "one");
    assert_eq!(records[0].audit.request_id, "");
    assert!(store.open_rollouts().unwrap().is_empty());
    let events = store.events(&EventQuery {
        limit: 9,
        ..EventQuery::default()
    });
    let events = events.unwrap().events;
    assert_eq!(events.len(), 1, "what was audited before is in the list");
    assert_eq!(events[0].what, "one");
}

fn audited<'a>(actions: &[&str]) -> Commit<'a> {
    let audit = |action: &&str| Audit {
        action: (*action).to_owned(),
        service: "web".to_owned(),
        request_id: "r-1".to_owned(),
        ..Audit::default()
    };
    Commit {
        audit: actions.iter().map(audit).collect(),
        ..Commit::default()
    }
}

fn newest(limit: u32) -> AuditQuery {
    AuditQuery {
        limit,
        ..AuditQuery::default()
    }
}

#[test]
fn the_audit_is_paged_by_number_and_by_service() {
    let mut store = Store::in_memory().unwrap();
    store.commit(&audited(&["one", "two", "three"])).unwrap();
    let page = store.audit(&newest(2)).unwrap();
    let actions: Vec<_> = page.iter().map(|r| r.audit.action.as_str()).collect();
    assert_eq!(actions, ["three", "two"]);
    assert_eq!(page[0].audit.request_id, "r-1");
    let before = page[1].number;
    let rest = AuditQuery {
        before,
        ..newest(9)
    };
    assert_eq!(store.audit(&rest).unwrap()[0].audit.action, "one");
    let service = "none".to_owned();
    let none = AuditQuery {
        service,
        ..newest(9)
    };
    assert!(store.audit(&none).unwrap().is_empty());
}

#[test]
fn the_audit_is_bounded() {
    let mut store = Store::in_memory().unwrap();
    store.commit(&audited(&["first", "second"])).unwrap();
    let fill = format!(
        "INSERT INTO audit (id, at_unix_ms, actor, service, action, reason, before, after, generation)
         VALUES ({}, 0, '', '', 'last', '', '', '', 0)",
        AUDIT_RECORDS + 1
    );
    store.connection.execute_batch(&fill).unwrap();
    store.prune().unwrap();
    let left = store.audit(&newest(9)).unwrap();
    let actions: Vec<_> = left.iter().map(|r| r.audit.action.as_str()).collect();
    assert_eq!(actions, ["last", "second"]);
}

/// A store with a service, closed; its directory and path.
fn closed(name: &str) -> (Dir, PathBuf) {
    let dir = Dir::new(name);
    let spec = spec();
    let mut store = Store::open(&dir.0).unwrap();
    let commit = Commit {
        generation: 3,
        rows: vec![row(&spec, 3, true)],
        ..Commit::default()
    };
    store.commit(&commit).unwrap();
    drop(store);
    let path = dir.0.join(STORE_FILE);
    (dir, path)
}

#[test]
fn a_damaged_file_leaves_a_store_that_refuses_writes_and_is_not_touched() {
    for (name, length) in [("emptied", 0), ("cut", 5_000)] {
        let (dir, path) = closed(name);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        let before = std::fs::read(&path).unwrap();
        let mut store = Store::open_or_refuse(&dir.0).unwrap();
        assert!(store.refused().unwrap().contains("damaged"), "{name}");
        assert_eq!(store.load().unwrap(), Loaded::default());
        let error = store.commit(&Commit::default()).unwrap_err();
        assert!(error.is_lasting(), "{error}");
        assert!(error.to_string().contains("move it away"), "{error}");
        drop(store);
        assert_eq!(std::fs::read(&path).unwrap(), before, "{name}");
    }
}

#[test]
fn an_empty_file_beside_a_log_does_not_cost_the_log() {
    let dir = Dir::new("log");
    let spec = spec();
    let mut store = Store::open(&dir.0).unwrap();
    store.keep_log(true);
    let commit = Commit {
        rows: vec![row(&spec, 3, true)],
        ..Commit::default()
    };
    store.commit(&commit).unwrap();
    drop(store);
    let log = dir.0.join("shifter.db-wal");
    let before = std::fs::read(&log).unwrap();
    let path = dir.0.join(STORE_FILE);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    assert!(Store::open_or_refuse(&dir.0).unwrap().refused().is_some());
    assert_eq!(std::fs::read(&log).unwrap(), before);
}

#[test]
fn a_file_that_goes_bad_under_an_open_store_is_noticed_and_not_touched() {
    let (dir, path) = closed("under");
    let aside = dir.0.join("aside");
    let mut store = Store::open(&dir.0).unwrap();
    std::fs::rename(&path, &aside).unwrap();
    let error = store.probe().unwrap_err().to_string();
    assert!(error.contains("was removed while the agent ran"), "{error}");
    assert_eq!(store.problem(), Some(error.as_str()));
    std::fs::copy(&aside, &path).unwrap();
    assert!(
        store
            .probe()
            .unwrap_err()
            .to_string()
            .contains("was replaced")
    );
    std::fs::rename(&aside, &path).unwrap();
    store.probe().unwrap();
    assert_eq!(store.problem(), None);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(4_096).unwrap();
    assert!(
        store
            .probe()
            .unwrap_err()
            .to_string()
            .contains("was truncated")
    );
    drop(store);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4_096);
}

#[test]
fn a_store_that_cannot_be_written_is_read_from_a_copy() {
    let (dir, path) = closed("copy");
    let copy = place::copy(&path).unwrap();
    let mut store = Store::over(copy, None);
    store.refuse("the disk is read-only".to_owned());
    assert_eq!(store.load().unwrap().services.len(), 1);
    assert!(store.split("web", 3).unwrap().is_some());
    assert!(store.commit(&Commit::default()).is_err());
    drop(store);
    assert_eq!(Store::open(&dir.0).unwrap().load().unwrap().generation, 3);
}
