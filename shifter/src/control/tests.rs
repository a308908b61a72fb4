//! Tests of the server over a real unix socket.
