//! Reads the packet filter with nft and iptables-save, and again only when it changed.

use std::{
    io::{self, Read as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use super::{Chain, Family, Ruleset, iptables, nft};
use crate::network::{
    NetworkError,
    netlink::{Query, Request, attributes},
};

/// nf_tables has a generation of its own; NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN.
const NFT_GETGEN: u16 = 10 << 8 | 16;
const NFTA_GEN_ID: u16 = 1;
/// Rules of the old iptables do not move that generation.
const KEEP: Duration = Duration::from_secs(5);
/// A program that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(3);

struct Cached {
    ruleset: Arc<Ruleset>,
    generation: Option<u32>,
    read_at: Instant,
    /// iptables-save is installed.
    has_iptables: bool,
}

impl Cached {
    /// Whether it still says what there is. Only a whole read lasts until the
    /// kernel tells of a change: one that failed says nothing of the rules.
    fn holds(&self, generation: Option<u32>, age: Duration) -> bool {
        let whole = self.ruleset.problem.is_none();
        let told = whole && generation.is_some() && !self.has_iptables;
        (told || age < KEEP) && self.generation == generation
    }
}

/// The packet filter as last read.
#[derive(Default)]
pub(in crate::network) struct RulesetCache {
    cached: Mutex<Option<Cached>>,
    /// What the last read could not read; no read is waited for to know it.
    problem: Mutex<Option<String>>,
}

impl RulesetCache {
    /// The rules as they are now: read anew when nf_tables changed, or when
    /// some seconds have passed and rules may have changed without a sign.
    /// Runs programs then, which takes some ms and at most some seconds.
    pub(in crate::network) fn get(&self) -> Arc<Ruleset> {
        let mut cached = lock(&self.cached);
        let generation = nft_generation();
        if let Some(cached) = &*cached
            && cached.holds(generation, cached.read_at.elapsed())
        {
            return Arc::clone(&cached.ruleset);
        }
        let (ruleset, has_iptables) = read();
        self.note(ruleset.problem.as_ref());
        let ruleset = Arc::new(ruleset);
        *cached = Some(Cached {
            ruleset: Arc::clone(&ruleset),
            generation,
            read_at: Instant::now(),
            has_iptables,
        });
        ruleset
    }

    /// What the last read could not read, at once.
    pub(in crate::network) fn standing_problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// Says what cannot be read when it begins or changes, and when it ends.
    fn note(&self, problem: Option<&String>) {
        let mut standing = lock(&self.problem);
        match problem {
            Some(problem) if standing.as_ref() != Some(problem) => {
                tracing::warn!("the packet filter could not be read whole: {problem}");
            }
            None if standing.is_some() => tracing::info!("the packet filter could be read again"),
            _ => {}
        }
        *standing = problem.cloned();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Generation of nf_tables; `None` where the kernel does not tell.
fn nft_generation() -> Option<u32> {
    let mut query = Query::open(netlink_sys::protocols::NETLINK_NETFILTER).ok()?;
    let mut generation = None;
    let request = Request::new(NFT_GETGEN, 0, &[0; 4]);
    let result = query.ask(&request, |_, payload| {
        generation = attributes(payload.get(4..).unwrap_or(&[]))
            .find(|attribute| attribute.0 == NFTA_GEN_ID)
            .and_then(|attribute| attribute.1.try_into().ok())
            .map(u32::from_be_bytes);
    });
    result.ok().and(generation)
}

/// Rules of both worlds, and whether iptables-save is there.
fn read() -> (Ruleset, bool) {
    let mut ruleset = Ruleset::default();
    let mut problems = Vec::new();
    let mut foreign = Vec::new();
    // Sets of great size are left out (-t) when the whole takes too long.
    let whole = run("nft", &["-j", "list", "ruleset"]);
    match whole.or_else(|_| run("nft", &["-j", "-t", "list", "ruleset"])) {
        Ok(Some(json)) if json.trim().is_empty() => {}
        Ok(Some(json)) => match nft::parse(&json) {
            Ok(parsed) => (ruleset, foreign) = parsed,
            Err(error) => problems.push(format!("nft -j list ruleset cannot be read: {error}")),
        },
        Ok(None) => {}
        Err(error) => problems.push(error.to_string()),
    }
    let mut has_iptables = false;
    for (program, family) in [
        ("iptables-save", Family::Ip),
        ("ip6tables-save", Family::Ip6),
    ] {
        match run(program, &[]) {
            Ok(Some(text)) => {
                has_iptables = true;
                let chains = iptables::parse(&text, family);
                replace(&mut ruleset.chains, &foreign, chains, family);
            }
            Ok(None) => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    if !problems.is_empty() {
        ruleset.problem = Some(problems.join("; "));
    }
    (ruleset, has_iptables)
}

/// Adds chains that iptables shows, in place of tables that nft shows in part.
fn replace(all: &mut Vec<Chain>, foreign: &[(Family, String)], chains: Vec<Chain>, family: Family) {
    all.retain(|old| {
        let in_part = foreign.contains(&(old.family, old.table.clone()));
        let shown = chains.iter().any(|chain| chain.table == old.table);
        !(old.family == family && in_part && shown)
    });
    all.extend(chains);
}

/// Output of a program; `None` when it is not installed.
fn run(program: &'static str, arguments: &[&str]) -> Result<Option<String>, NetworkError> {
    let failed = |problem: String, remedy| NetworkError::Program {
        program,
        problem,
        remedy,
    };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(format!("does not start: {error}"), "repair it")),
    };
    let (sender, receiver) = mpsc::channel();
    if let Some(mut output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = String::new();
            let result = output.read_to_string(&mut text).map(|_| text);
            // The receiver is gone when patience ended.
            let _ = sender.send(result);
        });
    }
    let output = receiver.recv_timeout(PATIENCE);
    if output.is_err() {
        // Already ended is no error.
        let _ = child.kill();
    }
    let status = child.wait();
    match (output, status) {
        (Ok(Ok(text)), Ok(status)) if status.success() => Ok(Some(text)),
        (Err(_), _) => Err(failed(
            format!("took longer than {} s", PATIENCE.as_secs()),
            "see whether the host is overloaded, or the rules very many",
        )),
        (_, status) => Err(failed(
            status.map_or_else(
                |error| error.to_string(),
                |status| format!("failed: {status}"),
            ),
            "run it by hand as root to see why",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(problem: Option<&str>, has_iptables: bool) -> Cached {
        Cached {
            ruleset: Arc::new(Ruleset {
                problem: problem.map(str::to_owned),
                ..Ruleset::default()
            }),
            generation: Some(7),
            read_at: Instant::now(),
            has_iptables,
        }
    }

    #[test]
    fn a_read_that_failed_does_not_last_until_the_rules_change() {
        let (young, old) = (KEEP / 2, KEEP * 2);
        let (whole, failed) = (cached(None, false), cached(Some("nft failed"), false));
        assert!(whole.holds(Some(7), old) && failed.holds(Some(7), young));
        assert!(!failed.holds(Some(7), old));
        assert!(!whole.holds(Some(8), young), "the kernel told of a change");
        assert!(!cached(None, true).holds(Some(7), old));
        assert!(!whole.holds(None, old));
    }

    #[test]
    fn a_problem_stands_until_a_read_was_whole_and_is_told_during_one() {
        let cache = RulesetCache::default();
        assert_eq!(cache.standing_problem(), None);
        let _reading = lock(&cache.cached);
        cache.note(Some(&"nft failed".to_owned()));
        assert_eq!(cache.standing_problem().as_deref(), Some("nft failed"));
        cache.note(None);
        assert_eq!(cache.standing_problem(), None);
    }
}
