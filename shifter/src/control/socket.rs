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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// A socket that listens, mode 0600. Its path goes with the last of its copies.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    place: Arc<Place>,
}

/// Takes its socket away when dropped, unless another has taken the path.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    inode: u64,
    /// The socket is another process's now.
    left: AtomicBool,
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
        Ok(Self::at(listener, path, inode))
    }

    fn at(listener: UnixListener, path: &Path, inode: u64) -> Self {
        let place = Place {
            path: path.to_owned(),
            inode,
            left: AtomicBool::new(false),
        };
        Self {
            listener,
            place: Arc::new(place),
        }
    }

    /// Shares what another process listens on at `path`, a socket of this
    /// inode; `None` where the path names something else by now. The path
    /// stays the other's until [`Socket::own`].
    pub fn adopt(listener: UnixListener, path: &Path, inode: u64) -> Option<Self> {
        let socket = names(path, inode).then(|| Self::at(listener, path, inode))?;
        socket.leave();
        Some(socket)
    }

    /// Another one on the same queue of connections.
    pub fn share(&self) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            operation: "sharing",
            path: self.place.path.clone(),
            source,
        };
        Ok(Self {
            listener: self.listener.try_clone().map_err(failed)?,
            place: Arc::clone(&self.place),
        })
    }

    /// The listener, to be given to another process.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Inode of the socket at its path.
    pub fn inode(&self) -> u64 {
        self.place.inode
    }

    /// From now on the path is this process's, and goes with its last copy.
    pub fn own(&self) {
        self.place.left.store(false, Ordering::Release);
    }

    /// Leaves the path to the process that has taken the socket over.
    pub fn leave(&self) {
        self.place.left.store(true, Ordering::Release);
    }

    /// The listener for tokio, and the guard of its path.
    pub fn into_listener(self) -> Result<(tokio::net::UnixListener, Arc<Place>), SocketError> {
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

/// Whether a path is a socket of this inode.
fn names(path: &Path, inode: u64) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.file_type().is_socket() && found.ino() == inode)
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Acquire) && names(&self.path, self.inode) {
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
