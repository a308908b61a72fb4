//! A server whose connections end as they are told to, and a client that says
//! what it saw of them.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use shifter_tests::{topology::Netns, traffic::poll::connect_within};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a server looks whether it shall end.
const LOOK: Duration = Duration::from_millis(2);

/// How a connection ended, as either side has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Asked, answered, closed.
    Served,
    /// Reset when it had asked.
    ResetBeforeData,
    /// Reset when it had been answered.
    ResetAfterData,
    Refused,
    TimedOut,
}

/// A server in a thread; ends when it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `ends` tells how each connection shall end, by its number.
    pub fn start(ns: &Netns, at: SocketAddr, ends: impl Fn(u64) -> End + Send + 'static) -> Self {
        let listener = ns.run(|| TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let end = ends(number);
                        number += 1;
                        // What goes wrong the client sees too, and says so.
                        let _ = serve(stream, end);
                    }
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, end: End) -> io::Result<()> {
    let mut asked = [0; 4];
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut asked)?;
    if end == End::ResetBeforeData {
        return reset(stream);
    }
    stream.write_all(b"pong")?;
    // That the answer has arrived: a reset that is ahead of the client's
    // acknowledgement could be anybody's.
    stream.read_exact(&mut asked)?;
    if end == End::ResetAfterData {
        return reset(stream);
    }
    Ok(())
}

/// Closes with a RST.
fn reset(stream: TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a valid option of an open socket.
    let failed = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One connection, and what became of it.
pub fn visit(to: SocketAddr, limit: Duration) -> End {
    let mut stream = match connect_within(to, None, limit) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return End::Refused,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return End::TimedOut,
        Err(error) => panic!("connecting to {to}: {error}"),
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 4];
    stream.write_all(b"ping").unwrap();
    match stream.read_exact(&mut answer) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return End::ResetBeforeData;
        }
        Err(error) => panic!("asking {to}: {error}"),
    }
    stream.write_all(b"more").unwrap();
    match stream.read(&mut answer) {
        Ok(0) => End::Served,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => End::ResetAfterData,
        other => panic!("ending with {to}: {other:?}"),
    }
}
