//! `envoy.extensions.filters.listener.http_inspector.v3.HttpInspector`: whether a plain connection begins with an HTTP/1
//! request line or HTTP/2's preface; says so as application protocol `http/1.0`, `http/1.1` or `h2c`.
//!
//! It has no fields.

use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::listener::http_inspector::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{AcceptedSocket, Inspect, ListenerFilter, ListenerFilterConfig, ListenerFilterFactory};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FIRST_READ_BYTES: usize = 8 * 1024;
/// A longer request line closes the connection.
const MOST_BYTES: usize = 64 * 1024;

stats_block! {
    struct Stats {
        counters { http10_found, http11_found, http2_found, http_not_found, read_error }
        gauges {}
        histograms {}
    }
}

struct Config(Stats);

impl ListenerFilterConfig for Config {
    fn new_connection(&self, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        let plain = matches!(&*connection.transport_protocol, "" | "raw_buffer");
        plain.then(|| Box::new(Filter { stats: self.0.clone(), wanted_bytes: FIRST_READ_BYTES }) as _)
    }
}

struct Filter {
    stats: Stats,
    wanted_bytes: usize,
}

/// What a connection's first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Incomplete,
    NotHttp,
    Http10,
    Http11,
    Http2,
}

impl ListenerFilter for Filter {
    fn max_read_bytes(&self) -> usize {
        self.wanted_bytes
    }

    fn on_data(&mut self, bytes: &[u8], _: bool, connection: &mut ConnectionInfo, _: &dyn AcceptedSocket) -> Inspect {
        let stats = &self.stats;
        let (counter, protocol) = match inspect(bytes) {
            Found::Incomplete if bytes.len() >= MOST_BYTES => {
                stats.read_error().inc();
                return Inspect::Reject("http_inspector_request_line_too_long");
            }
            Found::Incomplete => {
                if bytes.len() >= self.wanted_bytes {
                    self.wanted_bytes = (2 * self.wanted_bytes).min(MOST_BYTES);
                }
                return Inspect::NeedMore;
            }
            Found::NotHttp => {
                stats.http_not_found().inc();
                return Inspect::Done { consume: 0 };
            }
            Found::Http10 => (stats.http10_found(), "http/1.0"),
            Found::Http11 => (stats.http11_found(), "http/1.1"),
            Found::Http2 => (stats.http2_found(), "h2c"),
        };
        counter.inc();
        connection.application_protocols = vec![protocol.into()];
        Inspect::Done { consume: 0 }
    }
}

fn inspect(bytes: &[u8]) -> Found {
    if bytes.starts_with(PREFACE) {
        return Found::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Found::Incomplete;
    }
    if matches!(bytes[0], b'\r' | b'\n') {
        return Found::NotHttp;
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    if line.iter().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r')) || !is_token(line[0]) {
        return Found::NotHttp;
    }
    match end {
        None => Found::Incomplete,
        Some(_) => request_line(line.strip_suffix(b"\r").unwrap_or(line)),
    }
}

fn request_line(line: &[u8]) -> Found {
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default().trim_ascii_start();
    let (target, version) = match rest.iter().position(|byte| *byte == b' ') {
        Some(at) => (&rest[..at], rest[at..].trim_ascii_start()),
        None => (rest, &b""[..]),
    };
    let plausible = method.iter().all(|byte| is_token(*byte)) && is_target(target, method == b"CONNECT");
    match version {
        _ if !plausible => Found::NotHttp,
        b"HTTP/1.1" => Found::Http11,
        // HTTP/0.9 has no version.
        b"" => Found::Http10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Found::Http10
        }
        _ => Found::NotHttp,
    }
}

/// RFC 9110's `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A path, an absolute URL, or an authority for CONNECT, as Envoy's parser takes them.
fn is_target(target: &[u8], connect: bool) -> bool {
    let graphic = |byte: &u8| byte.is_ascii_graphic();
    match target.first() {
        None => false,
        Some(b'/' | b'*') => target.iter().all(graphic),
        Some(_) if connect => target.iter().all(graphic),
        Some(first) => {
            let rest = target.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte));
            first.is_ascii_alphabetic()
                && rest.is_some_and(|at| target[at..].starts_with(b"://"))
                && target.iter().all(graphic)
        }
    }
}

pub(super) struct Factory;

impl ListenerFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage { message: MESSAGE, enforced: &[], listed: &[] }]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Box<dyn ListenerFilterConfig>, FieldError> {
        let pb::HttpInspector {} = context.decode(config)?;
        Ok(Box::new(Config(Stats::new(&context.stats.root().scope("http_inspector.")))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// Measured on Envoy 1.40.
    #[test]
    fn request_lines_as_envoy_reads_them() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Found::Http11),
            (b"GET / HTTP/1.0\r\n", Found::Http10),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Found::Http2),
            (b"PRI * HTT", Found::Incomplete),
            (b"GET /\r\n", Found::Http10),
            (b"GET / HTTP/1.2\r\n", Found::Http10),
            (b"GET / HTTP/2.0\r\n", Found::Http10),
            (b"hello there\r\n", Found::NotHttp),
            (b"\x00\x01\x02\x03\x04\x05\r\n", Found::NotHttp),
            (b"GET / HTTP/1.1\n", Found::Http11),
            (b"\r\nGET / HTTP/1.1\r\n", Found::NotHttp),
            (b"FOO / HTTP/1.1\r\n", Found::Http11),
            (b"get / HTTP/1.1\r\n", Found::Http11),
            (b"GET  / HTTP/1.1\r\n", Found::Http11),
            (b"GET / HTTP/1.1", Found::Incomplete),
            (b"G\x01T / HT", Found::NotHttp),
            (b"hello", Found::Incomplete),
            (b"CONNECT a:1 HTTP/1.1\r\n", Found::Http11),
            (b"GET http://a/ HTTP/1.1\r\n", Found::Http11),
            (b"GET / HTTP/1.10\r\n", Found::NotHttp),
            (b"GET / http/1.1\r\n", Found::NotHttp),
            (b"GET / FOO/1.1\r\n", Found::NotHttp),
            (b"", Found::Incomplete),
        ] {
            assert_eq!(inspect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_is_found_is_the_application_protocol() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let mut filter = bench.filter("{}", &connection).unwrap();
        assert_eq!(filter.inspect(b"PRI", &mut connection), Inspect::NeedMore);
        assert_eq!(filter.inspect(PREFACE, &mut connection), Inspect::Done { consume: 0 });
        assert_eq!(connection.application_protocols, ["h2c".into()]);
        assert_eq!(bench.counted(), ["http_inspector.http2_found: 1"]);
    }

    #[test]
    fn tls_is_not_looked_into_and_endless_lines_are_closed() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let mut filter = bench.filter("{}", &connection).unwrap();
        let line = [b'a'; MOST_BYTES];
        assert_eq!(filter.inspect(&line[..FIRST_READ_BYTES], &mut connection), Inspect::NeedMore);
        assert_eq!(filter.max_read_bytes(), 2 * FIRST_READ_BYTES);
        assert!(matches!(filter.inspect(&line, &mut connection), Inspect::Reject(_)));
        connection.transport_protocol = "tls".into();
        assert!(bench.filter("{}", &connection).is_none());
    }
}
