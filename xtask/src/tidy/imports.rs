//! Who may use what: dependencies of modules point one way.

use super::{
    Finding,
    source::{Token, tokens},
};

/// In files under `within`, but not under `except`, none of `banned`.
struct Rule {
    within: &'static [&'static str],
    except: &'static [&'static str],
    banned: &'static [Banned],
    why: &'static str,
}

/// What a rule looks for.
enum Banned {
    /// A path or macro that begins with this crate or, for a trailing `*`, with
    /// a crate of this prefix.
    Crate(&'static str),
    /// These words and signs in a row.
    Words(&'static [&'static str]),
}

use Banned::{Crate, Words};

const PURE: &[&str] = &[
    "shifter/src/model",
    "shifter/src/ring",
    "shifter/src/rollout",
    "shifter/src/judge",
];

const RULES: &[Rule] = &[
    Rule {
        within: PURE,
        except: &[],
        banned: &[
            Crate("aya*"),
            Crate("tokio*"),
            Crate("tonic*"),
            Crate("rtnetlink"),
            Crate("rusqlite"),
            Crate("rand*"),
            Crate("getrandom"),
            Crate("libc"),
        ],
        why: "model, ring, rollout and judge are pure: they run in a test without a kernel",
    },
    Rule {
        within: PURE,
        except: &[],
        banned: &[
            Words(&["Instant", ":", ":", "now"]),
            Words(&["SystemTime"]),
            Words(&["std", ":", ":", "fs"]),
            Words(&["std", ":", ":", "env"]),
            Words(&["std", ":", ":", "process"]),
            Words(&["RandomState"]),
        ],
        why: "model, ring, rollout and judge are pure: time and seeds are arguments",
    },
    Rule {
        within: PURE,
        except: &[],
        banned: &[
            Words(&["crate", ":", ":", "datapath"]),
            Words(&["crate", ":", ":", "control"]),
            Words(&["crate", ":", ":", "reconcile"]),
            Words(&["crate", ":", ":", "store"]),
            Words(&["crate", ":", ":", "telemetry"]),
            Words(&["crate", ":", ":", "cli"]),
        ],
        why: "model, ring, rollout and judge know no other part of the agent",
    },
    Rule {
        within: &["shifter/src/datapath"],
        except: &[],
        banned: &[
            Words(&["crate", ":", ":", "control"]),
            Words(&["crate", ":", ":", "reconcile"]),
            Words(&["crate", ":", ":", "store"]),
            Words(&["crate", ":", ":", "telemetry"]),
            Words(&["crate", ":", ":", "cli"]),
        ],
        why: "the datapath is used by reconcile and uses none of the agent's other parts",
    },
    Rule {
        within: &["shifter/src", "shifter-common"],
        except: &["shifter/src/datapath"],
        banned: &[Crate("aya")],
        why: "aya stays in shifter/src/datapath: an upgrade of it is small",
    },
    Rule {
        within: &["shifter/src", "shifter-common", "shifter-ebpf"],
        // proto is what prost and tonic generate, shared by the other two.
        except: &[
            "shifter/src/control",
            "shifter/src/cli",
            "shifter/src/proto",
        ],
        banned: &[Crate("tonic*")],
        why: "tonic stays in shifter/src/control, shifter/src/cli and shifter/src/proto",
    },
    Rule {
        within: &[""],
        except: &["shifter-ebpf"],
        banned: &[Crate("aya_ebpf*")],
        why: "aya-ebpf stays in shifter-ebpf: linked into a host program it brings its own memcpy",
    },
    Rule {
        within: &[""],
        except: &["shifter-ebpf/src/atomic"],
        banned: &[Words(&["asm", "!"])],
        why: "shifter-ebpf/src/atomic.rs is the only inline assembly",
    },
];

/// Finds uses that a rule bans; what only tests use is let be. `code` is the
/// text without comments.
pub fn check(path: &str, code: &str) -> Vec<Finding> {
    let mut tokens = tokens(code);
    remove_tests(&mut tokens);
    let mut findings = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.covers(path)) {
        for at in 0..tokens.len() {
            if let Some(what) = rule.banned.iter().find_map(|b| b.found(&tokens, at)) {
                let text = format!("{what} is used here: {}", rule.why);
                findings.push(Finding::new(path, tokens[at].line, text));
            }
        }
    }
    findings
}

/// Takes out every `#[cfg(test)] mod NAME { .. }`.
fn remove_tests(tokens: &mut Vec<Token<'_>>) {
    const START: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let is_start = |at: &[Token]| at.iter().map(|t| t.text).eq(START);
    while let Some(start) = tokens.windows(START.len()).position(is_start) {
        let mut depth = 0;
        let mut end = start + START.len();
        while let Some(token) = tokens.get(end) {
            end += 1;
            match token.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                ";" if depth == 0 => break,
                _ => continue,
            }
            if depth == 0 {
                break;
            }
        }
        tokens.drain(start..end);
    }
}

