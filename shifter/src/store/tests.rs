//! What is committed is there after reopening; what is no store is refused.

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
        text.contains("newer shifter (format 99, this one knows 1)"),
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
