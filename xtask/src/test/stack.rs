//! The stack that the eBPF programs need, computed from the object.
//!
//! A program and the functions it calls share 512 bytes. Linux 6.1 rounds every
//! frame up to 32 bytes before it adds them up along the nesting, so a program
//! that a newer kernel takes may be refused there
//! (`check_max_stack_depth` in kernel/bpf/verifier.c).

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};

use super::elf::{Function, Object};
use crate::run::cargo;

/// MAX_BPF_STACK.
const LIMIT: u32 = 512;
/// What 6.1 rounds a frame up to.
const ROUND: u32 = 32;
/// MAX_CALL_FRAMES.
const FRAMES: usize = 8;

/// Computes it for the object that the last build made, and refuses too much.
pub fn check() -> Result<()> {
    let path = object()?;
    let bytes = fs::read(&path).with_context(|| format!("reading {} failed", path.display()))?;
    let object = Object::parse(&bytes)
        .with_context(|| format!("{} is no eBPF object that can be read", path.display()))?;
    let mut entries = 0;
    for (index, function) in object.functions.iter().enumerate() {
        if !function.is_entry {
            continue;
        }
        entries += 1;
        let deepest = deepest(&object.functions, index, &mut BTreeMap::new());
        println!(
            "{}: {} of {LIMIT} bytes of stack: {}",
            function.name,
            deepest.bytes,
            frames(&object.functions, &deepest).join(" > ")
        );
        if deepest.bytes > LIMIT || deepest.path.len() > FRAMES {
            bail!("{}", refusal(&object.functions, function, &deepest));
        }
    }
    match entries {
        0 => bail!("{} holds no program", path.display()),
        _ => Ok(()),
    }
}

/// The nesting, frame by frame.
fn frames(functions: &[Function], deepest: &Deepest) -> Vec<String> {
    let path = deepest.path.iter().map(|index| &functions[*index]);
    path.map(|function| format!("{} ({} bytes)", function.name, function.stack))
        .collect()
}

fn refusal(functions: &[Function], entry: &Function, deepest: &Deepest) -> String {
    format!(
        "Linux 6.1 would refuse {}: {} bytes of stack over {} frames, and it takes {LIMIT} over {FRAMES}, each frame rounded up to {ROUND}: {}. Move what is large into the scratch map, or inline a frame",
        entry.name,
        deepest.bytes,
        deepest.path.len(),
        frames(functions, deepest).join(" > ")
    )
}

/// The nesting that needs most.
#[derive(Clone, Debug, Default)]
struct Deepest {
    bytes: u32,
    path: Vec<usize>,
}

fn deepest(functions: &[Function], at: usize, known: &mut BTreeMap<usize, Deepest>) -> Deepest {
    if let Some(known) = known.get(&at) {
        return known.clone();
    }
    // The verifier refuses recursion: a function under way counts as nothing.
    known.insert(at, Deepest::default());
    let below = functions[at]
        .calls
        .iter()
        .map(|callee| deepest(functions, *callee, known))
        .max_by_key(|deepest| deepest.bytes)
        .unwrap_or_default();
    let own = functions[at].stack.max(1).next_multiple_of(ROUND);
    let mut path = vec![at];
    path.extend(below.path);
    let found = Deepest {
        bytes: own + below.bytes,
        path,
    };
    known.insert(at, found.clone());
    found
}

/// Where the build script of `shifter` left the object.
fn object() -> Result<PathBuf> {
    let mut command = cargo(&["check", "--package", "shifter", "--message-format=json"]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let directory = text
        .lines()
        .filter(|line| line.contains("\"build-script-executed\""))
        .filter(|line| line.contains("/shifter#") || line.contains("\"shifter "))
        .find_map(|line| line.split_once("\"out_dir\":\"")?.1.split('"').next())
        .context("cargo does not say where the build script of shifter leaves the eBPF object")?;
    Ok(PathBuf::from(directory).join("shifter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, stack: u32, calls: &[usize]) -> Function {
        Function {
            name: name.to_owned(),
            is_entry: calls.contains(&1),
            stack,
            calls: calls.to_vec(),
        }
    }

    #[test]
    fn frames_are_rounded_up_and_added_along_the_deepest_nesting() {
        let all = [
            function("entry", 200, &[1, 2]),
            function("small", 8, &[3]),
            function("large", 97, &[]),
            function("leaf", 0, &[]),
        ];
        let found = deepest(&all, 0, &mut BTreeMap::new());
        assert_eq!(found.bytes, 224 + 128, "not 224 + 32 + 32");
        assert_eq!(found.path, [0, 2]);
    }

    #[test]
    fn the_refusal_names_every_frame() {
        let all = [function("entry", 400, &[1]), function("deep", 120, &[])];
        let found = deepest(&all, 0, &mut BTreeMap::new());
        assert_eq!(found.bytes, 544);
        let said = refusal(&all, &all[0], &found);
        assert!(
            said.contains("entry (400 bytes) > deep (120 bytes)"),
            "{said}"
        );
    }
}
