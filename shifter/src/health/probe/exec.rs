//! Programs: the runner of gates has one look after a backend, as another user.

use std::time::{Duration, Instant};

use super::{About, Fault};
use crate::{
    gate::{
        RunnerAt,
        runner::{Answer, Request},
    },
    model::health::{ExecCheck, show},
};

/// Characters of a program's last line that are shown.
const SHOWN: usize = 200;

pub(super) async fn ask(
    runner: Option<&RunnerAt>,
    check: &ExecCheck,
    timeout: Duration,
    about: &About,
) -> Result<(), Fault> {
    let config = |text: String| Fault::new("config", text);
    let Some(runner) = runner else {
        let text = "there is no exec_dir in [gates] of the agent's file";
        return Err(config(text.into()));
    };
    let request = Request {
        file: check.file.clone(),
        timeout_ms: timeout.as_millis() as u64,
        environment: environment(about),
    };
    let begun = Instant::now();
    match runner.run(&request).await {
        Ok(Answer::Ended { code: 0, .. }) => Ok(()),
        Ok(Answer::Ended { code, output }) => {
            let text = format!("{} ends with {code}: {:?}", check.file, last_line(&output));
            Err(Fault::answer(text))
        }
        Ok(Answer::Killed { signal }) => {
            let text = format!("{} was ended by signal {signal}", check.file);
            Err(Fault::answer(text))
        }
        // The runner ends what takes too long, and says so unless it hangs in that.
        Ok(Answer::Stopped { .. }) | Err(_) if begun.elapsed() >= timeout => {
            let text = format!("{} has not ended within {}", check.file, show(timeout));
            Err(Fault::new("timeout", text))
        }
        Ok(Answer::Stopped { text }) => Err(Fault::answer(text)),
        Ok(Answer::Refused { text }) | Err(text) => Err(config(text)),
    }
}

fn environment(about: &About) -> Vec<(String, String)> {
    [
        ("SHIFTER_SERVICE", about.service.clone()),
        ("SHIFTER_POOL", about.pool.to_string()),
        ("SHIFTER_BACKEND", about.backend.to_string()),
        ("SHIFTER_BACKEND_ADDRESS", about.backend.ip().to_string()),
        ("SHIFTER_BACKEND_PORT", about.backend.port().to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The last line that is not empty, short and without control characters.
fn last_line(output: &str) -> String {
    let mut lines = output.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let plain = |c: char| if c.is_control() { '?' } else { c };
    line.chars().map(plain).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        os::unix::net::UnixListener,
        path::PathBuf,
    };

    use super::*;
    use crate::model::PoolName;

    /// A runner at a path that answers once, with what it was asked.
    fn runner(name: &str, answer: Option<Answer>) -> (RunnerAt, std::thread::JoinHandle<Request>) {
        let name = format!("shifter-check-{name}-{}", std::process::id());
        let path: PathBuf = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let at = RunnerAt::Unit(path.clone());
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            if let Some(answer) = answer {
                let text = serde_json::to_string(&answer).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
            }
            std::fs::remove_file(path).unwrap();
            serde_json::from_str(&line).unwrap()
        });
        (at, answers)
    }

    fn about() -> About {
        About {
            service: "web".into(),
            pool: PoolName::Green,
            backend: "[2001:db8::1]:80".parse().unwrap(),
        }
    }

    async fn check(name: &str, answer: Option<Answer>) -> (Result<(), Fault>, Request) {
        let (at, answers) = runner(name, answer);
        let check = ExecCheck {
            file: "well.sh".into(),
        };
        let said = ask(Some(&at), &check, Duration::from_secs(5), &about()).await;
        (said, answers.join().unwrap())
    }

    #[tokio::test]
    async fn it_passes_with_0_and_else_says_its_last_line() {
        let ended = |code, output: &str| {
            let output = output.to_owned();
            Some(Answer::Ended { code, output })
        };
        let (said, request) = check("0", ended(0, "all is well\n")).await;
        assert_eq!(said, Ok(()));
        assert_eq!(
            (request.file.as_str(), request.timeout_ms),
            ("well.sh", 5_000)
        );
        let of = |key: &str| {
            let found = request.environment.iter().find(|(k, _)| k == key);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(of("SHIFTER_SERVICE"), Some("web"));
        assert_eq!(of("SHIFTER_POOL"), Some("green"));
        assert_eq!(of("SHIFTER_BACKEND"), Some("[2001:db8::1]:80"));
        assert_eq!(of("SHIFTER_BACKEND_ADDRESS"), Some("2001:db8::1"));
        assert_eq!(of("SHIFTER_BACKEND_PORT"), Some("80"));
        let (said, _) = check("2", ended(2, "looking\n the queue\x1b is full \n\n")).await;
        let text = "well.sh ends with 2: \"the queue? is full\"";
        assert_eq!(said, Err(Fault::answer(text)));
        let (said, _) = check("killed", Some(Answer::Killed { signal: 9 })).await;
        assert_eq!(said, Err(Fault::answer("well.sh was ended by signal 9")));
    }

    #[tokio::test]
    async fn what_cannot_be_run_says_why() {
        let text = "it is a user's".to_owned();
        let (said, _) = check("refused", Some(Answer::Refused { text })).await;
        assert_eq!(said, Err(Fault::new("config", "it is a user's")));
        let text = "it wrote more than it may".to_owned();
        let (said, _) = check("stopped", Some(Answer::Stopped { text })).await;
        assert_eq!(said, Err(Fault::answer("it wrote more than it may")));
        let (said, _) = check("gone", None).await;
        let text = "the runner of programs ended without an answer";
        assert_eq!(said, Err(Fault::new("config", text)));
        let check = ExecCheck {
            file: "well.sh".into(),
        };
        let said = ask(None, &check, Duration::from_secs(5), &about()).await;
        assert_eq!(said.unwrap_err().kind, "config");
    }
}
