//! `envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector`: whether a connection begins with a ClientHello, and
//! which server name and protocols it asks for.
//!
//! Acts: all fields. Differs: a connection whose first byte is no TLS record's is passed on at once; Envoy waits for five
//! bytes.

use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::client_hello::{self, ClientHello, Parsed};
use super::fingerprint::Offer;
use super::{AcceptedSocket, Inspect, ListenerFilter, ListenerFilterConfig, ListenerFilterFactory};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const METADATA: &str = "envoy.filters.listener.tls_inspector";
/// What is looked at of a connection that is not TLS, as Envoy counts it.
const RECORD_HEADER_BYTES: u64 = 5;

stats_block! {
    struct Stats {
        counters { alpn_found, alpn_not_found, client_hello_too_large, sni_found, sni_not_found, tls_found, tls_not_found }
        gauges {}
        histograms { bytes_processed: Bytes }
    }
}

struct Config {
    stats: Stats,
    first_read_bytes: usize,
    most_bytes: usize,
    close_on_error: bool,
    ja3: bool,
    ja4: bool,
}

impl ListenerFilterConfig for Shared {
    fn new_connection(&self, _: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        Some(Box::new(Filter { config: Arc::clone(&self.0), wanted_bytes: self.0.first_read_bytes }))
    }
}

struct Shared(Arc<Config>);

struct Filter {
    config: Arc<Config>,
    wanted_bytes: usize,
}

impl ListenerFilter for Filter {
    fn max_read_bytes(&self) -> usize {
        self.wanted_bytes
    }

    fn on_data(&mut self, bytes: &[u8], _: bool, connection: &mut ConnectionInfo, _: &dyn AcceptedSocket) -> Inspect {
        let Config { stats, most_bytes, close_on_error, .. } = &*self.config;
        match client_hello::parse(bytes) {
            Parsed::Incomplete if bytes.len() >= *most_bytes => {
                stats.bytes_processed().record(bytes.len() as u64);
                stats.client_hello_too_large().inc();
                fail(connection, "ClientHelloTooLarge");
                Inspect::Reject("client_hello_too_large")
            }
            Parsed::Incomplete => {
                if bytes.len() >= self.wanted_bytes {
                    self.wanted_bytes = (2 * bytes.len()).min(*most_bytes);
                }
                Inspect::NeedMore
            }
            Parsed::NotTls => {
                stats.bytes_processed().record(RECORD_HEADER_BYTES.min(bytes.len() as u64));
                stats.tls_not_found().inc();
                if *close_on_error {
                    if bytes.len() >= *most_bytes {
                        fail(connection, "ClientHelloTooLarge");
                        stats.client_hello_too_large().inc();
                    }
                    return Inspect::Reject("client_hello_parsing_error");
                }
                fail(connection, "ClientHelloNotDetected");
                connection.transport_failure_reason = Some(boring_error(bytes).into());
                Inspect::Done { consume: 0 }
            }
            Parsed::Hello(hello) => {
                self.config.note(&hello, connection);
                Inspect::Done { consume: 0 }
            }
        }
    }
}

impl Config {
    fn note(&self, hello: &ClientHello, connection: &mut ConnectionInfo) {
        let stats = &self.stats;
        stats.bytes_processed().record(hello.length as u64);
        stats.tls_found().inc();
        connection.transport_protocol = "tls".into();
        match &hello.server_name {
            Some(name) => {
                stats.sni_found().inc();
                connection.requested_server_name = Some(String::from_utf8_lossy(name).to_ascii_lowercase().into());
            }
            None => stats.sni_not_found().inc(),
        }
        if hello.protocols.is_empty() {
            stats.alpn_not_found().inc();
        } else {
            stats.alpn_found().inc();
            let protocols = hello.protocols.iter().map(|name| String::from_utf8_lossy(name).into());
            connection.application_protocols = protocols.collect();
        }
        if self.ja3 || self.ja4 {
            let offer = Offer::read(hello.body());
            connection.ja3 = self.ja3.then(|| offer.ja3().into());
            connection.ja4 = self.ja4.then(|| offer.ja4().into());
        }
    }
}

/// What BoringSSL says of bytes that are no ClientHello, by how they begin; Envoy tells it in log lines of connections.
fn boring_error(bytes: &[u8]) -> String {
    const HANDSHAKE: u8 = 22;
    let begins = |words: &[&str]| words.iter().any(|word| bytes.starts_with(word.as_bytes()));
    let (code, name) = match bytes {
        _ if begins(&["GET ", "POST ", "HEAD ", "PUT "]) => ("9c", "HTTP_REQUEST"),
        _ if begins(&["CONNE"]) => ("9b", "HTTPS_PROXY_REQUEST"),
        [HANDSHAKE, 3, ..] => ("df", "UNEXPECTED_MESSAGE"),
        _ => ("f7", "WRONG_VERSION_NUMBER"),
    };
    format!("TLS_error|error:100000{code}:SSL routines:OPENSSL_internal:{name}:TLS_error_end")
}

