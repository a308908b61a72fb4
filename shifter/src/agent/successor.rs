//! Starts the agent that replaces this one, when the service manager asks for it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use tokio::{process::Command, task::JoinHandle};

/// The kernel says this of a file that was replaced, as by an upgrade.
const DELETED: &str = " (deleted)";

/// How this process was started, so that another can be.
pub struct Successor {
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    running: Option<JoinHandle<()>>,
}

impl Successor {
    /// Like this process, from the file that is at its path by then.
    pub fn of_this_process() -> Self {
        Self {
            program: env::current_exe().ok().map(undeleted),
            arguments: with_replace(env::args_os().skip(1)),
            running: None,
        }
    }

    /// Starts it. It asks this process to make way; if it fails, this one goes on.
    pub fn start(&mut self) {
        if self
            .running
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            tracing::warn!("asked to be replaced while a new agent starts: one at a time");
            return;
        }
        let Some(program) = &self.program else {
            tracing::error!(
                "this process does not know its own file: start `shifter agent --replace`"
            );
            return;
        };
        let mut command = Command::new(program);
        command.args(&self.arguments);
        // It names this process; the new one is watched as soon as it is the main one.
        command.env_remove("WATCHDOG_PID");
        match command.spawn() {
            Ok(mut child) => {
                tracing::info!(pid = child.id(), "started a new agent, which takes over");
                self.running = Some(tokio::spawn(async move {
                    match child.wait().await {
                        Ok(status) => {
                            tracing::error!("the new agent ended with {status}: this one goes on")
                        }
                        Err(error) => tracing::error!(%error, "waiting for the new agent failed"),
                    }
                }));
            }
            Err(error) => {
                tracing::error!(%error, program = %program.display(), "starting a new agent failed: this one goes on");
            }
        }
    }
}

fn undeleted(program: PathBuf) -> PathBuf {
    match program.to_str().and_then(|path| path.strip_suffix(DELETED)) {
        Some(path) => Path::new(path).to_owned(),
        None => program,
    }
}

fn with_replace(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.filter(|word| word != "--replace").collect();
    arguments.push("--replace".into());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_started_from_the_new_file_with_the_same_words() {
        let old = undeleted("/usr/bin/shifter (deleted)".into());
        assert_eq!(old, Path::new("/usr/bin/shifter"));
        assert_eq!(undeleted(old.clone()), old);
        for words in [
            &["agent", "--config", "a.toml"][..],
            &["agent", "--replace", "--config", "a.toml"],
        ] {
            let words = words.iter().map(OsString::from);
            let all = ["agent", "--config", "a.toml", "--replace"];
            assert_eq!(with_replace(words), all);
        }
    }
}
