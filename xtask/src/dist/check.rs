//! The package's life in a Debian root of its own: installed, upgraded, removed,
//! purged. What is there after each step, and that nothing is in the end.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::deb::{CONFFILE, Recipe};
use crate::{
    pins,
    run::{program, run},
};

/// What the package holds, and its modes.
const FILES: [(&str, u32); 12] = [
    ("usr/bin/shifter", 0o755),
    ("usr/lib/systemd/system/shifter.service", 0o644),
    ("usr/lib/systemd/system/shifter-runner.service", 0o644),
    ("usr/lib/systemd/system/shifter-runner.socket", 0o644),
    (CONFFILE, 0o640),
    ("usr/share/man/man1/shifter.1.gz", 0o644),
    ("usr/share/man/man1/shifter-prepare.1.gz", 0o644),
    ("usr/share/bash-completion/completions/shifter", 0o644),
    ("usr/share/zsh/vendor-completions/_shifter", 0o644),
    ("usr/share/fish/vendor_completions.d/shifter.fish", 0o644),
    ("usr/share/doc/shifter/copyright", 0o644),
    ("usr/share/doc/shifter/changelog.gz", 0o644),
];
/// What `systemctl enable` makes of its units.
const ENABLED: [&str; 2] = [
    "etc/systemd/system/multi-user.target.wants/shifter.service",
    "etc/systemd/system/sockets.target.wants/shifter-runner.socket",
];
/// Where dpkg keeps its books, and where this check keeps its own.
const BOOKS: [&str; 4] = ["var/lib/dpkg", "var/log", "var/cache", "tmp"];
const CALLS: &str = "tmp/systemctl-calls";
const PINS: &str = "sys/fs/bpf/shifter";
const STATE: &str = "var/lib/shifter";
const MINE: &str = "# a line of the operator's own\n";

/// Goes through the package's life. `directory` keeps the root for the next time.
pub fn check(directory: &Path, recipe: &Recipe, package: &Path) -> Result<()> {
    reproduces(directory, recipe, package)?;
    let mut next = recipe.clone();
    next.version += "+next";
    next.more_settings = "\n# A default of a later version.\n".to_owned();
    // Apart: it is nothing to install.
    let upgrade = next.build(&directory.join("next"))?;
    let root = Root::copy(directory)?;
    let before = root.files()?;
    installed(&root, package, recipe).context("after install")?;
    upgraded(&root, &upgrade, &next).context("after upgrade")?;
    removed(&root).context("after remove")?;
    let said = root.dpkg(&["--purge", "shifter"])?;
    ensure!(!said.to_lowercase().contains("warning"), "purge: {said}");
    ensure!(
        root.has(PINS),
        "purge took the pins, which are the datapath's"
    );
    root.remove("sys/fs")?;
    let left: Vec<_> = root.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "purge leaves {left:?}");
    // Nothing attached: nothing to say of it.
    root.dpkg(&["--install", "/tmp/shifter.deb"])?;
    let said = root.dpkg(&["--purge", "shifter"])?;
    ensure!(
        !said.contains("datapath"),
        "a purge without pins says {said}"
    );
    root.end()?;
    println!("installed, upgraded, removed and purged: nothing is left, the same bytes twice");
    Ok(())
}

/// The same files make the same package.
fn reproduces(directory: &Path, recipe: &Recipe, package: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let first = read(package)?;
    // Dates of files differ then, and shall not be seen.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    ensure!(
        read(&recipe.build(directory)?)? == first,
        "{} differs from one build to the next",
        package.display()
    );
    Ok(())
}

fn installed(root: &Root, package: &Path, recipe: &Recipe) -> Result<()> {
    root.take_in(package)?;
    let said = root.dpkg(&["--install", "/tmp/shifter.deb"])?;
    ensure!(
        said.contains("enable --now"),
        "what to do next is not said: {said}"
    );
    for (path, mode) in FILES {
        let found = fs::metadata(root.path(path)).with_context(|| format!("/{path}"))?;
        let is = found.permissions().mode() & 0o7777;
        ensure!(is == mode, "/{path} has mode {is:o}, not {mode:o}");
    }
    ensure!(
        !root.has(STATE),
        "the package makes /{STATE}, which is the unit's"
    );
    for enabled in ENABLED {
        ensure!(
            !root.has(enabled),
            "/{enabled} is there before anybody asked for it"
        );
    }
    for unit in ["shifter.service", "shifter-runner.service"] {
        let text = fs::read_to_string(root.path(&format!("usr/lib/systemd/system/{unit}")))?;
        ensure!(
            text.contains("\nExecStart=/usr/bin/shifter "),
            "{unit} starts something else than what is installed"
        );
    }
    let says = root.run(&["/usr/bin/shifter", "--version"])?;
    let plain = recipe.version.split('+').next().unwrap_or_default();
    ensure!(
        says.trim() == format!("shifter {plain}"),
        "it says {says:?}"
    );
    root.run(&["gzip", "-t", "/usr/share/man/man1/shifter.1.gz"])?;
    let altered = root.run(&["dpkg", "--verify", "shifter"])?;
    ensure!(altered.trim().is_empty(), "dpkg --verify: {altered}");
    Ok(())
}

