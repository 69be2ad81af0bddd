//! Typed messages of the xDS API that `envoy-types` lacks, by package; their .proto files are in `proto/`.
//! It must not hold any type that `pb` has.

use prost::Name;

/// Full names, as prost's own generator would write them.
macro_rules! names {
    ($package:literal: $($name:ident),*) => {$(
        impl Name for $name {
            const NAME: &'static str = stringify!($name);
            const PACKAGE: &'static str = $package;
        }
    )*};
}

/// `udpa.type.v1`
pub mod udpa_type {
    use super::Name;
    use crate::pb::google::protobuf::Struct;

    /// A message whose type the sender's schema may lack. Istio still sends this older name.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TypedStruct {
        #[prost(string, tag = "1")]
        pub type_url: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<Struct>,
    }

    names!("udpa.type.v1": TypedStruct);
}

/// `xds.type.v3`
pub mod xds_type {
    use super::Name;
    use crate::pb::google::protobuf::Struct;

    /// A message whose type the sender's schema may lack.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TypedStruct {
        #[prost(string, tag = "1")]
        pub type_url: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<Struct>,
    }

    /// From `start` up to, but not including, `end`.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Int64Range {
        #[prost(int64, tag = "1")]
        pub start: i64,
        #[prost(int64, tag = "2")]
        pub end: i64,
    }

    /// From `start` up to, but not including, `end`.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Int32Range {
        #[prost(int32, tag = "1")]
        pub start: i32,
        #[prost(int32, tag = "2")]
        pub end: i32,
    }

    /// From `start` up to, but not including, `end`.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct DoubleRange {
        #[prost(double, tag = "1")]
        pub start: f64,
        #[prost(double, tag = "2")]
        pub end: f64,
    }

    names!("xds.type.v3": TypedStruct, Int64Range, Int32Range, DoubleRange);
}

/// `xds.type.matcher.v3`
pub mod matcher {
    use super::{
        Name,
        xds_type::{DoubleRange, Int32Range, Int64Range},
    };
    use crate::pb::xds::{
        core::v3::CidrRange,
        r#type::{matcher::v3::matcher::OnMatch, v3::CelExpression},
    };

    /// Matches where an expression is true.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CelMatcher {
        #[prost(message, optional, tag = "1")]
        pub expr_match: Option<CelExpression>,
        #[prost(string, tag = "2")]
        pub description: String,
    }

    /// The attributes of a request as input of a [`CelMatcher`].
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct HttpAttributesCelMatchInput {}

    /// Matches an address by the longest range.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct IpMatcher {
        #[prost(message, repeated, tag = "1")]
        pub range_matchers: Vec<IpRangeMatcher>,
    }

    /// `IPMatcher.IPRangeMatcher`
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct IpRangeMatcher {
        #[prost(message, repeated, tag = "1")]
        pub ranges: Vec<CidrRange>,
        #[prost(message, optional, tag = "2")]
        pub on_match: Option<OnMatch>,
        #[prost(bool, tag = "3")]
        pub exclusive: bool,
    }

    impl Name for IpMatcher {
        const NAME: &'static str = "IPMatcher";
        const PACKAGE: &'static str = "xds.type.matcher.v3";
    }

    /// Matches a server name: exact first, then the longest wildcard.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ServerNameMatcher {
        #[prost(message, repeated, tag = "1")]
        pub domain_matchers: Vec<DomainMatcher>,
    }

    /// `ServerNameMatcher.DomainMatcher`
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DomainMatcher {
        #[prost(string, repeated, tag = "1")]
        pub domains: Vec<String>,
        #[prost(message, optional, tag = "2")]
        pub on_match: Option<OnMatch>,
    }

    /// A matcher by ranges of numbers.
    macro_rules! range_matcher {
        ($matcher:ident, $entry:ident, $range:ident) => {
            /// Matches a number by the first range that holds it.
            #[derive(Clone, PartialEq, prost::Message)]
            pub struct $matcher {
                #[prost(message, repeated, tag = "1")]
                pub range_matchers: Vec<$entry>,
            }

            /// The `RangeMatcher` of its matcher.
            #[derive(Clone, PartialEq, prost::Message)]
            pub struct $entry {
                #[prost(message, repeated, tag = "1")]
                pub ranges: Vec<$range>,
                #[prost(message, optional, tag = "2")]
                pub on_match: Option<OnMatch>,
            }
        };
    }

    range_matcher!(Int64RangeMatcher, Int64RangeEntry, Int64Range);
    range_matcher!(Int32RangeMatcher, Int32RangeEntry, Int32Range);
    range_matcher!(DoubleRangeMatcher, DoubleRangeEntry, DoubleRange);

    names!("xds.type.matcher.v3": CelMatcher, HttpAttributesCelMatchInput, ServerNameMatcher, Int64RangeMatcher,
        Int32RangeMatcher, DoubleRangeMatcher);
}

/// `xds.data.orca.v3` and `xds.service.orca.v3`
pub mod orca {
    use std::collections::HashMap;

    use super::Name;
    use crate::pb::google::protobuf::Duration;

