//! A rollout that is written into its service's description.

use std::time::Duration;

use shifter_tests::{
    agent::{Agent, Settings},
    mover::to_toml,
    need,
    topology::{Lab, Placement},
};

use super::{NAME, apply_text, await_state, service, text};

#[test]
fn a_description_in_the_file_is_checked_and_used() {
    need!();
    let lab = Lab::new(Placement::Container).unwrap();
    let agent = Agent::start(&lab, Settings::hook("tc")).unwrap();
    let with = |rollout: &str| {
        let text = format!(
            "{}[service.rollout]\n{rollout}\n",
            to_toml(&[service(&lab)])
        );
        let path = agent.services_file(&text).unwrap();
        agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap()
    };
    for (rollout, part) in [
        (
            "strategy = \"canary\"\nstep = [\"5%\"]",
            "services.toml:15:1: a rollout has no key \"step\": did you mean \"steps\"?",
        ),
        (
            "strategy = \"canary\"\ninterval = \"0s\"",
            "services.toml:15:12: interval = 0ms is out of range: write 1s to 30d",
        ),
        (
            "strategy = \"canary\"\nsteps = [\"hook x\"]",
            "cannot come over the API",
        ),
        (
            "strategy = \"canary\"\ngates = [{ judge = \"exec\", file = \"x\" }]",
            "cannot come over the API",
        ),
    ] {
        let refused = with(rollout);
        assert_eq!(refused.status.code(), Some(1), "{rollout}");
        assert!(text(&refused).contains(part), "{part}: {}", text(&refused));
    }
    apply_text(&agent, &to_toml(&[service(&lab)]));
    let refused = agent.cli(&["rollout", "start", NAME]).unwrap();
    assert!(
        text(&refused).contains("has no [service.rollout]"),
        "{}",
        text(&refused)
    );
    let taken = with("strategy = \"canary\"\nsteps = [\"5%\", \"pause\"]\ninterval = \"1s\"");
    assert!(taken.status.success(), "{}", text(&taken));
    let planned = agent
        .done(&["rollout", "start", NAME, "--dry-run"])
        .unwrap();
    assert!(planned.contains("pause until told to advance"), "{planned}");
    assert_eq!(agent.service(NAME).unwrap()["spec"]["green"], "0%");
    agent.done(&["rollout", "start", NAME]).unwrap();
    await_state(&agent, "holding", Duration::from_secs(20));
    agent.done(&["rollout", "promote", NAME]).unwrap();
    await_state(&agent, "promoted", Duration::from_secs(20));
}
