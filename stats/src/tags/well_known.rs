//! Envoy's own tag rules, in the order in which they act. It must not know how they are applied.
//!
//! See <https://www.envoyproxy.io/docs/envoy/latest/operations/admin> ("Statistics") and the tag names that Envoy's
//! Prometheus output shows.

/// A rule by a regular expression: its first group is taken out of the name, its second one is the value.
pub(super) struct Pattern {
    pub(super) tag: &'static str,
    /// `<VALUE>` and the like stand for what [`expand`] says.
    pub(super) expression: &'static str,
    /// A name without it cannot match.
    pub(super) hint: &'static str,
    /// A value that is no tag.
    pub(super) except: &'static str,
}

const fn pattern(tag: &'static str, expression: &'static str, hint: &'static str) -> Pattern {
    Pattern { tag, expression, hint, except: "" }
}

/// Rules by expression; they come before those by parts.
pub(super) const PATTERNS: [Pattern; 22] = [
    pattern("envoy.response_code", r"_rq(_([0-9]{3}))$", "_rq_"),
    pattern("envoy.response_code_class", r"_rq_(([0-9]))xx$", "_rq_"),
    pattern(
        "envoy.dynamo_partition_id",
        r"^http\.<VALUE>\.dynamodb\.table\.<VALUE>\.capacity\.<VALUE>(\.__partition_id=([0-9A-Za-z_]{7}))$",
        ".dynamodb.table.",
    ),
    pattern(
        "envoy.dynamo_operation",
        r"^http\.<VALUE>\.dynamodb.(?:operation|table\.<VALUE>\.capacity)(\.(<VALUE>))(?:\.|$)",
        ".dynamodb.",
    ),
    pattern("envoy.dynamo_table", r"^http\.<VALUE>\.dynamodb.(?:table|error)\.((<VALUE>)\.)", ".dynamodb."),
    pattern("envoy.ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.(<CIPHER>))$", ".ssl.ciphers."),
    pattern("envoy.ssl_curve", r"^<OWNER>\.ssl\.curves(\.(<CIPHER>))$", ".ssl.curves."),
    pattern("envoy.ssl_sigalg", r"^<OWNER>\.ssl\.sigalgs(\.(<CIPHER>))$", ".ssl.sigalgs."),
    pattern("envoy.ssl_version", r"^<OWNER>\.ssl\.versions(\.(TLSv[0-9]\.[0-9]))$", ".ssl.versions."),
    pattern("envoy.ssl_cipher_suite", r"^cluster\.<VALUE>\.ssl\.ciphers(\.(<CIPHER>))$", ".ssl.ciphers."),
    pattern("envoy.tls_certificate", r"^<OWNER>\.ssl\.certificate\.((<VALUE>)\.).*$", ".ssl.certificate."),
    pattern("envoy.http_conn_manager_prefix", r"^listener\..*?\.http\.((<VALUE>)\.)", ".http."),
    pattern(
        "envoy.worker_id",
        r"^(?:listener\.(?:<ADDRESS>|<VALUE>)|server|listener_manager|thread_local_cluster_manager)\.worker_(([0-9]+)\.)",
        ".worker_",
    ),
    Pattern {
        tag: "envoy.listener_address",
        expression: r"^listener\.((<ADDRESS>|<VALUE>)\.)",
        hint: "",
        except: "admin",
    },
    pattern("envoy.rds_route_config", r"^http\.<VALUE>\.rds\.(([0-9A-Za-z_.-]+)\.)[0-9A-Za-z_]+?$", ".rds."),
    pattern(
        "envoy.scoped_rds_config",
        r"^http\.<VALUE>\.scoped_rds\.(([0-9A-Za-z_.-]+)\.)[0-9A-Za-z_]+?$",
        ".scoped_rds.",
    ),
    pattern(
        "envoy.rbac_policy_name",
        r"^http\.<VALUE>\.rbac\.(?:<VALUE>\.)?policy\.((<VALUE>)\.)(?:allowed|shadow_allowed|denied|shadow_denied)$",
        ".rbac.",
    ),
    Pattern {
        tag: "envoy.rbac_http_prefix",
        expression: r"^http\.<VALUE>\.rbac\.((<VALUE>)\.).*?",
        hint: ".rbac.",
        except: "policy",
    },
    pattern("envoy.xds_resource_name", r"^sds\.((<VALUE>)\.).+", "sds."),
    Pattern {
        tag: "envoy.proxy_protocol_prefix",
        expression: r"^proxy_proto\.((<VALUE>)\.).+$",
        hint: "",
        except: "versions",
    },
    pattern(
        "envoy.proxy_protocol_version",
        r"^proxy_proto\.((?:<VALUE>\.)?versions\.v([0-9])\.)[0-9A-Za-z_]+$",
        ".versions.",
    ),
    pattern("envoy.health_check_name", r"^cluster\.<VALUE>\.health_check(\.name\.(<VALUE>))\..+", ".health_check."),
];

/// Rules by parts between dots.
pub(super) const TOKENS: [(&str, &str); 28] = [
    ("envoy.mongo_callsite", "mongo.*.collection.*.callsite.$.query.**"),
    ("envoy.mongo_collection", "mongo.*.collection.$.**.query.*"),
    ("envoy.mongo_cmd", "mongo.*.cmd.$.**"),
    ("envoy.grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("envoy.http_user_agent", "http.*.user_agent.$.**"),
    ("envoy.virtual_cluster", "vhost.*.vcluster.$.**"),
    ("envoy.fault_downstream_cluster", "http.*.fault.$.**"),
    ("envoy.grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("envoy.tcp_prefix", "tcp.$.**"),
    ("envoy.udp_prefix", "udp.$.**"),
    ("envoy.clientssl_prefix", "auth.clientssl.$.**"),
    ("envoy.ratelimit_prefix", "ratelimit.$.**"),
    ("envoy.cluster_name", "cluster.$.**"),
    ("envoy.google_grpc_client_prefix", "grpc.$.**"),
    ("envoy.ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    ("envoy.ext_authz_prefix", "http.*.ext_authz.$.**"),
    ("envoy.http_conn_manager_prefix", "http.$.**"),
    ("envoy.virtual_host", "vhost.$.**"),
    ("envoy.mongo_prefix", "mongo.$.**"),
    ("envoy.route", "vhost.*.route.$.**"),
    ("envoy.thrift_prefix", "thrift.$.**"),
    ("envoy.redis_prefix", "redis.$.**"),
    ("envoy.local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    ("envoy.local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("envoy.local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    ("envoy.dns_filter_prefix", "dns_filter.$.**"),
    ("envoy.connection_limit_prefix", "connection_limit.$.**"),
    ("envoy.rbac_prefix", "$.rbac.**"),
];

/// Writes out what stands in angle brackets.
pub(super) fn expand(expression: &str) -> String {
    expression
        .replace("<ADDRESS>", r"(?:(?:[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\[[a-fA-F_0-9]+\])_[0-9]+)")
        .replace("<OWNER>", r"(?:listener|cluster)\..*?")
        .replace("<CIPHER>", "[0-9A-Za-z_-]+")
        .replace("<VALUE>", r"[^\.]+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expression_compiles_and_has_its_groups() {
        for pattern in &PATTERNS {
            let regex = regex::Regex::new(&expand(pattern.expression)).unwrap();
            assert!(regex.captures_len() >= 3, "{}", pattern.expression);
        }
    }
}