    /// What a backend reports of its load.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct OrcaLoadReport {
        #[prost(double, tag = "1")]
        pub cpu_utilization: f64,
        #[prost(double, tag = "2")]
        pub mem_utilization: f64,
        /// Deprecated: `rps_fractional`.
        #[prost(uint64, tag = "3")]
        pub rps: u64,
        #[prost(map = "string, double", tag = "4")]
        pub request_cost: HashMap<String, f64>,
        #[prost(map = "string, double", tag = "5")]
        pub utilization: HashMap<String, f64>,
        #[prost(double, tag = "6")]
        pub rps_fractional: f64,
        #[prost(double, tag = "7")]
        pub eps: f64,
        #[prost(map = "string, double", tag = "8")]
        pub named_metrics: HashMap<String, f64>,
        #[prost(double, tag = "9")]
        pub application_utilization: f64,
    }

    names!("xds.data.orca.v3": OrcaLoadReport);

    /// Asks for reports out of band.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct OrcaLoadReportRequest {
        #[prost(message, optional, tag = "1")]
        pub report_interval: Option<Duration>,
        #[prost(string, repeated, tag = "2")]
        pub request_cost_names: Vec<String>,
    }

    impl Name for OrcaLoadReportRequest {
        const NAME: &'static str = "OrcaLoadReportRequest";
        const PACKAGE: &'static str = "xds.service.orca.v3";
    }
}

/// `xds.core.v3`
pub mod core {
    use super::Name;
    use crate::pb::{google::protobuf::Any, xds::core::v3::ContextParams};

    /// The parts of an `xdstp://` name.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceName {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(string, tag = "2")]
        pub authority: String,
        #[prost(string, tag = "3")]
        pub resource_type: String,
        #[prost(message, optional, tag = "4")]
        pub context: Option<ContextParams>,
    }

    /// A resource with its name and version.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Resource {
        #[prost(message, optional, tag = "1")]
        pub name: Option<ResourceName>,
        #[prost(string, tag = "2")]
        pub version: String,
        #[prost(message, optional, tag = "3")]
        pub resource: Option<Any>,
    }

    names!("xds.core.v3": ResourceName, Resource);
}

#[cfg(test)]
mod tests {
    use prost::{Message, Name};

    use crate::{Format, UnknownFields, decode};

    /// What the .proto file says in JSON, the Rust type reads and writes back.
    fn agree<M: Message + Name + Default>(json: &str) {
        let name = M::full_name();
        let decoded = decode(&name, json.as_bytes(), Format::Json, UnknownFields::Reject).unwrap();
        let typed = M::decode(decoded.bytes.as_slice()).unwrap();
        assert_eq!(typed.encode_to_vec(), decoded.bytes, "{name}");
        assert_eq!(
            crate::to_json(&name, &typed.encode_to_vec()),
            serde_json::from_str::<serde_json::Value>(json).unwrap()
        );
    }

    #[test]
    fn rust_types_agree_with_their_protos() {
        let on_match = r#"{"action": {"name": "x"}, "keep_matching": true}"#;
        let ranges =
            format!(r#"{{"range_matchers": [{{"ranges": [{{"start": "1", "end": "2"}}], "on_match": {on_match}}}]}}"#);
        let plain = ranges.replace("\"1\"", "1").replace("\"2\"", "2");
        agree::<super::matcher::Int64RangeMatcher>(&ranges);
        agree::<super::matcher::Int32RangeMatcher>(&plain);
        agree::<super::matcher::DoubleRangeMatcher>(&plain);
        agree::<super::udpa_type::TypedStruct>(r#"{"type_url": "a/b", "value": {"c": 1}}"#);
        agree::<super::xds_type::TypedStruct>(r#"{"type_url": "a/b", "value": {"c": 1}}"#);
        agree::<super::matcher::CelMatcher>(r#"{"expr_match": {"cel_expr_string": "true"}, "description": "d"}"#);
        agree::<super::matcher::HttpAttributesCelMatchInput>("{}");
        agree::<super::matcher::IpMatcher>(&format!(
            r#"{{"range_matchers": [{{"ranges": [{{"address_prefix": "::"}}], "on_match": {on_match}, "exclusive": true}}]}}"#
        ));
        agree::<super::matcher::ServerNameMatcher>(&format!(
            r#"{{"domain_matchers": [{{"domains": ["*.a"], "on_match": {on_match}}}]}}"#
        ));
        agree::<super::orca::OrcaLoadReport>(
            r#"{"cpu_utilization": 1, "mem_utilization": 0.5, "rps": "3", "request_cost": {"a": 1}, "utilization": {"b": 0.5},
                "rps_fractional": 1.5, "eps": 2, "named_metrics": {"c": 3}, "application_utilization": 4}"#,
        );
        agree::<super::orca::OrcaLoadReportRequest>(r#"{"report_interval": "10s", "request_cost_names": ["a"]}"#);
        agree::<super::core::Resource>(
            r#"{"name": {"id": "i", "authority": "a", "resource_type": "t", "context": {"params": {"k": "v"}}}, "version": "1",
                "resource": {"@type": "x/google.protobuf.Empty"}}"#,
        );
    }
}
