//! A running `tidegate`, ended when dropped.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A directory of its own, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file as control planes do: beside its place, then moved into it.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        let beside = self.0.join(format!(".{name}.new"));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Gateway {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    _directory: Directory,
}

impl Gateway {
    /// Starts with a bootstrap and waits until it listens.
    pub fn start(bootstrap: &str) -> Self {
        Self::start_with(bootstrap, &[])
    }

    pub fn start_with(bootstrap: &str, flags: &[&str]) -> Self {
        let mut gateway = Self::spawn(bootstrap, flags);
        gateway.wait_for("listening");
        gateway
    }

    /// Starts without waiting for anything.
    pub fn spawn(bootstrap: &str, flags: &[&str]) -> Self {
        let directory = Directory::new();
        let path = directory.put("bootstrap.yaml", bootstrap);
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .arg("-c")
            .arg(&path)
            .args(["--concurrency", "1"])
            .args(flags)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                if line.is_err() || sender.send(line.unwrap()).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new(), _directory: directory }
    }

    /// Waits until a line of its log contains `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("no line with {text:?}; it said:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Waits until a line of its log contains `text`; all lines since the last wait, that one included.
    pub fn lines_until(&mut self, text: &str) -> Vec<String> {
        let before = self.seen.len();
        let last = self.wait_for(text);
        let mut lines = self.seen.split_off(before);
        lines.push(last);
        lines
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs until `check` holds.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection with timeouts, so that no test hangs.
pub fn connect(port: u16) -> TcpStream {
    connect_to(SocketAddr::from(([127, 0, 0, 1], port)))
}

pub fn connect_to(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
