//! The collection of attacks beside the project, sent to the binary: each has the outcome that its manifest asks for. What is
//! here is judged from outside, by what the client is told and what the upstream gets; skipped loudly where it is absent.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::support::frames::{GOAWAY, HEADERS, Peer, RST_STREAM};
use crate::support::gateway::{connect, free_port};
use crate::support::upstream::Seen;
use crate::support::{Gateway, Upstream, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: /admin }, direct_response: { status: 403 } }, { match: { prefix: / }, route: { cluster: up } }]";
/// As an edge is configured.
const MANAGER: &str = "use_remote_address: true
          merge_slashes: true
          common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }";
/// How long nothing must come before a connection that stays open is taken for silent.
const SILENCE: Duration = Duration::from_millis(700);

/// Attacks that come to nothing in another way than the manifest asks for.
const OTHERWISE: &[(&str, &str)] = &[
    // The `h2` crate drops pseudo-header fields of trailers: nothing of them goes on.
    ("223-h2-trailer-pseudo.h2", "strip; must not leak: admin"),
];

fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("TIDEGATE_SHARED").map_or(beside, PathBuf::from);
    Some(shared.join("attacks")).filter(|folder| folder.is_dir())
}

/// What came of one attack.
#[derive(Debug, Default)]
struct Outcome {
    /// Of the responses, in order.
    statuses: Vec<u16>,
    /// A stream error, or the end of the connection.
    refused: bool,
    closed: bool,
    seen: Vec<Seen>,
}

impl Outcome {
    fn is_refusal(&self) -> bool {
        let told = self.statuses.first().is_some_and(|status| (400..=501).contains(status));
        self.seen.is_empty() && (told || self.refused || self.closed)
    }

    fn is_one(&self) -> bool {
        self.seen.len() == 1 && self.statuses == [200]
    }

    fn reached_admin(&self) -> bool {
        self.seen.iter().any(|seen| seen.line().split(' ').nth(1).is_none_or(|path| plain(path).starts_with("/admin")))
    }
}

/// What the most lenient of upstreams would make of a path: decoded again and again, parameters and dot segments gone.
fn plain(path: &str) -> String {
    let mut path = path.split(['?', '#']).next().unwrap_or_default().to_owned();
    for _ in 0..3 {
        for (escaped, byte) in [
            ("%25", "%"),
            ("%2e", "."),
            ("%2E", "."),
            ("%2f", "/"),
            ("%2F", "/"),
            ("%5c", "/"),
            ("%5C", "/"),
            ("%00", ""),
        ] {
            path = path.replace(escaped, byte);
        }
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default()) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn is_expected(expectation: &str, outcome: &Outcome) -> bool {
    let (refused, one) = (outcome.is_refusal(), outcome.is_one());
    match expectation {
        "one" => one,
        "reject" => refused,
        "reject-or-close" => refused || outcome.closed,
        // A refusal leaks nothing either.
        "either" | "strip" => refused || one,
        "incomplete" => outcome.seen.is_empty(),
        "admin" | "noadmin" => !outcome.reached_admin(),
        "n<=2" => {
            outcome.seen.len() <= 2
                && outcome.seen.len() == outcome.statuses.iter().filter(|status| **status == 200).count()
        }
        many => outcome.seen.len() == many.strip_prefix("n:").expect("an expectation").parse::<usize>().unwrap(),
    }
}

/// HTTP/1: all bytes at once, then whatever comes until the end or silence.
fn send_raw(port: u16, bytes: &[u8], cut: bool) -> Outcome {
    let mut stream = connect(port);
    let mut outcome = Outcome::default();
    // It may refuse before all of it has been written.
    let _ = stream.write_all(bytes);
    if cut {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    let mut patience = !cut;
    outcome.closed = loop {
        match stream.read(&mut piece) {
            Ok(0) => break true,
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break true,
            // Not a word yet: a busy machine may be to blame.
            Err(_) if all.is_empty() && std::mem::take(&mut patience) => {
                stream.set_read_timeout(Some(10 * SILENCE)).unwrap();
            }
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&all);
    let starts = text.split("HTTP/1.").skip(1).filter_map(|rest| rest.get(2..5)?.parse().ok());
    outcome.statuses = starts.filter(|status: &u16| *status >= 200).collect();
    outcome
}

/// HTTP/2: frames until the stream or the connection ends, or silence.
fn send_h2(port: u16, bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut peer = Peer::raw(connect(port));
    let _ = peer.stream.write_all(bytes);
    peer.stream.set_read_timeout(Some(SILENCE)).unwrap();
    while let Some(frame) = peer.try_next() {
        match frame.kind {
            // `:status: 200` has an index of its own.
            HEADERS if frame.payload.first() == Some(&0x88) => outcome.statuses.push(200),
            HEADERS => outcome.statuses.push(400),
            RST_STREAM | GOAWAY => outcome.refused = true,
            _ => {}
        }
    }
    outcome
}

fn judge(gateway: u16, upstream: &Upstream, row: &str, requests: &Path) -> Option<String> {
    let columns: Vec<&str> = row.split('\t').collect();
    let file = columns[0];
    let otherwise = OTHERWISE.iter().find(|(other, _)| *other == file).map(|(_, expectation)| *expectation);
    let expectation = otherwise.unwrap_or(columns[3]);
    let bytes = std::fs::read(requests.join(file)).unwrap();
    let (verdict, leaks) = expectation.split_once("; must not leak: ").unwrap_or((expectation, ""));
    let mut outcome = match file.ends_with(".h2") {
        true => send_h2(gateway, &bytes),
        false => send_raw(gateway, &bytes, verdict == "incomplete"),
    };
    outcome.seen = upstream.all();
    if !is_expected(verdict, &outcome) {
        return Some(format!("{file} ({expectation}): {outcome:?}"));
    }
    let sent: String =
        outcome.seen.iter().map(|seen| format!("{}{}", seen.head, String::from_utf8_lossy(&seen.body))).collect();
    let leaks = leaks.split('|').filter(|leak| !leak.is_empty());
    let leaks = leaks.map(|leak| leak.replace("\\r", "\r").replace("\\n", "\n").replace("\\x00", "\0"));
    let leaked: Vec<_> = leaks.filter(|leak| sent.contains(leak.as_str())).collect();
    (!leaked.is_empty()).then(|| format!("{file} leaks {leaked:?}: {sent:?}"))
}

#[test]
fn known_attacks_come_to_nothing() {
    let Some(folder) = folder() else {
        println!("skipped: no collection of attacks at ../shared/attacks or TIDEGATE_SHARED");
        return;
    };
    let manifest = std::fs::read_to_string(folder.join("MANIFEST.tsv")).unwrap();
    let rows: Mutex<Vec<&str>> = Mutex::new(manifest.lines().skip(1).collect());
    let failures = Mutex::new(Vec::new());
    let judged = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (upstream, port) = (Upstream::text("hello"), free_port());
                let _gateway =
                    Gateway::start(&http_bootstrap_with(port, MANAGER, ROUTES, &[("up", upstream.port)], ""));
                while let Some(row) = { rows.lock().unwrap().pop() } {
                    failures.lock().unwrap().extend(judge(port, &upstream, row, &folder.join("requests")));
                    judged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(judged.into_inner() > 70);
}
