//! Programs: the agent asks the runner, who may become another user, and takes its
//! word for it.

use std::{
    os::{linux::net::SocketAddrExt as _, unix::net},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{
    Asker, Subject, error, first_line,
    runner::{Answer, Request},
    said,
};
use crate::judge::{Exec, GateSpec, Judgement, Outcome};

/// Where the runner listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunnerAt {
    /// The agent's own, by a name in the abstract namespace.
    Own(String),
    /// That of shifter-runner.socket.
    Unit(PathBuf),
}

impl RunnerAt {
    async fn connect(&self) -> std::io::Result<UnixStream> {
        match self {
            Self::Unit(path) => UnixStream::connect(path).await,
            Self::Own(name) => {
                let address = net::SocketAddr::from_abstract_name(name)?;
                let stream = net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
        }
    }

    /// Has a program run. Errors are texts for people.
    pub async fn run(&self, request: &Request) -> Result<Answer, String> {
        let asked = async {
            let mut stream = self.connect().await.map_err(|error| match self {
                Self::Own(_) => format!(
                    "the agent's runner of programs does not answer ({error}): restart the agent"
                ),
                Self::Unit(path) => format!(
                    "no runner of programs at {} ({error}): systemctl enable --now shifter-runner.socket",
                    path.display()
                ),
            })?;
            let fault = |error| format!("asking the runner of programs failed: {error}");
            let line = serde_json::to_string(request).map_err(|e| e.to_string())? + "\n";
            stream.write_all(line.as_bytes()).await.map_err(fault)?;
            let mut answer = Vec::new();
            let mut limited = stream.take(Answer::MOST);
            limited.read_to_end(&mut answer).await.map_err(fault)?;
            serde_json::from_slice(&answer)
                .map_err(|_| "the runner of programs ended without an answer".to_owned())
        };
        let limit = Duration::from_millis(request.timeout_ms) + Duration::from_secs(1);
        match tokio::time::timeout(limit, asked).await {
            Ok(answer) => answer,
            Err(_) => Err("the runner of programs does not answer".into()),
        }
    }
}

pub(super) async fn ask(
    asker: &Asker,
    spec: &Exec,
    gate: &GateSpec,
    subject: &Subject,
) -> Judgement {
    let Some(runner) = &asker.runner else {
        return error("there is no exec_dir in [gates] of the agent's file");
    };
    let request = Request {
        file: spec.file.clone(),
        timeout_ms: spec.timeout.as_millis() as u64,
        environment: environment(&gate.name, subject),
    };
    match runner.run(&request).await {
        Ok(answer) => judge(&spec.file, &answer),
        Err(text) => error(text),
    }
}

fn environment(gate: &str, subject: &Subject) -> Vec<(String, String)> {
    [
        ("SHIFTER_SERVICE", subject.service.clone()),
        ("SHIFTER_ROLLOUT", subject.rollout.to_string()),
        ("SHIFTER_STEP", subject.step.to_string()),
        ("SHIFTER_WEIGHT", subject.weight.clone()),
        ("SHIFTER_PHASE", subject.phase.clone()),
        ("SHIFTER_CANDIDATE", subject.candidate.clone()),
        ("SHIFTER_GATE", gate.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// 0 pass, 1 fail, 2 inconclusive, 3 no data; anything else is an error.
fn judge(file: &str, answer: &Answer) -> Judgement {
    match answer {
        Answer::Ended { code, output } => {
            let outcome = match code {
                0 => Outcome::Pass,
                1 => Outcome::Fail,
                2 => Outcome::Inconclusive,
                3 => Outcome::NoData,
                _ => Outcome::Error,
            };
            let line = first_line(output.as_bytes());
            said(outcome, format!("{file} ends with {code}: {line:?}"))
        }
        Answer::Killed { signal } => error(format!("{file} was ended by signal {signal}")),
        Answer::Stopped { text } | Answer::Refused { text } => error(text.clone()),
    }
}
