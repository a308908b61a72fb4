//! Pins that are gone, in whole or in part, or somebody else's: each case is
//! recognised and said aloud, and what can go on does.

use std::{
    fs,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
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
    traffic::{
        hold::{Held, ask_all},
        requests, server,
        storm::Storm,
    },
};

/// An agent's mount namespace has a copy of every mount there is, other labs'
/// BPF file systems too, and would keep what is pinned there.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const HELD: u32 = 60;
const SOON: Duration = Duration::from_secs(10);

fn start<'lab>(lab: &'lab Lab, settings: Settings) -> Agent<'lab> {
    let agent = Agent::start(lab, settings).unwrap();
    let services: Vec<Service> = Service::all_four(lab)
        .into_iter()
        .map(|service| service.with_green("50%"))
        .collect();
    agent.apply(&services).unwrap();
    agent
}

/// Connections that stay idle until they are asked again, by who serves them.
fn hold(lab: &Lab) -> [Vec<Held>; 2] {
    let mut held = [Vec::new(), Vec::new()];
    for number in 0..HELD {
        let vip = lab.vip(Family::BOTH[number as usize % 2]);
        let mut one = lab
            .client
            .run(|| Held::tcp(number, vip, None, SOON))
            .unwrap();
        let side = (one.ask().unwrap() == Side::Green.identity()) as usize;
        held[side].push(one);
    }
    assert!(held.iter().all(|side| side.len() > 5), "both sides serve");
    // The last acknowledgements are on their way for up to 40 ms.
    thread::sleep(Duration::from_millis(300));
    held
}

fn storm(lab: &Lab) -> Storm {
    Storm::answered(lab, scaled(100, 2_000), scaled(20, 500), 5).unwrap()
}

/// Another BPF file system in the place of the lab's.
fn lose_bpffs(lab: &Lab) {
    run(Command::new("umount").arg(lab.bpffs())).unwrap();
    mount_bpffs(lab);
    // Links, programs and maps end some time after their last user.
    thread::sleep(Duration::from_secs(1));
}

/// The kernel's number of the lab's flow table, which programs use.
fn flows_id(lab: &Lab) -> serde_json::Value {
    let mut command = Command::new("bpftool");
    let command = command.args(["-j", "map", "show", "pinned"]);
    let output = run(command.arg(maps(lab).join("FLOWS"))).unwrap();
    let id = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["id"].clone();
    assert!(!users(&id).is_empty(), "no program uses map {id}");
    id
}

/// Programs that use a map.
fn users(map: &serde_json::Value) -> Vec<serde_json::Value> {
    let mut command = Command::new("bpftool");
    let output = run(command.args(["-j", "prog", "show"])).unwrap();
    let programs: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let uses = |program: &serde_json::Value| {
        let maps = program["map_ids"].as_array();
        maps.is_some_and(|ids| ids.contains(map))
    };
    programs.into_iter().filter(uses).collect()
}

/// Waits until no program is left that uses a flow table: an agent that finds one takes its
/// maps over, and nothing is lost. Programs are there for a while after they have left
/// their interfaces.
fn programs_end(flows: &serde_json::Value) {
    let have_ended = eventually(Duration::from_secs(60), || users(flows).is_empty());
    assert!(have_ended, "{:?}", users(flows));
}

/// Another BPF file system in the place of the lab's, and nothing left of what was there.
fn lose_all(lab: &Lab) {
    let flows = flows_id(lab);
    lose_bpffs(lab);
    programs_end(&flows);
}

fn mount_bpffs(lab: &Lab) {
    let arguments = ["-t", "bpf", "bpf"];
    run(Command::new("mount").args(arguments).arg(lab.bpffs())).unwrap();
}

/// A lab's directory as a mount that agents share: what is mounted below it
/// later is seen by those that run. Given up when dropped.
struct Shared(PathBuf);

