//! `envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`: takes the PROXY header off the front of a connection
//! and believes what it says of both addresses.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::config::core::v3::proxy_protocol_config::Version as PbVersion;

use tidegate_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::PassedTlvs;
use super::proxy_header::{self, Error, FIRST_READ_BYTES, Header, Version};
use super::{AcceptedSocket, Inspect, ListenerFilter, ListenerFilterConfig, ListenerFilterFactory};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::http::base64;
use crate::metadata::{Sharing, StateObject};
use crate::stream_info::Address;

const MESSAGE: &str = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
const METADATA: &str = "envoy.filters.listener.proxy_protocol";
/// Of the filter state.
const TLVS: &str = "envoy.network.proxy_protocol.tlv";

stats_block! {
    /// Under the root, where Envoy keeps it for those who know it.
    struct RootStats {
        counters { downstream_cx_proxy_proto_error }
        gauges {}
        histograms {}
    }
}

stats_block! {
    struct MissingStats {
        counters { not_found_allowed, not_found_disallowed }
        gauges {}
        histograms {}
    }
}

stats_block! {
    struct VersionStats {
        counters { disallowed, error, found }
        gauges {}
        histograms {}
    }
}

struct Config {
    root: RootStats,
    missing: MissingStats,
    v1: OfVersion,
    v2: OfVersion,
    may_be_missing: bool,
    passes: PassedTlvs,
    /// Where TLVs go, by type.
    rules: BTreeMap<u8, Rule>,
    /// They go into one object of the filter state, not into metadata.
    into_filter_state: bool,
}

struct OfVersion {
    allowed: bool,
    stats: VersionStats,
}

struct Rule {
    namespace: String,
    key: String,
    base64: bool,
}

/// TLVs as filter state, by key.
struct Tlvs(BTreeMap<String, String>);