impl Rule {
    fn covers(&self, path: &str) -> bool {
        let lies_in = |places: &[&str]| places.iter().any(|place| is_within(path, place));
        lies_in(self.within) && !lies_in(self.except)
    }
}

/// Whether the path is the place, a file of its name, or below it.
fn is_within(path: &str, place: &str) -> bool {
    match path.strip_prefix(place) {
        Some(rest) => place.is_empty() || rest.starts_with('/') || rest.starts_with('.'),
        None => false,
    }
}

impl Banned {
    fn found(&self, tokens: &[Token], at: usize) -> Option<String> {
        let text = |n: usize| tokens.get(n).map_or("", |t| t.text);
        match self {
            Words(words) => words
                .iter()
                .enumerate()
                .all(|(n, word)| text(at + n) == *word)
                .then(|| words.concat()),
            Crate(name) => {
                let is_it = match name.strip_suffix('*') {
                    Some(prefix) => text(at).starts_with(prefix),
                    None => text(at) == *name,
                };
                // `use x;`, `use x as y;`, `x::y`, `use {x, y::z}`; not `self::x::y`, `a.x`.
                let leads = text(at + 1) == ":" && text(at + 2) == ":";
                let used = at > 0 && text(at - 1) == "use" || at > 1 && text(at - 2) == "extern";
                let follows = at > 2 && text(at - 1) == ":" && text(at - 2) == ":";
                // `::x` is the crate, `y::x` is not.
                let parent = if follows { text(at - 3) } else { "" };
                let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == '>';
                let rooted = parent == "use" || !parent.starts_with(is_path);
                (is_it && rooted && (leads || used)).then(|| text(at).to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn count(path: &str, text: &str) -> usize {
        check(path, &source::code(text)).len()
    }

    #[test]
    fn a_pure_module_that_uses_the_kernel_or_a_runtime_is_found() {
        for line in [
            "use aya::maps::Array;",
            "use tokio;",
            "let x = tonic::Status::ok();",
            "fn f() { rand::random::<u8>(); }",
            "use ::tokio::sync::Mutex;",
            "use crate::datapath::Datapath;",
        ] {
            assert!(count("shifter/src/model/weight.rs", line) > 0, "{line}");
            assert!(count("shifter/src/ring.rs", line) > 0, "{line}");
        }
    }

    #[test]
    fn a_pure_module_that_reads_a_clock_is_found() {
        for line in [
            "let now = std::time::Instant::now();",
            "let now = Instant::now();",
            "use std::time::SystemTime;",
        ] {
            assert_eq!(count("shifter/src/rollout/mod.rs", line), 1, "{line}");
        }
        assert_eq!(
            count("shifter/src/rollout/mod.rs", "fn step(now: Instant) {}"),
            0
        );
        assert_eq!(count("shifter/src/reconcile/mod.rs", "Instant::now()"), 0);
    }

    #[test]
    fn what_only_tests_use_is_let_be_and_what_follows_is_not() {
        let tests = "#[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}\n";
        assert_eq!(count("shifter/src/ring/mod.rs", tests), 0);
        let elsewhere = format!("#[cfg(test)]\nmod tests;\n{tests}fn g() {{ Instant::now(); }}");
        assert_eq!(count("shifter/src/ring/mod.rs", &elsewhere), 1);
    }

    #[test]
    fn words_that_only_look_like_a_crate_are_let_be() {
        for line in [
            "// use aya::maps;",
            "let s = \"tokio::spawn\";",
            "let randomness = 5;",
            "let x = self.tokio;",
            "use crate::model::rand::Thing;",
        ] {
            assert_eq!(count("shifter/src/model/weight.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn aya_and_tonic_have_one_place_each() {
        let aya = "use aya::Ebpf;";
        assert_eq!(count("shifter/src/datapath/kernel/load.rs", aya), 0);
        assert_eq!(count("shifter/src/reconcile/mod.rs", aya), 1);
        let tonic = "tonic::include_proto!(\"shifter.v1\");";
        assert_eq!(count("shifter/src/control/mod.rs", tonic), 0);
        assert_eq!(count("shifter/src/cli/client.rs", tonic), 0);
        assert_eq!(count("shifter/src/telemetry/mod.rs", tonic), 1);
    }

    #[test]
    fn aya_ebpf_and_assembly_stay_in_the_ebpf_crate() {
        let uses = "use aya_ebpf::macros::xdp;";
        assert_eq!(count("shifter-ebpf/src/main.rs", uses), 0);
        assert_eq!(count("shifter-common/src/lib.rs", uses), 1);
        let assembly = "core::arch::asm!(\"exit\");";
        assert_eq!(count("shifter-ebpf/src/atomic.rs", assembly), 0);
        assert_eq!(count("shifter-ebpf/src/maps.rs", assembly), 1);
    }

    #[test]
    fn the_datapath_does_not_reach_back() {
        let line = "use crate::store::Store;";
        assert_eq!(count("shifter/src/datapath/kernel.rs", line), 1);
        assert_eq!(count("shifter/src/reconcile/mod.rs", line), 0);
    }
}