impl Shared {
    fn new(lab: &Lab) -> Self {
        let path = lab.dir().to_owned();
        let mount = |arguments: &[&str]| {
            run(Command::new("mount").args(arguments).arg(&path)).unwrap();
        };
        mount(&["--bind", path.to_str().unwrap()]);
        let shared = Self(path.clone());
        mount(&["--make-shared"]);
        mount_bpffs(lab);
        shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // With all that is mounted below it.
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn maps(lab: &Lab) -> PathBuf {
    lab.bpffs().join("shifter/maps")
}

fn links(lab: &Lab) -> PathBuf {
    lab.bpffs().join("shifter/links")
}

/// Counts of all TCP services: flows that were adopted by the live pool.
fn adopted(agent: &Agent) -> u64 {
    let services = ["tcp4", "tcp6"].map(|name| agent.service(name).unwrap());
    let count = |service: &serde_json::Value| number(&service["blue_counters"]["adopted_flows"]);
    services.iter().map(count).sum()
}

fn is_answered(lab: &Lab) -> bool {
    let vip = lab.vip(Family::V4);
    lab.client.run(|| requests::ask(vip, None)).is_ok()
}

fn adopts_in_place(placement: Placement, hook: &'static str) {
    let what = format!("{placement:?} under {hook}");
    let _alone = alone();
    let lab = Lab::new(placement).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook(hook));
    let mut held = hold(&lab);
    agent.kill();
    lose_all(&lab);
    // Links without pins ended with the file system.
    assert!(!links(&lab).exists());
    agent.restart().unwrap();
    for side in &mut held {
        let lost = lab.client.run(|| ask_all(side));
        assert!(lost.is_nothing(), "{what}: {lost:?}");
    }
    assert_eq!(
        agent.service("tcp4").unwrap()["weights"]["configured"],
        "50%"
    );
    let mut carried = 0;
    // Counted once a second.
    eventually(SOON, || {
        let green = ["tcp4", "tcp6"].map(|name| agent.carried(name).unwrap()[1]);
        carried = green.iter().sum();
        carried >= held[1].len() as u64
    });
    assert!(
        carried >= held[1].len() as u64,
        "{what}: {carried} on green"
    );
    assert!(is_answered(&lab), "{what}: new connections are served");
    assert_as_stored(&lab, &what);
}

#[test]
fn connections_to_containers_are_adopted_in_place_after_bpffs_is_lost_under_tc() {
    need!("bpftool");
    adopts_in_place(Placement::Container, "tc");
}

#[test]
fn connections_to_containers_are_adopted_in_place_after_bpffs_is_lost_under_xdp() {
    need!("bpftool");
    adopts_in_place(Placement::Container, "xdp");
}

#[test]
fn connections_on_this_host_are_adopted_in_place_after_bpffs_is_lost() {
    need!("bpftool");
    adopts_in_place(Placement::HostPorts, "tc");
}

#[test]
fn connections_to_another_host_go_to_the_live_pool_and_are_counted_after_bpffs_is_lost() {
    need!("bpftool");
    let _alone = alone();
    let lab = Lab::new(Placement::RemoteOther).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let [mut blue, mut green] = hold(&lab);
    agent.kill();
    lose_all(&lab);
    agent.restart().unwrap();
    let lost = lab.client.run(|| ask_all(&mut blue));
    assert!(lost.is_nothing(), "the live pool's own go on: {lost:?}");
    let is_adopted = eventually(SOON, || adopted(&agent) >= blue.len() as u64);
    assert!(is_adopted, "{}\n{}", adopted(&agent), agent.log());
    // Nobody here knows which backend these were on: the live one resets them.
    let lost = lab.client.run(|| ask_all(&mut green));
    assert_eq!((lost.cut, lost.moved), (green.len() as u64, 0), "{lost:?}");
    let all = (blue.len() + green.len()) as u64;
    let is_adopted = eventually(SOON, || adopted(&agent) >= all);
    assert!(is_adopted, "{}", adopted(&agent));
    assert!(is_answered(&lab));
}

#[test]
fn filters_in_clsact_outlive_a_lost_bpffs_and_their_maps_are_pinned_again() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc").with_clsact());
    let storm = storm(&lab);
    let before = agent.service("tcp4").unwrap();
    agent.kill();
    lose_bpffs(&lab);
    agent.restart().unwrap();
    let after = agent.service("tcp4").unwrap();
    assert_eq!(before["generation"], after["generation"], "nothing differs");
    assert_as_stored(&lab, "bpffs lost under clsact");

