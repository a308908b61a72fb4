//! A full disk, a read-only one, a store that is damaged, cut short, moved away:
//! the datapath goes on, reads are served, a rollback comes about, and what
//! cannot be done says why and what mends it.
//!
//! The clock is not set here, because the whole machine would have it: that is
//! tried on the reconciler (`shifter/src/reconcile/tests/faults.rs`).

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use shifter_tests::{
    agent::{Agent, Settings, number},
    command::{eventually, run},
    mover::Service,
    need,
    need::scaled,
    records::assert_as_stored,
    topology::{Family, Lab, Placement, Side},
    traffic::{requests, server, storm::Storm},
};

/// A small file system for the store; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"];
        run(Command::new("mount").args(options).arg(&path)).unwrap();
        Self(path)
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.0)).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("shifter.db.ballast")
    }

    fn fill(&self) {
        let file = fs::File::create(self.ballast()).unwrap();
        for size in [65_536, 4_096, 1] {
            let piece = vec![0; size];
            let mut at = file.metadata().unwrap().len();
            while file.write_all_at(&piece, at).is_ok() {
                at += size as u64;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because an agent that is just ending may still hold it.
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn storm(lab: &Lab) -> Storm {
    Storm::answered(lab, scaled(100, 2_000), scaled(20, 500), 5).unwrap()
}

fn services(lab: &Lab) -> Vec<Service> {
    let services = Service::all_four(lab).into_iter();
    services.map(|service| service.with_green("50%")).collect()
}

/// A command that must end with this code; all that it said.
#[track_caller]
fn ends(agent: &Agent, args: &[&str], code: i32) -> String {
    let output = agent.cli(args).unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let said = said.concat();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

/// Asserts that ordinary writes are refused with these words, and change nothing.
#[track_caller]
fn assert_refused(agent: &Agent, name: &str, words: &[&str]) {
    let before = agent.service(name).unwrap();
    let said = ends(agent, &["shift", name, "--green", "70%"], 1);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let after = agent.service(name).unwrap();
    for key in ["configured", "programmed_share"] {
        assert_eq!(before["weights"][key], after["weights"][key], "{said}");
    }
}

/// Asserts that a rollback comes about at once, and says that it is not durable.
#[track_caller]
fn assert_rolls_back(lab: &Lab, agent: &Agent, name: &str) {
    let said = ends(agent, &["rollback", name, "--reason", "a test"], 0);
    assert!(said.contains("not durable"), "{said}");
    assert_eq!(agent.service(name).unwrap()["weights"]["configured"], "0%");
    for _ in 0..20 {
        let vip = lab.vip(Family::V4);
        let answered = lab.client.run(|| requests::ask(vip, None)).unwrap();
        assert_eq!(answered, Side::Blue.identity(), "new flows go to blue");
    }
}

/// Asserts that status and log are loud about the store.
#[track_caller]
fn assert_loud(agent: &Agent) {
    let mut status = String::new();
    let loud = eventually(Duration::from_secs(10), || {
        status = agent.json(&["status"]).unwrap()["loud"].to_string();
        status.contains("the store cannot be written")
    });
    assert!(loud, "{status}");
    let logged = eventually(Duration::from_secs(10), || {
        agent.log().contains("store cannot be written")
    });
    assert!(logged, "{}", agent.log());
    assert!(agent.done(&["get", "flows"]).is_ok());
}

#[track_caller]
fn assert_quiet(agent: &Agent) {
    let mut status = String::new();
    let quiet = eventually(Duration::from_secs(20), || {
        status = agent.json(&["status"]).unwrap()["loud"].to_string();
        !status.contains("store")
    });
    assert!(quiet, "{status}");
}

#[test]
fn a_full_disk_refuses_ordinary_writes_and_never_stops_a_rollback() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let disk = Disk::mount(lab.dir().join("state"));
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let services = services(&lab);
    agent.apply(&services).unwrap();
    let storm = storm(&lab);

    disk.fill();
    assert_refused(&agent, "tcp4", &["full", "taken back"]);
    let path = agent.services_file(&shifter_tests::mover::to_toml(&Service::all_four(&lab)));
    let said = ends(&agent, &["apply", "-f", path.unwrap().to_str().unwrap()], 1);
    assert!(
        said.contains("full") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_rolls_back(&lab, &agent, "tcp4");
    assert_loud(&agent);
    // What is not stored is in the kernel, and found there.
    agent.kill();
    agent.restart().unwrap();
    assert_eq!(
        agent.service("tcp4").unwrap()["weights"]["configured"],
        "0%"
    );
    assert_eq!(
        agent.service("udp6").unwrap()["weights"]["configured"],
        "50%"
    );
    agent
        .done(&["rollback", "udp4", "--reason", "while full"])
        .unwrap();

    disk.free();
    assert_quiet(&agent);
    agent.shift("tcp6", "20%").unwrap();
    assert_as_stored(&lab, "after the disk had room again");
    let audit = agent.json(&["get", "audit", "udp4"]).unwrap();
    assert_eq!(audit["records"][0]["reason"], "while full", "{audit}");
    storm.finish().unwrap().assert_untouched("a full disk");
}

#[test]
fn an_agent_on_a_read_only_disk_serves_reads_and_rolls_back() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let disk = Disk::mount(lab.dir().join("state"));
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&services(&lab)).unwrap();
    let storm = storm(&lab);
    // Killed, so that the last writes are in the write-ahead log only.
    agent.kill();
    disk.remount("ro");
    agent.restart().unwrap();
    assert_eq!(
        agent.service("tcp6").unwrap()["weights"]["configured"],
        "50%"
    );
    assert_refused(
        &agent,
        "tcp4",
        &["shifter.db cannot be opened", "nothing was changed"],
    );
    assert_rolls_back(&lab, &agent, "tcp4");
    assert_loud(&agent);
    agent.stop();
    disk.remount("rw");
    agent.restart().unwrap();
    assert_eq!(
        agent.service("tcp4").unwrap()["weights"]["configured"],
        "0%"
    );
    agent.shift("tcp4", "10%").unwrap();
    assert_as_stored(&lab, "after the disk could be written again");
    assert_quiet(&agent);
    storm.finish().unwrap().assert_untouched("a read-only disk");
}

/// Ways to spoil a file.
fn spoil(path: &Path, how: &str) {
    let length = fs::metadata(path).unwrap().len();
    let file = fs::File::options().write(true).open(path).unwrap();
    match how {
        "emptied" => file.set_len(0).unwrap(),
        "cut in half" => file.set_len(length / 2).unwrap(),
        "full of garbage" => {
            let garbage: Vec<u8> = (0..length).map(|i| (i * 131 % 251) as u8).collect();
            file.write_all_at(&garbage, 0).unwrap();
        }
        other => panic!("no way to spoil a file: {other}"),
    }
}

#[test]
fn an_agent_with_a_damaged_store_serves_what_the_kernel_tells_and_leaves_the_file_alone() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&services(&lab)).unwrap();
    let storm = storm(&lab);
    let path = agent.state_dir().join("shifter.db");
    let vip = lab.vip(Family::V4);
    let name = format!("vip-{}-{}-tcp", vip.ip(), vip.port());
    for how in ["emptied", "cut in half", "full of garbage"] {
        // Stopped, so that the file is all there is.
        agent.stop();
        let good = fs::read(&path).unwrap();
        spoil(&path, how);
        let spoilt = fs::read(&path).unwrap();
        agent
            .restart()
            .unwrap_or_else(|error| panic!("{how}: {error:#}"));
        let service = agent.service(&name).unwrap();
        assert_eq!(service["weights"]["configured"], "50%", "{how}: {service}");
        let backend = lab.backend(Side::Green, Family::V4).to_string();
        assert_eq!(
            service["spec"]["green_pool"][0]["address"], *backend,
            "{how}"
        );
        assert!(number(&service["weights"]["carried"]["green"]) > 0, "{how}");
        assert_refused(
            &agent,
            &name,
            &["damaged", "move it away", "nothing was changed"],
        );
        assert_rolls_back(&lab, &agent, &name);
        assert_loud(&agent);
        agent.stop();
        assert_eq!(
            fs::read(&path).unwrap(),
            spoilt,
            "{how}: the file is as it was"
        );

        // The good one back: the names are there, and so is the rollback.
        fs::write(&path, &good).unwrap();
        agent.restart().unwrap();
        assert_eq!(
            agent.service("tcp4").unwrap()["weights"]["configured"],
            "0%"
        );
        assert_as_stored(&lab, how);
        agent.shift("tcp4", "50%").unwrap();
    }
    storm.finish().unwrap().assert_untouched("a damaged store");
}

