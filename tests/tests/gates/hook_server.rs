//! A small HTTP server beside the agent that answers each path as it is told to, and
//! keeps what it was sent.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use shifter_tests::topology::Lab;

/// Where it listens, inside the host's namespace.
pub const HOST: &str = "127.0.0.1:8181";

/// How a path is answered.
#[derive(Clone, Debug)]
pub enum Manner {
    /// With this status and body.
    Says(u16, String),
    /// Not before the server ends.
    Hangs,
}

#[derive(Default)]
struct Shared {
    manners: Mutex<HashMap<String, Manner>>,
    heard: Mutex<Vec<(String, Value)>>,
    stop: AtomicBool,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

pub struct HookServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl HookServer {
    /// Every path is answered with 200 until it is told otherwise.
    pub fn start(lab: &Lab) -> Self {
        let shared = Arc::<Shared>::default();
        let listener = lab.host.run(|| TcpListener::bind(HOST)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let serving = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || serve(&listener, &serving)));
        Self { shared, thread }
    }

    /// From now on a path is answered so.
    pub fn answer(&self, path: &str, manner: Manner) {
        let mut manners = self.shared.manners.lock().unwrap();
        manners.insert(path.to_owned(), manner);
    }

    /// From now on a path is answered with this status and nothing else.
    pub fn says(&self, path: &str, status: u16) {
        self.answer(path, Manner::Says(status, String::new()));
    }

    /// What a path was sent so far.
    pub fn heard(&self, path: &str) -> Vec<Value> {
        let heard = self.shared.heard.lock().unwrap();
        let of = heard.iter().filter(|(to, _)| to == path);
        of.map(|(_, body)| body.clone()).collect()
    }
}

impl Drop for HookServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut answering: Vec<JoinHandle<()>> = Vec::new();
    while !shared.is_over() {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = Arc::clone(shared);
                answering.push(thread::spawn(move || {
                    // Who asks may go before its answer.
                    let _ = answer(stream, &shared);
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("accept: {error}"),
        }
        answering.retain(|thread| !thread.is_finished());
    }
    for thread in answering {
        thread.join().unwrap();
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split_whitespace().nth(1).unwrap_or("/");
    let path = path.split('?').next().unwrap_or("/").to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let heard = serde_json::from_slice(&body).unwrap_or(Value::Null);
    shared.heard.lock().unwrap().push((path.clone(), heard));
    let manner = shared.manners.lock().unwrap().get(&path).cloned();
    let (status, text) = match manner {
        None => (200, String::new()),
        Some(Manner::Says(status, text)) => (status, text),
        Some(Manner::Hangs) => {
            while !shared.is_over() {
                thread::sleep(Duration::from_millis(5));
            }
            return Ok(());
        }
    };
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 {status} so\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}
