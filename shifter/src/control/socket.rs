//! The unix socket of the API: made so that only its owner can reach it, and
//! never in the place of something else.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "{path} exists and is no socket, so it was left alone: move it away or set another path as [api] unix"
    )]
    NotASocket { path: PathBuf },
    #[error("another agent answers on {path}: end it first, or set another path as [api] unix")]
    InUse { path: PathBuf },
    #[error("{operation} {path} failed: {source}; check that its directory exists and is writable")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A socket that listens, mode 0600.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    place: Place,
}

/// Takes its socket away when dropped, unless another has taken the path.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens on `path`. A socket nobody answers on is replaced; the parent
    /// directory is made, mode 0755, where it is missing.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |operation| {
            move |source| SocketError::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("making the directory of"))?;
        }
        refuse_occupied(path)?;
        // Bound under another name and renamed: there is never a moment in
        // which the path names a socket that others may open.
        let mut hidden = path.as_os_str().to_owned();
        hidden.push(format!(".{}", std::process::id()));
        let hidden = PathBuf::from(hidden);
        let _ = fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden).map_err(failed("listening on"))?;
        let made = (|| {
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let inode = fs::symlink_metadata(&hidden)?.ino();
            fs::rename(&hidden, path)?;
            Ok(inode)
        })();
        let inode = made.map_err(|source| {
            let _ = fs::remove_file(&hidden);
            failed("setting up the socket")(source)
        })?;
        let path = path.to_owned();
        Ok(Self {
            listener,
            place: Place { path, inode },
        })
    }

    /// The listener for tokio, and the guard of its path.
    pub(super) fn into_listener(self) -> Result<(tokio::net::UnixListener, Place), SocketError> {
        let Self { listener, place } = self;
        match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => Ok((listener, place)),
            Err(source) => Err(SocketError::Io {
                operation: "listening on",
                path: place.path.clone(),
                source,
            }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.file_type().is_socket() && found.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn refuse_occupied(path: &Path) -> Result<(), SocketError> {
    let path_owned = || path.to_owned();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io {
            operation: "looking at",
            path: path_owned(),
            source,
        }),
        Ok(found) if !found.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path_owned() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse { path: path_owned() }),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // A full backlog (EAGAIN) is an agent that is alive.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(SocketError::InUse { path: path_owned() })
            }
            Err(source) => Err(SocketError::Io {
                operation: "trying the socket",
                path: path_owned(),
                source,
            }),
        },
    }
}