/// What is said, what does it, and what mends it.
type Case<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());

#[test]
fn a_store_that_goes_bad_under_the_agent_is_loud_and_never_stops_a_rollback() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent.apply(&services(&lab)).unwrap();
    let storm = storm(&lab);
    // A clean stop moves the log into the file, so that this is all of it.
    agent.stop();
    agent.restart().unwrap();
    let path = agent.state_dir().join("shifter.db");
    let aside = agent.state_dir().join("shifter.db.aside");
    let cases: [Case<'_>; 2] = [
        (
            "was removed",
            &|| fs::rename(&path, &aside).unwrap(),
            &|| fs::rename(&aside, &path).unwrap(),
        ),
        (
            "was replaced",
            &|| {
                fs::rename(&path, &aside).unwrap();
                fs::copy(&aside, &path).unwrap();
            },
            &|| fs::rename(&aside, &path).unwrap(),
        ),
    ];
    for (what, spoil, mend) in cases {
        spoil();
        assert_loud(&agent);
        assert_refused(&agent, "tcp4", &[what, "nothing was changed"]);
        assert_rolls_back(&lab, &agent, "tcp4");
        mend();
        assert_quiet(&agent);
        agent.shift("tcp4", "50%").unwrap();
        assert_as_stored(&lab, what);
    }
    for (what, how) in [
        ("was truncated", "emptied"),
        ("was overwritten", "full of garbage"),
    ] {
        agent.stop();
        let good = fs::read(&path).unwrap();
        agent.restart().unwrap();
        spoil(&path, how);
        let spoilt = fs::read(&path).unwrap();
        assert_loud(&agent);
        assert_refused(&agent, "tcp4", &[what, "nothing was changed"]);
        assert_rolls_back(&lab, &agent, "tcp4");
        agent.stop();
        assert_eq!(
            fs::read(&path).unwrap(),
            spoilt,
            "{what}: the file is as it was"
        );
        let _ = fs::remove_file(agent.state_dir().join("shifter.db-wal"));
        fs::write(&path, &good).unwrap();
        agent.restart().unwrap();
        assert_eq!(
            agent.service("tcp4").unwrap()["weights"]["configured"],
            "0%"
        );
        agent.shift("tcp4", "50%").unwrap();
        assert_as_stored(&lab, what);
    }
    storm
        .finish()
        .unwrap()
        .assert_untouched("a store that goes bad");
}

#[test]
fn the_audit_says_who_changed_what_from_where_and_why() {
    need!();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    agent
        .apply(&[Service::of(&lab, "tcp", Family::V4)])
        .unwrap();
    let args = ["shift", "tcp4", "--green", "5%", "--reason", "canary"];
    agent.done(&args).unwrap();
    agent.kill();
    agent.restart().unwrap();
    let audit = agent.json(&["get", "audit", "tcp4"]).unwrap();
    let record = &audit["records"][0];
    assert_eq!(record["action"], "shift", "{audit}");
    assert_eq!(record["reason"], "canary");
    assert_eq!(record["before"], "blue live, green 0%");
    assert_eq!(record["after"], "blue live, green 5%");
    let actor = record["actor"].as_str().unwrap();
    assert!(actor.starts_with("uid 0 pid "), "{actor}");
    assert_eq!(audit["records"][1]["action"], "apply");
    let shown = agent.done(&["get", "audit"]).unwrap();
    assert!(shown.contains("canary"), "{shown}");
}
