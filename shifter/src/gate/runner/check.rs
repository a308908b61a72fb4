//! Whether a program is one that root put there.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Why a program is not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("{what} of {path} failed: {error}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{file:?} is no name of a file: write one without '/'")]
    Name { file: String },
    #[error("{path} belongs to user {uid}: chown root {path}", path = path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("{path} may be written by others (mode {mode:o}): chmod go-w {path}", path = path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("exec_dir {path} leads to {real}: write that", path = path.display(), real = real.display())]
    Link { path: PathBuf, real: PathBuf },
    #[error("{path} is a link out of exec_dir, to {real}: put the program itself there", path = path.display(), real = real.display())]
    Out { path: PathBuf, real: PathBuf },
    #[error("{path} is no {wanted}", path = path.display())]
    Kind { path: PathBuf, wanted: &'static str },
    #[error("{path} is not executable: chmod a+rx {path}", path = path.display())]
    NotExecutable { path: PathBuf },
}

/// The real path of a program: root's, in a directory of root's, and so all above
/// it; nobody else may write any of them.
pub(super) fn program(dir: &Path, file: &str) -> Result<PathBuf, CheckError> {
    if file.is_empty() || file.contains('/') || file.contains('\0') || file.starts_with('.') {
        return Err(CheckError::Name { file: file.into() });
    }
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |error| CheckError::Io { what, path, error }
    };
    let real_dir = fs::canonicalize(dir).map_err(io("looking for exec_dir", dir))?;
    if real_dir != dir {
        return Err(CheckError::Link {
            path: dir.into(),
            real: real_dir,
        });
    }
    for above in dir.ancestors() {
        owned(above)?;
    }
    if !fs::metadata(dir)
        .map_err(io("reading the mode", dir))?
        .is_dir()
    {
        return Err(CheckError::Kind {
            path: dir.into(),
            wanted: "directory",
        });
    }
    let path = dir.join(file);
    let real = fs::canonicalize(&path).map_err(io("looking for the program", &path))?;
    if !real.starts_with(dir) {
        return Err(CheckError::Out { path, real });
    }
    for above in real.ancestors().take_while(|above| *above != dir) {
        owned(above)?;
    }
    let found = fs::metadata(&real).map_err(io("reading the mode", &real))?;
    if !found.is_file() {
        return Err(CheckError::Kind {
            path: real,
            wanted: "file",
        });
    }
    if found.mode() & 0o111 == 0 {
        return Err(CheckError::NotExecutable { path: real });
    }
    Ok(real)
}

fn owned(path: &Path) -> Result<(), CheckError> {
    let found = fs::symlink_metadata(path).map_err(|error| CheckError::Io {
        what: "reading the mode",
        path: path.to_owned(),
        error,
    })?;
    if found.uid() != 0 {
        return Err(CheckError::Owner {
            path: path.to_owned(),
            uid: found.uid(),
        });
    }
    if found.mode() & 0o022 != 0 {
        return Err(CheckError::Writable {
            path: path.to_owned(),
            mode: found.mode() & 0o7777,
        });
    }
    Ok(())
}
