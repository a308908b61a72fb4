//! `cargo xtask tidy`: holds the lines of the code base that no compiler holds.
//!
//! Rules are functions from text to findings, so that each can be shown to
//! fail on a literal snippet; this module finds the files and reports.

mod imports;
mod maps;
mod module;
mod public;
mod safety;
mod source;
mod toolchain;
mod verdicts;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{Usage, run::root};

/// One line that breaks a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub path: String,
    /// Counted from 1; 0: the file as a whole.
    pub line: usize,
    pub text: String,
}

impl Finding {
    pub fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: text.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

/// A text file of the repository.
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    pub text: String,
}

/// Checks everything; `--fix` first rewrites the tables that are generated.
pub fn tidy(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {}
        [fix] if fix == "--fix" => fix_tables()?,
        [other, ..] => {
            return Err(Usage(format!("tidy takes only --fix, {other:?} was given")).into());
        }
    }
    let files = read_files()?;
    for file in &files {
        if let Some(warning) = module::warn_of_length(file) {
            eprintln!("warning: {warning}");
        }
    }
    let findings = check(&files);
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: {} files hold every rule", files.len());
            Ok(())
        }
        1 => bail!("1 line breaks a rule (CONTRIBUTING.md says why each is there)"),
        n => bail!("{n} lines break a rule (CONTRIBUTING.md says why each is there)"),
    }
}

fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        findings.extend(public::check(file));
        if file.path.ends_with(".rs") {
            let code = source::code(&file.text);
            findings.extend(module::check(file));
            findings.extend(imports::check(&file.path, &code));
            findings.extend(safety::check(&file.path, &file.text, &code));
        }
    }
    let mut text = |path: &str| match files.iter().find(|file| file.path == path) {
        Some(file) => file.text.as_str(),
        None => {
            findings.push(Finding::new(path, 0, "the file is missing"));
            ""
        }
    };
    let (maps, maps_page) = (text(maps::CODE), text(maps::DOC));
    let limits = maps::LIMITS.map(&mut text);
    let (verdicts, verdicts_page) = (text(verdicts::CODE), text(verdicts::DOC));
    let toolchain_page = text(toolchain::DOC);
    let (cargo, build_script) = (text(toolchain::CARGO), text(toolchain::BUILD_SCRIPT));
    findings.extend(maps::check(maps, maps_page, &limits));
    findings.extend(verdicts::check(verdicts, verdicts_page));
    findings.extend(toolchain::check(toolchain_page, cargo, build_script));
    findings
}

fn fix_tables() -> Result<()> {
    let root = root();
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).with_context(|| format!("reading {path} failed"))
    };
    let write = |path: &str, old: &str, new: &str| {
        if old == new {
            return Ok(());
        }
        println!("rewriting the table in {path}");
        fs::write(root.join(path), new).with_context(|| format!("writing {path} failed"))
    };
    let doc = read(toolchain::DOC)?;
    write(toolchain::DOC, &doc, &toolchain::fix(&doc)?)?;
    let doc = read(verdicts::DOC)?;
    write(
        verdicts::DOC,
        &doc,
        &verdicts::fix(&read(verdicts::CODE)?, &doc),
    )
}

/// Every text file that is not built or hidden.
fn read_files() -> Result<Vec<File>> {
    let root = root();
    let mut paths = Vec::new();
    walk(&root, &mut paths)?;
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let bytes =
            fs::read(&path).with_context(|| format!("reading {} failed", path.display()))?;
        // What is not UTF-8 is no text of ours.
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let relative = path.strip_prefix(&root).unwrap_or(&path);
        files.push(File {
            path: relative.to_string_lossy().into_owned(),
            text,
        });
    }
    Ok(files)
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("listing {} failed", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
            if !hidden && name != "target" {
                walk(&entry.path(), paths)?;
            }
        } else if kind.is_file() && name != ".git" {
            paths.push(entry.path());
        }
    }
    Ok(())
}
