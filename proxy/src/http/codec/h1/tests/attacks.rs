//! Raw requests collected as attacks, with what must become of each. They live beside the project and are skipped loudly
//! where they are absent; cases that only the connection manager decides are left to its tests.

use std::path::{Path, PathBuf};

use bytes::BytesMut;
use tidegate_filters::http::RequestHead;

use super::request::rules;
use crate::http::codec::CodecError;
use crate::http::codec::h1::body::{BodyDecoder, Piece};
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::HeadEnd;
use crate::http::codec::h1::outgoing::Outgoing;
use crate::http::codec::h1::request;
use crate::http::protocol::{Http1Options, Underscores};

fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("TIDEGATE_SHARED").map_or(beside, PathBuf::from);
    Some(shared.join("attacks")).filter(|folder| folder.is_dir())
}

/// What came of a connection's bytes.
#[derive(Debug, Default)]
struct Outcome {
    /// Requests that were whole, and what an upstream would have got.
    whole: usize,
    forwarded: Vec<u8>,
    error: Option<CodecError>,
    /// A request that was begun and not finished.
    partial: bool,
    closes: bool,
}

/// Serves a connection on which `bytes` arrive and then nothing more, as an edge would be configured.
fn serve(bytes: &[u8]) -> Outcome {
    let mut rules = rules();
    rules.limits.underscores = Underscores::Reject;
    let (mut buffer, mut end, mut outcome) = (BytesMut::from(bytes), HeadEnd::default(), Outcome::default());
    while !outcome.closes {
        let decoded = match request::decode(&mut buffer, &mut end, &rules) {
            Ok(Some(decoded)) => decoded,
            Ok(None) => {
                outcome.partial = !buffer.is_empty();
                break;
            }
            Err(error) => {
                outcome.error = Some(error);
                break;
            }
        };
        outcome.closes = !decoded.keep_alive || decoded.tunnel;
        let mut body = BodyDecoder::new(decoded.framing);
        let mut data = BytesMut::new();
        loop {
            match body.decode(&mut buffer) {
                Ok(Some(Piece::Data(piece))) => data.extend_from_slice(&piece),
                Ok(Some(Piece::End(_))) => {
                    outcome.whole += 1;
                    break;
                }
                Ok(None) if decoded.tunnel => break,
                Ok(None) => {
                    outcome.partial = true;
                    return outcome;
                }
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
        forward(&decoded.head, &data, &mut outcome.forwarded);
    }
    outcome
}

fn forward(head: &RequestHead, body: &[u8], out: &mut Vec<u8>) {
    let delimit = if body.is_empty() { Delimit::AsIs } else { Delimit::Length(body.len() as u64) };
    assert!(matches!(Outgoing::of_request(&head.headers, delimit, false), Outgoing::Nothing | Outgoing::Length(_)));
    let mut encoded = BytesMut::new();
    encode::request(head, delimit, false, &Http1Options::default(), &mut encoded);
    out.extend_from_slice(&encoded);
    out.extend_from_slice(body);
}

/// Whether the outcome is what the manifest expects; `None` when the codec alone does not decide.
fn is_expected(expectation: &str, outcome: &Outcome) -> Option<bool> {
    let refused = outcome.error.is_some() && outcome.whole == 0;
    let one = outcome.whole == 1 && !outcome.partial && outcome.error.is_none();
    Some(match expectation {
        "one" => one,
        "reject" => refused,
        "reject-or-close" => refused || outcome.closes,
        // A refusal leaks nothing either.
        "either" | "strip" => refused || one,
        "incomplete" => outcome.whole == 0 && outcome.partial,
        "n<=2" => outcome.whole <= 2,
        "admin" | "noadmin" => return None,
        many => outcome.whole == many.strip_prefix("n:")?.parse::<usize>().ok()?,
    })
}

/// Routes and header policy decide about these, not the codec.
const OTHERS_DECIDE: &[&str] = &["082-connect.raw", "111-xff-spoof.raw"];

#[test]
fn known_attacks_come_to_nothing() {
    let Some(folder) = folder() else {
        eprintln!("SKIPPED: no collection of attacks beside the project (TIDEGATE_SHARED)");
        return;
    };
    let manifest = std::fs::read_to_string(folder.join("MANIFEST.tsv")).unwrap();
    let mut judged = 0;
    for row in manifest.lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let (file, expectation) = (columns[0], columns[3]);
        if !file.ends_with(".raw") || OTHERS_DECIDE.contains(&file) {
            continue;
        }
        let bytes = std::fs::read(folder.join("requests").join(file)).unwrap();
        let outcome = serve(&bytes);
        let (verdict, leaks) = expectation.split_once("; must not leak: ").unwrap_or((expectation, ""));
        let Some(good) = is_expected(verdict, &outcome) else { continue };
        let shown = String::from_utf8_lossy(&outcome.forwarded).into_owned();
        assert!(good, "{file} ({expectation}): {:?} {} whole, sent {shown:?}", outcome.error, outcome.whole);
        for leak in leaks.split('|').filter(|leak| !leak.is_empty()) {
            let leak = leak.replace("\\r", "\r").replace("\\n", "\n").replace("\\x00", "\0");
            assert!(!shown.contains(&leak), "{file} leaks {leak:?}: {shown:?}");
        }
        judged += 1;
    }
    assert!(judged > 40, "only {judged} of the attacks were judged");
}

#[test]
fn every_attack_is_survived_however_it_arrives() {
    let Some(folder) = folder() else {
        eprintln!("SKIPPED: no collection of attacks beside the project (TIDEGATE_SHARED)");
        return;
    };
    for entry in std::fs::read_dir(folder.join("requests")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for cut in 0..bytes.len().min(2000) {
            serve(&bytes[cut..]);
            serve(&bytes[..cut]);
        }
    }
}