    // What nobody knows as its own is refused, with what gives it up.
    agent.kill();
    lose_bpffs(&lab);
    let note = agent.state_dir().join("shifter.db.installation");
    let noted = fs::read(&note).unwrap();
    fs::write(&note, "01234567").unwrap();
    let refused = format!("{:#}", agent.restart().unwrap_err());
    for words in ["another shifter installation", "tc qdisc del dev h0 clsact"] {
        assert!(refused.contains(words), "{words:?} is not in: {refused}");
    }
    lose_bpffs(&lab);
    fs::write(&note, noted).unwrap();
    agent.restart().unwrap();
    storm
        .finish()
        .unwrap()
        .assert_untouched("bpffs lost under clsact");
}

#[test]
fn an_agent_without_bpffs_says_how_to_mount_it() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::HostPorts).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    agent.kill();
    run(Command::new("umount").arg(lab.bpffs())).unwrap();
    let refused = format!("{:#}", agent.restart().unwrap_err());
    assert!(refused.contains("mount -t bpf bpf"), "{refused}");
    mount_bpffs(&lab);
    agent.restart().unwrap();
}

#[test]
fn a_bpffs_that_is_replaced_under_the_agent_costs_nothing_and_the_pins_are_carried_over() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _shared = Shared::new(&lab);
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab);
    let before = agent.service("tcp4").unwrap();
    let all = || names(&maps(&lab)).count() + names(&links(&lab)).count();
    let pins = all();
    // The agent has it open, so it can only be taken out of sight.
    run(Command::new("umount").arg("-l").arg(lab.bpffs())).unwrap();
    let loud = eventually(SOON, || {
        let status = agent.json(&["status"]).unwrap()["loud"].to_string();
        status.contains("mount -t bpf bpf")
    });
    assert!(loud, "{}", agent.log());
    mount_bpffs(&lab);
    let carried = eventually(SOON, || links(&lab).exists() && all() == pins);
    assert!(carried, "{}", agent.log());
    let quiet = eventually(SOON, || {
        agent.json(&["status"]).unwrap()["loud"] == serde_json::json!([])
    });
    assert!(quiet, "{}", agent.log());
    for _ in 0..2 {
        agent.kill();
        agent.restart().unwrap();
    }
    let after = agent.service("tcp4").unwrap();
    assert_eq!(before["generation"], after["generation"], "nothing differs");
    storm.finish().unwrap().assert_untouched("a replaced bpffs");
}

#[test]
fn a_map_whose_pin_was_deleted_is_pinned_again_from_the_programs_that_run() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab);
    let before = agent.service("tcp4").unwrap();
    let groups = [
        &["FLOWS", "CONFIG"][..],
        &["RINGS", "SERVICE_BODY", "BACKEND_COUNTERS"],
        &["BACKENDS", "BACKEND_IDS", "SERVICE_HEAD", "VIPS"],
    ];
    for names in groups {
        agent.kill();
        for name in names {
            fs::remove_file(maps(&lab).join(name)).unwrap();
        }
        agent.restart().unwrap();
        let log = agent.log();
        for name in names {
            assert!(
                log.contains(&format!("the pin of {name} was gone")),
                "{log}"
            );
        }
    }
    let after = agent.service("tcp4").unwrap();
    assert_eq!(before["generation"], after["generation"], "nothing differs");
    assert_as_stored(&lab, "pins deleted one by one");
    storm
        .finish()
        .unwrap()
        .assert_untouched("pins of maps deleted");
}

#[test]
fn a_link_whose_pin_was_deleted_is_attached_again() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let mut held = hold(&lab);
    for place in ["egress", "ingress"] {
        agent.kill();
        let name = names(&links(&lab)).find(|name| name.ends_with(place));
        let pin = links(&lab).join(name.unwrap());
        fs::remove_file(&pin).unwrap();
        agent.restart().unwrap();
        assert!(pin.exists(), "{place}");
        for side in &mut held {
            let lost = lab.client.run(|| ask_all(side));
            assert!(lost.is_nothing(), "{place}: {lost:?}");
        }
        thread::sleep(Duration::from_millis(300));
    }
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

