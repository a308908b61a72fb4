//! Programs of exec gates where the agent may not become another user: it asks the
//! runner of packaging/shifter-runner.service, which gets its socket as systemd hands
//! it over and no more rights than that unit leaves it.

use std::{
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    },
    path::Path,
};

use shifter_tests::{
    agent::{Agent, Settings, binary},
    command::{Process, eventually},
    mover::{Service, to_toml},
    need,
    programs::Programs,
    topology::{Family, Lab, Placement},
    traffic::server,
};

use super::{SOON, assert_confined};

const NAME: &str = "tcp4";

/// The value of a key in a unit of packaging/.
fn packaged(unit: &str, key: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let text = fs::read_to_string(path.join(unit)).unwrap();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value
        .unwrap_or_else(|| panic!("{unit} has no {key}"))
        .to_owned()
}

/// setpriv(1) as the runner's unit has it.
fn confined() -> Vec<String> {
    let unit = "shifter-runner.service";
    let set = packaged(unit, "CapabilityBoundingSet");
    let names = set.split(' ').map(|name| {
        let name = name.strip_prefix("CAP_").unwrap();
        format!(",+{}", name.to_lowercase())
    });
    assert_eq!(packaged(unit, "NoNewPrivileges"), "yes");
    vec![
        "setpriv".into(),
        format!("--bounding-set=-all{}", names.collect::<String>()),
        "--inh-caps=-all".into(),
        "--no-new-privs".into(),
    ]
}

/// The socket of shifter-runner.socket, in the place of the lab's.
fn socket(lab: &Lab) -> UnixListener {
    let path = lab.dir().join("runner.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mode = packaged("shifter-runner.socket", "SocketMode");
    let mode = u32::from_str_radix(&mode, 8).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    listener
}

/// Waits until somebody asks, as systemd does before it starts the service.
fn await_request(listener: &UnixListener) {
    let mut polled = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, SOON.as_millis() as i32) };
    assert_eq!(ready, 1, "nobody asks for a program");
}

/// The unit's service, with the socket as descriptor 3.
fn runner(lab: &Lab, config: &Path, listener: &UnixListener) -> Process {
    let mut command = lab.host.command("bash");
    command.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "runner"]);
    command.args(confined()).arg("--");
    command.arg(binary().unwrap()).args(["runner", "--config"]);
    command.arg(config);
    // Not in the way of descriptor 3, whichever number it has itself.
    let socket: OwnedFd = listener.try_clone().unwrap().into();
    let from = socket.as_raw_fd();
    // SAFETY: dup2(2) and fcntl(2) are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let placed = match from {
                3 => libc::fcntl(3, libc::F_SETFD, 0),
                _ => libc::dup2(from, 3),
            };
            match placed {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    Process::start(command, lab.dir().join("runner")).unwrap()
}

/// Says who it is and what it may, and ends with `code`.
fn gate(code: u32) -> String {
    format!(
        "echo \"user $(id -u) with $(grep CapEff /proc/self/status | cut -f2) $SHIFTER_SERVICE\"\n\
         exit {code}\n"
    )
}

fn why(agent: &Agent) -> String {
    agent.done(&["rollout", "status", NAME]).unwrap()
}

fn settings(lab: &Lab, programs: &Programs) -> Settings {
    let service = Service::of(lab, "tcp", Family::V4);
    let mut settings = Settings::hook("tc").confined();
    settings.more += &format!(
        "{}{}[service.rollout]\nstrategy = \"canary\"\nsteps = [\"10%\"]\ninterval = \"3s\"\n\
         gates = [{{ judge = \"exec\", file = \"ask\", interval = \"1s\" }}]\n",
        programs.toml(),
        to_toml(&[service]),
    );
    settings
}

#[test]
fn a_confined_agent_has_programs_run_by_the_runner_of_the_socket() {
    need!("setpriv", "bash");
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let programs = Programs::of(&lab).unwrap();
    programs.put("ask", &gate(0)).unwrap();
    let agent = Agent::start(&lab, settings(&lab, &programs)).unwrap();
    assert_confined(&agent);
    let state_is = |wanted: &str| {
        eventually(SOON, || {
            agent.json(&["rollout", "status", NAME]).unwrap()["state"] == wanted
        })
    };

    // Without the socket it holds, and says what is missing.
    agent.done(&["rollout", "start", NAME]).unwrap();
    assert!(state_is("holding"), "{}", why(&agent));
    let missing = "systemctl enable --now shifter-runner.socket";
    assert!(why(&agent).contains(missing), "{}", why(&agent));

    let listener = socket(&lab);
    await_request(&listener);
    let runner = runner(&lab, &agent.config(), &listener);
    assert!(state_is("promoted"), "{}", why(&agent));
    let status = fs::read_to_string(format!("/proc/{}/status", runner.pid())).unwrap();
    // CAP_KILL, CAP_SETGID and CAP_SETUID.
    for line in ["CapBnd:\t00000000000000e0", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let report = eventually(SOON, || {
        agent.json(&["rollout", "status", NAME]).unwrap()["has_report"] == true
    });
    assert!(report, "no report");

    // The other pool is live now, and what it asks is answered with a no.
    programs.put("ask", &gate(1)).unwrap();
    agent.done(&["rollout", "start", NAME]).unwrap();
    assert!(state_is("rolled back"), "{}", why(&agent));
    let said = why(&agent);
    // nobody(65534), without a capability.
    let line = "user 65534 with 0000000000000000 tcp4";
    assert!(said.contains(line), "{said}");
    assert!(runner.output().is_empty(), "{}", runner.output());
}