/// The agent that runs is started anew, and what the operator wrote stays.
fn upgraded(root: &Root, package: &Path, recipe: &Recipe) -> Result<()> {
    root.pretend_systemd()?;
    let settings = root.path(CONFFILE);
    let mine = fs::read_to_string(&settings)? + MINE;
    fs::write(&settings, &mine)?;
    root.write(&format!("{STATE}/shifter.db"), "state")?;
    root.write(&format!("{PINS}/links/3-xdp"), "a pin")?;
    root.take_in(package)?;
    root.dpkg(&[
        "--force-confdef",
        "--force-confold",
        "--install",
        "/tmp/shifter.deb",
    ])?;
    ensure!(
        fs::read_to_string(&settings)? == mine,
        "the operator's settings are gone"
    );
    let offered = fs::read_to_string(root.path(&format!("{CONFFILE}.dpkg-dist")))?;
    ensure!(
        offered.contains("later version"),
        "the new default is not beside them"
    );
    let calls = root.calls()?;
    ensure!(
        calls
            == [
                "daemon-reload",
                "try-restart shifter.service",
                "try-restart shifter-runner.service"
            ],
        "systemctl was called with {calls:?}"
    );
    ensure!(
        root.has(STATE) && root.has(PINS),
        "an upgrade took state or pins"
    );
    let version = root.run(&["dpkg-query", "-f", "${Version}", "-W", "shifter"])?;
    ensure!(version == recipe.version, "it is {version}");
    Ok(())
}

/// The agent ends, the datapath goes on, and that is said.
fn removed(root: &Root) -> Result<()> {
    let said = root.dpkg(&["--remove", "shifter"])?;
    ensure!(
        said.contains("the datapath keeps working; `shifter detach` takes it off"),
        "nothing is said of the datapath: {said}"
    );
    let calls = root.calls()?;
    ensure!(
        calls
            == [
                "stop shifter.service",
                "stop shifter-runner.socket shifter-runner.service",
                "daemon-reload"
            ],
        "systemctl was called with {calls:?}"
    );
    for (path, _) in FILES {
        ensure!(
            root.has(path) == (path == CONFFILE),
            "/{path} is there or gone"
        );
    }
    ensure!(
        root.has(STATE) && root.has(PINS),
        "a remove took state or pins"
    );
    // Enabled by the operator: the purge takes that too.
    ENABLED
        .iter()
        .try_for_each(|path| root.write(path, "enabled"))
}

/// A Debian root that is this check's alone.
struct Root(PathBuf);

impl Root {
    /// A fresh copy of a root that debootstrap made, now or earlier.
    fn copy(directory: &Path) -> Result<Self> {
        let base = directory.join(format!("debian-{}", pins::DEBIAN_NAME));
        if !base.join("usr/bin/dpkg").exists() {
            let part = directory.join("debian.part");
            if part.exists() {
                fs::remove_dir_all(&part)?;
            }
            println!("making a Debian root in {} (once)", base.display());
            run(program("debootstrap")
                .args(["--variant=minbase", pins::DEBIAN_NAME])
                .arg(&part))?;
            fs::rename(&part, &base)?;
        }
        let copy = directory.join("root");
        if copy.exists() {
            fs::remove_dir_all(&copy).with_context(|| format!("emptying {}", copy.display()))?;
        }
        run(program("cp").arg("-a").args([&base, &copy]))?;
        Ok(Self(copy))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        let directory = path.parent().context("a path in a directory")?;
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn remove(&self, path: &str) -> Result<()> {
        fs::remove_dir_all(self.path(path)).with_context(|| format!("removing /{path}"))
    }

    fn take_in(&self, package: &Path) -> Result<()> {
        let to = self.path("tmp/shifter.deb");
        fs::copy(package, &to).with_context(|| format!("writing {}", to.display()))?;
        Ok(())
    }

    /// A system that systemd runs, whose systemctl notes what it is asked.
    fn pretend_systemd(&self) -> Result<()> {
        fs::create_dir_all(self.path("run/systemd/system"))?;
        let script = format!("#!/bin/sh\necho \"$@\" >> /{CALLS}\n");
        self.write("tmp/bin/systemctl", &script)?;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path("tmp/bin/systemctl"), mode)?;
        Ok(())
    }

    /// What systemctl was asked since the last time.
    fn calls(&self) -> Result<Vec<String>> {
        let path = self.path(CALLS);
        let text = fs::read_to_string(&path).unwrap_or_default();
        if !text.is_empty() {
            fs::remove_file(&path)?;
        }
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn dpkg(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["dpkg"];
        all.extend(arguments);
        self.run(&all)
    }

    /// Runs a program inside; what it says, on both ways.
    fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = program("chroot");
        command
            .arg(&self.0)
            .args(words)
            .env("PATH", "/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        let output = command
            .output()
            .with_context(|| format!("running {words:?}"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            bail!("{} ended with {}: {said}", words.join(" "), output.status);
        }
        Ok(said)
    }

    /// Every path, but for the books.
    fn files(&self) -> Result<BTreeSet<String>> {
        fn walk(root: &Path, at: &Path, found: &mut BTreeSet<String>) -> std::io::Result<()> {
            for entry in fs::read_dir(at)? {
                let entry = entry?;
                let path = entry.path();
                let shown = path.strip_prefix(root).unwrap_or(&path);
                if BOOKS.iter().any(|book| shown == Path::new(book)) {
                    continue;
                }
                found.insert(shown.display().to_string());
                if entry.file_type()?.is_dir() {
                    walk(root, &path, found)?;
                }
            }
            Ok(())
        }
        let mut found = BTreeSet::new();
        walk(&self.0, &self.0, &mut found).context("listing the root")?;
        // Made by this check.
        found.retain(|path| !path.starts_with("run/systemd"));
        Ok(found)
    }

    fn end(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("removing {}", self.0.display()))
    }
}