fn fail(connection: &mut ConnectionInfo, reason: &str) {
    connection.metadata.merge(METADATA, Map::from_iter([("failure_reason".to_owned(), Value::from(reason))]));
}

pub(super) struct Factory;

impl ListenerFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Box<dyn ListenerFilterConfig>, FieldError> {
        let config: pb::TlsInspector = context.decode(config)?;
        let bytes = |value: Option<u32>, default: usize| value.map_or(default, |value| value as usize);
        let most_bytes = bytes(config.max_client_hello_size.map(|value| value.value), 16 * 1024);
        let first = bytes(config.initial_read_buffer_size.map(|value| value.value), most_bytes);
        Ok(Box::new(Shared(Arc::new(Config {
            stats: Stats::new(&context.stats.root().scope("tls_inspector.")),
            first_read_bytes: first.min(most_bytes),
            most_bytes,
            close_on_error: config.close_connection_on_client_hello_parsing_errors,
            ja3: config.enable_ja3_fingerprinting.is_some_and(|on| on.value),
            ja4: config.enable_ja4_fingerprinting.is_some_and(|on| on.value),
        }))))
    }
}

const COVERAGE: &[Coverage] = &[Coverage {
    message: MESSAGE,
    enforced: &[
        "enable_ja3_fingerprinting",
        "enable_ja4_fingerprinting",
        "initial_read_buffer_size",
        "close_connection_on_client_hello_parsing_errors",
        "max_client_hello_size",
    ],
    listed: &[],
}];

#[cfg(test)]
mod tests {
    use super::super::client_hello::tests::client_hello;
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_client_hello_says_where_it_wants_to_go() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let hello = client_hello(Some("A.example"), &["h2", "x"], 100);
        let mut filter = bench.filter("{}", &connection).unwrap();
        assert_eq!(filter.inspect(&[], &mut connection), Inspect::NeedMore);
        assert_eq!(filter.inspect(&hello[..20], &mut connection), Inspect::NeedMore);
        assert_eq!(filter.inspect(&hello, &mut connection), Inspect::Done { consume: 0 });
        assert_eq!(connection.requested_server_name.as_deref(), Some("a.example"));
        assert_eq!(connection.application_protocols, ["h2".into(), "x".into()]);
        assert_eq!(&*connection.transport_protocol, "tls");
        assert_eq!(
            bench.counted(),
            ["tls_inspector.alpn_found: 1", "tls_inspector.sni_found: 1", "tls_inspector.tls_found: 1"]
        );
    }

    #[test]
    fn plain_text_passes_unless_it_is_to_be_closed() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let mut filter = bench.filter("{}", &connection).unwrap();
        assert_eq!(filter.inspect(b"GET / HTTP/1.1", &mut connection), Inspect::Done { consume: 0 });
        assert_eq!(&*connection.transport_protocol, "");
        let reason = connection.metadata.get(METADATA, ["failure_reason"]).and_then(Value::as_str);
        assert_eq!(reason, Some("ClientHelloNotDetected"));
        assert_eq!(bench.counted(), ["tls_inspector.tls_not_found: 1"]);
        let mut filter = bench.filter("close_connection_on_client_hello_parsing_errors: true", &connection).unwrap();
        assert!(matches!(filter.inspect(b"GET / HTTP/1.1", &mut connection), Inspect::Reject(_)));
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn why_it_is_no_client_hello_is_told() {
        let names = [&b"GET /"[..], b"CONNECT", b"hello", &[22, 3, 1, 0, 4, 2, 0, 0, 0]].map(boring_error);
        let names = names.each_ref().map(|error| error.split(':').nth(4).unwrap());
        assert_eq!(names, ["HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE"]);
    }

    #[test]
    fn it_reads_more_and_more_but_not_too_much() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let mut filter =
            bench.filter("{initial_read_buffer_size: 256, max_client_hello_size: 600}", &connection).unwrap();
        let hello = client_hello(Some("a"), &["x"; 300], 10_000);
        let mut reads = Vec::new();
        let last = loop {
            reads.push(filter.max_read_bytes());
            match filter.inspect(&hello[..filter.max_read_bytes()], &mut connection) {
                Inspect::NeedMore => {}
                last => break last,
            }
        };
        assert_eq!((reads, last), (vec![256, 512, 600], Inspect::Reject("client_hello_too_large")));
        assert_eq!(bench.counted(), ["tls_inspector.client_hello_too_large: 1"]);
    }

    #[test]
    fn fingerprints_are_taken_when_they_are_asked_for() {
        let bench = Bench::new(&Factory);
        let hello = client_hello(Some("a.example"), &["h2"], 100);
        for (config, ja3, ja4) in [
            ("{}", false, false),
            ("enable_ja3_fingerprinting: true", true, false),
            ("enable_ja4_fingerprinting: true", false, true),
        ] {
            let mut connection = connection();
            let mut filter = bench.filter(config, &connection).unwrap();
            assert_eq!(filter.inspect(&hello, &mut connection), Inspect::Done { consume: 0 });
            assert_eq!((connection.ja3.is_some(), connection.ja4.is_some()), (ja3, ja4), "{config}");
        }
    }
}