impl StateObject for Tlvs {
    fn text(&self) -> Option<String> {
        self.json().map(|json| json.to_string())
    }
    fn json(&self) -> Option<Value> {
        Some(self.0.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect())
    }
    fn field(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Shared(Arc<Config>);

impl ListenerFilterConfig for Shared {
    fn new_connection(&self, _: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        Some(Box::new(Filter { config: Arc::clone(&self.0), wanted_bytes: FIRST_READ_BYTES }))
    }
}

struct Filter {
    config: Arc<Config>,
    wanted_bytes: usize,
}

impl ListenerFilter for Filter {
    fn max_read_bytes(&self) -> usize {
        self.wanted_bytes
    }

    fn on_data(&mut self, bytes: &[u8], _: bool, connection: &mut ConnectionInfo, _: &dyn AcceptedSocket) -> Inspect {
        let config = &self.config;
        let could_be = |version| config.of(version).allowed && proxy_header::may_be(version, bytes);
        if config.may_be_missing && !could_be(Version::V1) && !could_be(Version::V2) {
            config.missing.not_found_allowed().inc();
            return Inspect::Done { consume: 0 };
        }
        let version = match proxy_header::version(bytes) {
            Ok(version) => version,
            Err(Error::Incomplete(_)) => return Inspect::NeedMore,
            Err(Error::Malformed) => {
                config.missing.not_found_disallowed().inc();
                config.root.downstream_cx_proxy_proto_error().inc();
                return Inspect::Reject("proxy_protocol_not_found");
            }
        };
        let OfVersion { allowed, stats } = config.of(version);
        if !allowed {
            stats.found().inc();
            stats.disallowed().inc();
            return Inspect::Reject("proxy_protocol_version_disallowed");
        }
        match proxy_header::parse(version, bytes) {
            Ok(header) => {
                stats.found().inc();
                config.believe(&header, connection);
                Inspect::Done { consume: header.length }
            }
            Err(Error::Incomplete(bytes)) => {
                self.wanted_bytes = self.wanted_bytes.max(bytes);
                Inspect::NeedMore
            }
            Err(Error::Malformed) => {
                stats.error().inc();
                config.root.downstream_cx_proxy_proto_error().inc();
                Inspect::Reject("proxy_protocol_malformed")
            }
        }
    }
}

impl Config {
    fn of(&self, version: Version) -> &OfVersion {
        match version {
            Version::V1 => &self.v1,
            Version::V2 => &self.v2,
        }
    }

    fn believe(&self, header: &Header<'_>, connection: &mut ConnectionInfo) {
        if let Some((source, destination)) = header.addresses {
            connection.remote = Address::Ip(source);
            if connection.local != Address::Ip(destination) {
                connection.local = Address::Ip(destination);
                connection.local_restored = true;
            }
        }
        let passing = header.tlvs.iter().filter(|(kind, _)| self.passes.passes(*kind));
        connection.proxy_tlvs = Some(passing.map(|(kind, value)| (*kind, Bytes::copy_from_slice(value))).collect());
        let ruled = || {
            header.tlvs.iter().filter_map(|(kind, value)| {
                let rule = self.rules.get(kind)?;
                Some((rule, rule.text(value)))
            })
        };
        if self.into_filter_state {
            // The last of a key stays.
            let tlvs: BTreeMap<_, _> = ruled().map(|(rule, text)| (rule.key.clone(), text)).collect();
            if !tlvs.is_empty() {
                connection.filter_state.set(TLVS, Arc::new(Tlvs(tlvs)), false, Sharing::None);
            }
            return;
        }
        for (rule, text) in ruled() {
            // The first of its kind stays.
            if connection.metadata.get(&rule.namespace, [rule.key.as_str()]).is_none() {
                let value = Map::from_iter([(rule.key.clone(), Value::String(text))]);
                connection.metadata.merge(&rule.namespace, value);
            }
        }
    }
}

impl Rule {
    fn text(&self, value: &[u8]) -> String {
        if self.base64 { String::from_utf8_lossy(&base64::encode(value)).into_owned() } else { sanitize(value) }
    }
}

/// Text, with `!` for each byte that is none.
fn sanitize(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    chunks.map(|chunk| format!("{}{}", chunk.valid(), "!".repeat(chunk.invalid().len()))).collect()
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
        let config: pb::ProxyProtocol = context.decode(config)?;
        let allowed = |version: PbVersion| !config.disallowed_versions.contains(&i32::from(version));
        if !allowed(PbVersion::V1) && !allowed(PbVersion::V2) {
            return Err(context.error_at("disallowed_versions", "all proxy protocol versions are disallowed"));
        }
        let root = context.stats.root();
        let dot = if config.stat_prefix.is_empty() { "" } else { "." };
        let scope = root.scope(&format!("proxy_proto.{}{dot}", config.stat_prefix));
        let of = |version: PbVersion, name: &str| OfVersion {
            allowed: allowed(version),
            stats: VersionStats::new(&scope.scope(&format!("versions.{name}."))),
        };
        Ok(Box::new(Shared(Arc::new(Config {
            root: RootStats::new(&root),
            missing: MissingStats::new(&scope),
            v1: of(PbVersion::V1, "v1"),
            v2: of(PbVersion::V2, "v2"),
            passes: PassedTlvs::of(config.pass_through_tlvs.as_ref()),
            may_be_missing: config.allow_requests_without_proxy_protocol,
            into_filter_state: config.tlv_location() == pb::proxy_protocol::TlvLocation::FilterState,
            rules: config.rules.into_iter().filter_map(rule).collect(),
        }))))
    }
}

fn rule(rule: pb::proxy_protocol::Rule) -> Option<(u8, Rule)> {
    use pb::proxy_protocol::key_value_pair::ValueStringEncoding;
    let pair = rule.on_tlv_present.unwrap_or_default();
    let base64 = pair.value_string_encoding() == ValueStringEncoding::Base64;
    let namespace = if pair.metadata_namespace.is_empty() { METADATA.to_owned() } else { pair.metadata_namespace };
    Some((u8::try_from(rule.tlv_type).ok()?, Rule { namespace, key: pair.key, base64 }))
}

const COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &[
            "rules",
            "allow_requests_without_proxy_protocol",
            "disallowed_versions",
            "stat_prefix",
            "tlv_location",
            "pass_through_tlvs",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.ProxyProtocolPassThroughTLVs",
        enforced: &["match_type", "tlv_type"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.Rule",
        enforced: &["tlv_type", "on_tlv_present"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair",
        enforced: &["metadata_namespace", "key", "value_string_encoding"],
        listed: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::super::proxy_header::tests::{V4_ADDRESSES, v2_header};
    use super::super::testing::*;
    use super::*;

    const LINE: &[u8] = b"PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\n";

    #[test]
    fn the_header_is_taken_off_and_believed() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let mut filter = bench.filter("{}", &connection).unwrap();
        assert_eq!(filter.inspect(&LINE[..10], &mut connection), Inspect::NeedMore);
        let bytes = [LINE, b"GET"].concat();
        assert_eq!(filter.inspect(&bytes, &mut connection), Inspect::Done { consume: LINE.len() });
        assert_eq!(connection.remote.to_string(), "1.2.3.4:11");
        assert_eq!(connection.direct_remote.to_string(), "10.0.0.1:1234");
        assert_eq!((connection.local.to_string().as_str(), connection.local_restored), ("5.6.7.8:22", true));
        assert_eq!(bench.counted(), ["proxy_proto.versions.v1.found: 1"]);
    }

    #[test]
    fn tlvs_become_metadata() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let rules = "{rules: [{tlv_type: 234, on_tlv_present: {key: k}},
            {tlv_type: 235, on_tlv_present: {key: k, metadata_namespace: ns}}], stat_prefix: sp}";
        let mut filter = bench.filter(rules, &connection).unwrap();
        let tlvs = [234, 0, 3, b'a', 255, b'b', 234, 0, 1, b'c', 235, 0, 1, b'd', 1, 0, 0];
        let long = [&[4, 1, 0][..], &[0; 256]].concat();
        let header = v2_header(0x21, 0x11, &[V4_ADDRESSES, &tlvs[..], &long].concat());
        assert_eq!(filter.inspect(&header[..filter.max_read_bytes()], &mut connection), Inspect::NeedMore);
        assert_eq!(filter.max_read_bytes(), header.len());
        assert_eq!(filter.inspect(&header, &mut connection), Inspect::Done { consume: header.len() });
        assert_eq!(connection.metadata.get(METADATA, ["k"]), Some(&Value::from("a!b")));
        assert_eq!(connection.metadata.get("ns", ["k"]), Some(&Value::from("d")));
        assert_eq!(bench.counted(), ["proxy_proto.sp.versions.v2.found: 1"]);
    }

    #[test]
    fn what_passes_is_kept_for_hosts() {
        let bench = Bench::new(&Factory);
        let tlvs = [234, 0, 1, b'a', 235, 0, 1, b'b', 234, 0, 0];
        let header = v2_header(0x21, 0x11, &[V4_ADDRESSES, &tlvs[..]].concat());
        let kept = |yaml: &str, bytes: &[u8]| {
            let mut connection = connection();
            bench.filter(yaml, &connection).unwrap().inspect(bytes, &mut connection);
            connection.proxy_tlvs.map(|tlvs| tlvs.iter().map(|(kind, value)| (*kind, value.len())).collect::<Vec<_>>())
        };
        assert_eq!(kept("{}", &header), Some(vec![]));
        assert_eq!(kept("{pass_through_tlvs: {tlv_type: [1]}}", &header), Some(vec![(234, 1), (235, 1), (234, 0)]));
        assert_eq!(
            kept("{pass_through_tlvs: {match_type: INCLUDE, tlv_type: [235, 1]}}", &header),
            Some(vec![(235, 1)])
        );
        assert_eq!(kept("{pass_through_tlvs: {}}", LINE), Some(vec![]));
        assert_eq!(kept("{allow_requests_without_proxy_protocol: true, pass_through_tlvs: {}}", b"GET"), None);
    }

    #[test]
    fn what_may_be_missing_and_what_may_not_be_there() {
        let bench = Bench::new(&Factory);
        let mut configs = Vec::new();
        let mut ask = |yaml: &str, bytes: &[u8]| {
            let mut connection = connection();
            let config = bench.compile(yaml).unwrap();
            let answer = config.new_connection(&connection).unwrap().inspect(bytes, &mut connection);
            configs.push(config);
            (answer, connection.remote.to_string() == "1.2.3.4:11")
        };
        let pass = (Inspect::Done { consume: 0 }, false);
        let v2 = v2_header(0x20, 0, b"");
        assert_eq!(ask("allow_requests_without_proxy_protocol: true", b"GET"), pass);
        assert_eq!(ask("allow_requests_without_proxy_protocol: true", b"PRO"), (Inspect::NeedMore, false));
        let only_v1 = "{allow_requests_without_proxy_protocol: true, disallowed_versions: [V2]}";
        assert_eq!(ask(only_v1, &v2), pass);
        assert_eq!(ask(only_v1, LINE), (Inspect::Done { consume: LINE.len() }, true));
        assert!(matches!(ask("disallowed_versions: [V2]", &v2).0, Inspect::Reject(_)));
        assert!(matches!(ask("{}", b"GET / HTTP/1.1\r\n").0, Inspect::Reject(_)));
        assert!(matches!(ask("{}", b"PROXY x\r\n").0, Inspect::Reject(_)));
        assert_eq!(
            bench.counted(),
            [
                "downstream_cx_proxy_proto_error: 2",
                "proxy_proto.not_found_allowed: 2",
                "proxy_proto.not_found_disallowed: 1",
                "proxy_proto.versions.v1.error: 1",
                "proxy_proto.versions.v1.found: 1",
                "proxy_proto.versions.v2.disallowed: 1",
                "proxy_proto.versions.v2.found: 1",
            ]
        );
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let bench = Bench::new(&Factory);
        assert_eq!(
            bench.compile("disallowed_versions: [V1, V2]").err().unwrap(),
            "disallowed_versions: all proxy protocol versions are disallowed"
        );
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn tlvs_become_one_object_of_the_filter_state() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let rules = "{tlv_location: FILTER_STATE, rules: [{tlv_type: 234, on_tlv_present: {key: k}},
            {tlv_type: 235, on_tlv_present: {key: l, value_string_encoding: BASE64}}]}";
        let mut filter = bench.filter(rules, &connection).unwrap();
        let tlvs = [234, 0, 1, b'a', 234, 0, 2, b'b', 255, 235, 0, 3, b'c', 255, b'd'];
        let header = v2_header(0x21, 0x11, &[V4_ADDRESSES, &tlvs[..]].concat());
        assert_eq!(filter.inspect(&header, &mut connection), Inspect::Done { consume: header.len() });
        let object = connection.filter_state.get(TLVS).unwrap();
        let fields = ["k", "l", "m"].map(|name| object.field(name));
        assert_eq!(fields, [Some("b!".to_owned()), Some("Y/9k".to_owned()), None]);
        assert_eq!(object.text().as_deref(), Some(r#"{"k":"b!","l":"Y/9k"}"#));
        assert!(connection.metadata.is_empty());
    }
}
