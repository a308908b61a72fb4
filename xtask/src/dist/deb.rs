//! The Debian package: a tree of files, made into an archive by dpkg-deb.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::run::{program, root, run};

/// The one file that an operator edits.
pub const CONFFILE: &str = "etc/shifter/shifter.toml";
/// Scripts of the package's life, in packaging/debian.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Completions: shell, and where its files are.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/shifter"),
    ("zsh", "usr/share/zsh/vendor-completions/_shifter"),
    ("fish", "usr/share/fish/vendor_completions.d/shifter.fish"),
];
const MAN: &str = "usr/share/man/man1";
const DOC: &str = "usr/share/doc/shifter";

/// What a package is made of.
#[derive(Clone)]
pub struct Recipe {
    binary: PathBuf,
    pub version: String,
    /// Seconds since 1970: the date of every file.
    date: u64,
    /// Lines added to the default configuration.
    pub more_settings: String,
}

impl Recipe {
    pub fn new(binary: &Path, version: &str, date: u64) -> Self {
        Self {
            binary: binary.to_owned(),
            version: version.to_owned(),
            date,
            more_settings: String::new(),
        }
    }

    /// Makes `shifter_VERSION_amd64.deb` in a directory.
    pub fn build(&self, directory: &Path) -> Result<PathBuf> {
        let stage = Stage::new(directory.join("stage"))?;
        self.fill(&stage)?;
        let package = directory.join(format!("shifter_{}_amd64.deb", self.version));
        let mut command = program("dpkg-deb");
        command
            // Threads would make the compressed bytes depend on their number.
            .args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
            .args([&stage.root, &package])
            .env("SOURCE_DATE_EPOCH", self.date.to_string())
            .stdout(std::process::Stdio::null());
        run(&mut command)?;
        Ok(package)
    }

    fn fill(&self, stage: &Stage) -> Result<()> {
        let packaging = root().join("packaging");
        stage.copy(&self.binary, "usr/bin/shifter", 0o755)?;
        let unit = "usr/lib/systemd/system/shifter.service";
        stage.copy(&packaging.join("shifter.service"), unit, 0o644)?;
        for name in ["shifter-runner.service", "shifter-runner.socket"] {
            let to = format!("usr/lib/systemd/system/{name}");
            stage.copy(&packaging.join(name), &to, 0o644)?;
        }
        let settings = read(&packaging.join("shifter.toml"))? + &self.more_settings;
        // A seed may be written in there, which nobody else shall see.
        stage.write(CONFFILE, settings.as_bytes(), 0o640)?;
        self.pages(stage)?;
        for (shell, path) in COMPLETIONS {
            let script = said(self.shifter().args(["completion", shell]))?;
            stage.write(path, &script, 0o644)?;
        }
        let copyright = packaging.join("debian/copyright");
        stage.copy(&copyright, &format!("{DOC}/copyright"), 0o644)?;
        let dashboard = format!("{DOC}/examples/grafana.json");
        stage.copy(&packaging.join("grafana/shifter.json"), &dashboard, 0o644)?;
        stage.write(
            &format!("{DOC}/changelog"),
            self.changelog()?.as_bytes(),
            0o644,
        )?;
        stage.gzip(&format!("{DOC}/changelog"))?;
        self.control(stage, &packaging.join("debian"))
    }

    fn shifter(&self) -> Command {
        program(&self.binary.to_string_lossy())
    }

    /// A manual page for each verb.
    fn pages(&self, stage: &Stage) -> Result<()> {
        let directory = stage.path(MAN)?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        run(self.shifter().args(["man", "--dir"]).arg(&directory))?;
        for page in names(&directory)? {
            stage.mode(&directory.join(&page), 0o644)?;
            stage.gzip(&format!("{MAN}/{page}"))?;
        }
        Ok(())
    }

    /// One entry: what is new is told by the repository.
    fn changelog(&self) -> Result<String> {
        let date = said(program("date").args(["-u", "-R", "-d", &format!("@{}", self.date)]))?;
        Ok(format!(
            "shifter ({}) unstable; urgency=medium\n\n  * Release {}.\n\n -- The Shifter developers <shifter@localhost>  {}\n",
            self.version,
            self.version,
            String::from_utf8_lossy(&date).trim()
        ))
    }

    fn control(&self, stage: &Stage, packaging: &Path) -> Result<()> {
        let control = read(&packaging.join("control"))?
            .replace("@VERSION@", &self.version)
            .replace("@SIZE@", &stage.kibibytes()?.to_string());
        let sums = said(Command::new("sh").current_dir(&stage.root).args([
            "-c",
            "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum",
        ]))?;
        stage.write("DEBIAN/control", control.as_bytes(), 0o644)?;
        stage.write("DEBIAN/md5sums", &sums, 0o644)?;
        let conffiles = format!("/{CONFFILE}\n");
        stage.write("DEBIAN/conffiles", conffiles.as_bytes(), 0o644)?;
        for script in SCRIPTS {
            stage.copy(&packaging.join(script), &format!("DEBIAN/{script}"), 0o755)?;
        }
        Ok(())
    }
}

/// The tree that becomes a package.
struct Stage {
    root: PathBuf,
}

impl Stage {
    fn new(root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("emptying {}", root.display()))?;
        }
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let stage = Self { root };
        stage.mode(&stage.root, 0o755)?;
        Ok(stage)
    }

    /// A path in the tree, its directories made, whatever the umask says.
    fn path(&self, path: &str) -> Result<PathBuf> {
        let mut directory = self.root.clone();
        let (parents, name) = path.rsplit_once('/').context("a path in a directory")?;
        for part in parents.split('/') {
            directory.push(part);
            if !directory.exists() {
                fs::create_dir(&directory)
                    .with_context(|| format!("making {}", directory.display()))?;
                self.mode(&directory, 0o755)?;
            }
        }
        Ok(directory.join(name))
    }

    fn mode(&self, path: &Path, mode: u32) -> Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))
    }

    fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.path(path)?;
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        self.mode(&path, mode)
    }

    fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.write(path, &bytes, mode)
    }

    /// Without name and date inside, so that the same text gives the same bytes.
    fn gzip(&self, path: &str) -> Result<()> {
        run(program("gzip").args(["-9n"]).arg(self.root.join(path)))
    }

    /// As Debian counts Installed-Size: files rounded up, directories as one.
    fn kibibytes(&self) -> Result<u64> {
        fn of(directory: &Path) -> std::io::Result<u64> {
            let mut sum = 1;
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let found = entry.metadata()?;
                sum += match found.is_dir() {
                    true => of(&entry.path())?,
                    false => found.len().div_ceil(1024),
                };
            }
            Ok(sum)
        }
        of(&self.root).with_context(|| format!("counting {}", self.root.display()))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What a program writes; anything but success is an error.
fn said(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