#[test]
fn maps_of_which_some_are_lost_for_good_are_refused_with_what_detach_would_cut() {
    need!("bpftool");
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let mut held = hold(&lab);
    let flows = flows_id(&lab);
    agent.kill();
    for name in names(&links(&lab)) {
        fs::remove_file(links(&lab).join(name)).unwrap();
    }
    for name in ["shifter_xdp", "shifter_ingress", "shifter_egress"] {
        fs::remove_file(maps(&lab).join(name)).unwrap();
    }
    programs_end(&flows);
    fs::remove_file(maps(&lab).join("RINGS")).unwrap();
    let refused = format!("{:#}", agent.restart().unwrap_err());
    let flows = format!("{} flows on green", held[1].len());
    for words in [
        "the pins of RINGS are gone",
        "shifter detach --force",
        &flows,
    ] {
        assert!(refused.contains(words), "{words:?} is not in: {refused}");
    }
    agent.done(&["detach", "--force"]).unwrap();
    agent.restart().unwrap();
    for side in &mut held {
        let lost = lab.client.run(|| ask_all(side));
        assert!(lost.is_nothing(), "by their sockets: {lost:?}");
    }
}

#[test]
fn a_first_start_that_was_cut_off_anywhere_is_followed_by_a_good_one() {
    need!("bpftool");
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    for point in ["maps-pinned", "attach-egress", "attach-ingress"] {
        agent.kill();
        lose_all(&lab);
        fs::remove_dir_all(agent.state_dir()).unwrap();
        let died = agent.restart_with("SHIFTER_KILL_AT", point).unwrap_err();
        assert!(format!("{died:#}").contains("signal: 9"), "{died:#}");
        if point == "maps-pinned" {
            // As if it had died between the pins.
            for name in ["SERVICE_HEAD", "FLOWS", "NEXT_HOPS", "VIPS"] {
                fs::remove_file(maps(&lab).join(name)).unwrap();
            }
        }
        agent.restart().unwrap();
        agent.apply(&Service::all_four(&lab)).unwrap();
        assert!(is_answered(&lab), "{point}: {}", agent.log());
        assert_as_stored(&lab, point);
    }
}

#[test]
fn what_is_not_shifters_under_its_names_is_refused_and_beside_them_is_named() {
    need!();
    let _alone = alone();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut agent = start(&lab, Settings::hook("tc"));
    let storm = storm(&lab);
    agent.kill();
    let pin = maps(&lab).join("RINGS");
    fs::remove_file(&pin).unwrap();
    pin_foreign_map(&pin);
    let refused = format!("{:#}", agent.restart().unwrap_err());
    for words in ["RINGS is a map of another kind", "take it away"] {
        assert!(refused.contains(words), "{words:?} is not in: {refused}");
    }
    fs::remove_file(&pin).unwrap();
    let beside = [maps(&lab).join("notes"), links(&lab).join("notes")];
    pin_foreign_map(&beside[0]);
    fs::create_dir(&beside[1]).unwrap();
    agent.restart().unwrap();
    for path in &beside {
        let said = format!("{} is no pin of this version", path.display());
        assert!(agent.log().contains(&said), "{}", agent.log());
        assert!(path.exists(), "it is left alone");
    }
    assert_as_stored(&lab, "foreign pins");
    storm.finish().unwrap().assert_untouched("foreign pins");
}

/// Pins a small hash map that has nothing to do with shifter.
fn pin_foreign_map(path: &Path) {
    const MAP_CREATE: libc::c_int = 0;
    const OBJ_PIN: libc::c_int = 6;
    const HASH: u32 = 1;
    // Type, size of key and value, entries, flags.
    let create = [HASH, 4, 8, 1, 0];
    // SAFETY: the array is as large as the kernel is told.
    let map = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            create.as_ptr(),
            size_of_val(&create),
        )
    };
    assert!(map >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given it to us.
    let _map = unsafe { OwnedFd::from_raw_fd(map as i32) };
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let pin = [path.as_ptr() as u64, map as u64];
    // SAFETY: as above, and the path is a C string that lives on.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, pin.as_ptr(), size_of_val(&pin)) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}
