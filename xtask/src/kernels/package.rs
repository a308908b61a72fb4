//! A kernel out of Debian's packages: found, fetched and unpacked, once each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::list::Kernel;
use crate::run::{is_root, output, program, run};

const PREFIX: &str = "linux-image-";
/// The build for virtual machines: the smallest.
const SUFFIX: &str = "-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Package {
    /// As `uname -r` says it.
    pub release: String,
    directory: PathBuf,
}

impl Package {
    /// The newest of the series that apt offers, fetched into `directory` where
    /// it is not there yet.
    pub fn fetch(kernel: &Kernel, directory: &Path) -> Result<Self> {
        let release = match newest_offered(kernel) {
            Some(release) => release,
            None => {
                update(kernel)?;
                newest_offered(kernel).with_context(|| {
                    format!(
                        "apt offers no {PREFIX} package of {}: is Debian {}'s security archive in /etc/apt/sources.list?",
                        kernel.name,
                        crate::pins::DEBIAN
                    )
                })?
            }
        };
        let package = Self {
            directory: directory.join(&release),
            release,
        };
        if !package.directory.exists() {
            package.download(kernel)?;
            package.remove_older(kernel)?;
        }
        Ok(package)
    }

    /// The kernel itself.
    pub fn image(&self) -> PathBuf {
        self.directory
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Directory of its modules.
    pub fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }

    /// Removes what the series was before, which nobody will boot again.
    fn remove_older(&self, kernel: &Kernel) -> Result<()> {
        let places = self.directory.parent().map(fs::read_dir);
        for place in places.transpose()?.into_iter().flatten().flatten() {
            let is_older = numbers(&place.file_name().to_string_lossy()).starts_with(kernel.series)
                && place.path() != self.directory;
            if is_older {
                fs::remove_dir_all(place.path())
                    .with_context(|| format!("{} cannot be removed", place.path().display()))?;
            }
        }
        Ok(())
    }

    /// A directory of this name beside that of the release.
    fn beside(&self, what: &str) -> PathBuf {
        self.directory
            .with_file_name(format!("{}.{what}", self.release))
    }

    /// Fetches beside the place and moves there in the end: what is there is whole.
    fn download(&self, kernel: &Kernel) -> Result<()> {
        let partial = self.beside("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("{} cannot be removed", partial.display()))?;
        }
        fs::create_dir_all(&partial)
            .with_context(|| format!("{} cannot be made", partial.display()))?;
        let name = format!("{PREFIX}{}", self.release);
        println!("fetching {name}");
        let download = || {
            let mut command = program("apt-get");
            command
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download", &name])
                .current_dir(&partial);
            run(&mut command)
        };
        // The lists may name what the archive has replaced by now.
        download().or_else(|_| update(kernel).and_then(|()| download()))?;
        let file = fs::read_dir(&partial)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {name} left no package"))?;
        run(program("dpkg-deb").arg("-x").arg(&file).arg(&partial))?;
        fs::remove_file(&file)?;
        // Packages come without the table of dependencies.
        run(program("depmod").arg("-b").arg(&partial).arg(&self.release))?;
        fs::rename(&partial, &self.directory)
            .with_context(|| format!("{} cannot be moved", partial.display()))
    }
}

fn update(kernel: &Kernel) -> Result<()> {
    if !is_root() {
        bail!(
            "apt's lists do not give a package of {}: run as root `apt-get update`",
            kernel.name
        );
    }
    run(program("apt-get").args(["-qq", "update"]))
}

fn newest_offered(kernel: &Kernel) -> Option<String> {
    let names = output(program("apt-cache").args(["pkgnames", PREFIX]))?;
    newest(&names, kernel.series)
}

/// The newest release of a series among names of packages.
fn newest(names: &str, series: &[u32]) -> Option<String> {
    names
        .lines()
        .filter_map(|name| {
            let release = name.trim().strip_prefix(PREFIX)?;
            let version = numbers(release.strip_suffix(SUFFIX)?);
            // A series alone is a package that names another.
            (version.starts_with(series) && version.len() > series.len())
                .then(|| (version, release.to_owned()))
        })
        .max()
        .map(|(_, release)| release)
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-6.1.0-9-cloud-amd64\n\
        linux-image-6.1.0-56-cloud-amd64\n\
        linux-image-6.1.0-57-cloud-amd64-unsigned\n\
        linux-image-6.1.0-57-amd64\n\
        linux-image-6.12-cloud-amd64\n\
        linux-image-6.12.99+deb12-cloud-amd64\n\
        linux-image-6.12.117+deb12-cloud-amd64\n\
        linux-image-cloud-amd64\n";

    #[test]
    fn the_newest_of_a_series_is_chosen_by_its_numbers() {
        let newest = |series: &[u32]| newest(NAMES, series);
        assert_eq!(newest(&[6, 1]).as_deref(), Some("6.1.0-56-cloud-amd64"));
        let other = newest(&[6, 12]);
        assert_eq!(other.as_deref(), Some("6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn a_series_that_is_not_offered_has_no_newest() {
        assert_eq!(newest(NAMES, &[6, 6]), None);
        assert_eq!(newest("", &[6, 1]), None);
    }
}
