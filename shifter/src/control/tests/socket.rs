//! The socket: who may use it and what it may replace.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
};

use crate::control::{
    Socket, SocketError,
    testbed::{Directory, Testbed},
};

#[test]
fn socket_is_for_its_owner_in_a_directory_that_is_made() {
    let directory = Directory::new();
    let path = directory.0.join("a/b/shifter.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o022,
        0
    );
    drop(socket);
    assert!(!path.exists(), "the path is left behind");
}

#[test]
fn a_path_that_is_no_socket_is_refused_and_left_alone() {
    let directory = Directory::new();
    let path = directory.0.join("precious");
    fs::write(&path, "data").unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert!(error.to_string().contains("[api] unix"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let directory = Directory::new();
    let path = directory.0.join("shifter.sock");
    drop(UnixListener::bind(&path).unwrap());
    let first = Socket::bind(&path).unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop(first);
    Socket::bind(&path).unwrap();
}

#[test]
fn a_socket_that_took_the_path_over_is_not_removed_by_its_predecessor() {
    let directory = Directory::new();
    let path = directory.0.join("shifter.sock");
    let first = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Socket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
}

#[test]
fn a_socket_that_was_taken_over_keeps_its_path_until_it_is_owned() {
    let directory = Directory::new();
    let path = directory.0.join("shifter.sock");
    let first = Socket::bind(&path).unwrap();
    let listener = || first.listener().try_clone().unwrap();
    assert!(Socket::adopt(listener(), &path, first.inode() + 1).is_none());
    drop(Socket::adopt(listener(), &path, first.inode()).unwrap());
    assert!(path.exists(), "whoever failed to take over removes nothing");
    let second = Socket::adopt(listener(), &path, first.inode()).unwrap();
    second.own();
    first.leave();
    drop(first.share().unwrap());
    drop(first);
    assert!(path.exists(), "whoever has left removes nothing");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn the_end_of_the_server_takes_its_socket_away() {
    let mut testbed = Testbed::new();
    let path = testbed.path();
    assert!(path.exists());
    testbed.stop().unwrap();
    assert!(!path.exists());
}
