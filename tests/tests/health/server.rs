//! Web servers that fall ill, and clients that say who answers.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use shifter_tests::{
    command::{Process, eventually},
    topology::{Family, Lab, Netns, Side},
};

/// An nginx that falls ill when told to.
pub struct Server<'lab> {
    pub ns: &'lab Netns,
    pub addr: SocketAddr,
    pub name: String,
    dir: PathBuf,
    process: Option<Process>,
}

impl<'lab> Server<'lab> {
    /// Not started yet.
    pub fn new(lab: &'lab Lab, side: Side, port: u16) -> Self {
        let name = format!("{}-{port}", side.name());
        let dir = lab.dir().join(format!("nginx-{name}"));
        fs::create_dir_all(&dir).unwrap();
        Self {
            ns: lab.server_ns(side),
            addr: Lab::at_port(lab.listen(side, Family::V4), port),
            name,
            dir,
            process: None,
        }
    }

    pub fn start(lab: &'lab Lab, side: Side, port: u16) -> Self {
        let mut server = Self::new(lab, side, port);
        server.run("");
        server
    }

    /// `listen`: what is added to the directive of that name, and after it.
    pub fn run(&mut self, listen: &str) {
        let path = |file: &str| self.dir.join(file).display().to_string();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {};", path(what)))
            .concat();
        fs::write(self.dir.join("slow.txt"), "well\n".repeat(2_000)).unwrap();
        let config = format!(
            "daemon off; master_process off; user root; pid {pid}; error_log {error};
             events {{ worker_connections 4096; }}
             http {{ {temp} access_log off; keepalive_requests 100000000;
               server {{ listen {addr}{listen};
                 location / {{ return 200 '{name}'; }}
                 location /healthz {{
                   if (-f {sick}) {{ return 500 'sick'; }}
                   if (-f {other}) {{ return 200 'something else'; }}
                   if ($http_x_probe != 'shifter') {{ return 403; }}
                   if ($host != 'shop.example') {{ return 421; }}
                   return 200 'all is well'; }}
                 location /slow {{ limit_rate 500; root {root}; rewrite ^ /slow.txt break; }} }} }}",
            pid = path("pid"),
            error = path("error"),
            addr = self.addr,
            name = self.name,
            sick = path("sick"),
            other = path("other"),
            root = self.dir.display(),
        );
        fs::write(self.dir.join("nginx.conf"), config).unwrap();
        let mut command = self.ns.command("nginx");
        command
            .arg("-p")
            .arg(&self.dir)
            .args(["-c", "nginx.conf", "-e"]);
        command.arg(self.dir.join("error"));
        let mut process = Process::start(command, self.dir.join("output")).unwrap();
        let (ns, addr) = (self.ns, self.addr);
        let up = eventually(Duration::from_secs(5), || {
            process.ended().is_none() && ns.run(|| TcpStream::connect(addr)).is_ok()
        });
        assert!(up, "nginx is not up: {}", process.output());
        self.process = Some(process);
    }

    /// Has `/healthz` answer as the file says: "sick", "other".
    pub fn mark(&self, file: &str, on: bool) {
        let path = self.dir.join(file);
        if on {
            fs::write(path, "").unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    pub fn signal(&self, signal: i32) {
        self.process.as_ref().unwrap().signal(signal);
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}

/// Names the server that answers a new connection.
pub fn ask(lab: &Lab) -> Result<String, String> {
    let vip = lab.vip(Family::V4);
    lab.client.run(|| {
        let connect = || -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&vip, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            exchange(&mut stream)
        };
        connect().map_err(|error| error.to_string())
    })
}

/// One request over a connection that stays.
pub fn exchange(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 1_024];
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return Ok(body.to_owned());
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => seen.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Who answers each of so many new connections; none may fail.
pub fn answers(lab: &Lab, count: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..count)
        .map(|_| ask(lab).expect("a request failed"))
        .collect();
    names.sort();
    names.dedup();
    names
}
