//! `envoy.config.route.v3.RouteConfiguration` as a [`RouteTable`]. Pure; it must not know which clusters there are: those
//! that must exist are named as needs.

mod action;
mod cluster;
mod coverage;
mod hash;
mod headers;
mod legacy_cors;
mod local;
mod matching;
mod mirror;
mod overrides;
mod redirect_policy;
mod retry;
mod rewrite;
mod specifier;
#[cfg(test)]
mod testing;
mod tree;
mod virtual_host;

pub(in crate::config) use self::cluster::metadata_match;
pub(super) use hash::policies as hash_policies;
pub(super) use mirror::policies as mirror_policies;
pub(super) use retry::policy as retry_policy;
use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_filters::http::{FilterFactory, HeaderKey};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

pub use coverage::COVERAGE;

use super::cluster::values;
use super::values::{wrapped_bool, wrapped_u32};
use crate::route::{DiscoveredHost, MirrorPolicy, RouteConfig, RouteTable};

/// The filter whose `typed_per_filter_config` has a type URL.
pub(crate) type Factories<'a> = &'a dyn Fn(&str) -> Option<&'static dyn FilterFactory>;

/// Bytes that a direct response may have, unless the route configuration says otherwise.
const DIRECT_RESPONSE_BYTES: u32 = 4096;

/// What every virtual host and route of one configuration is compiled with, those that are discovered later as well.
pub(crate) struct Common {
    config: Arc<RouteConfig>,
    overrides: overrides::Level,
    mirrors: Arc<[MirrorPolicy]>,
    plugins: specifier::Plugins,
    validate_clusters: bool,
    direct_response_bytes: u32,
}

/// The same, with the filters that may be named.
struct Table<'a> {
    common: &'a Common,
    factories: Factories<'a>,
}

impl Common {
    /// Compiles what is not of one virtual host. Clusters must exist where `validate_clusters` says so, which by default is where
    /// the configuration stands in its connection manager (`inline`): then they are named in the context's needs.
    ///
    /// # Errors
    /// What Envoy refuses, and what is not supported yet.
    pub(crate) fn compile(
        proto: &RouteConfiguration,
        inline: bool,
        factories: Factories<'_>,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let validate_clusters = wrapped_bool(proto.validate_clusters.as_ref(), inline);
        let most_bytes = proto.max_direct_response_body_size_bytes.as_ref();
        Ok(Self {
            config: Arc::new(config(proto, context)?),
            overrides: overrides::level(&proto.typed_per_filter_config, factories, context)?,
            mirrors: mirror::policies(&proto.request_mirror_policies, validate_clusters, context)?.into(),
            plugins: specifier::compile_all(&proto.cluster_specifier_plugins, context)?,
            validate_clusters,
            direct_response_bytes: wrapped_u32(most_bytes, DIRECT_RESPONSE_BYTES),
        })
    }

    /// Compiles the virtual hosts that the route configuration has itself.
    ///
    /// # Errors
    /// As [`Common::compile`].
    pub(crate) fn table(
        &self,
        proto: &RouteConfiguration,
        factories: Factories<'_>,
        context: &mut CompileContext<'_>,
    ) -> Result<RouteTable, FieldError> {
        virtual_host::compile_all(&proto.virtual_hosts, &Table { common: self, factories }, context)
    }

    /// Compiles a virtual host that was discovered.
    ///
    /// # Errors
    /// As [`Common::compile`].
    pub(crate) fn discovered(
        &self,
        proto: &VirtualHost,
        factories: Factories<'_>,
        context: &mut CompileContext<'_>,
    ) -> Result<DiscoveredHost, FieldError> {
        let (host, routes) = virtual_host::compile(proto, &Table { common: self, factories }, context)?;
        Ok(DiscoveredHost::new(&proto.domains, host, routes))
    }
}

/// Compiles a whole route configuration, as [`Common::compile`] and [`Common::table`].
///
/// # Errors
/// As they.
pub(crate) fn compile(
    proto: &RouteConfiguration,
    inline: bool,
    factories: Factories<'_>,
    context: &mut CompileContext<'_>,
) -> Result<RouteTable, FieldError> {
    if inline && proto.vhds.is_some() {
        let reason = "not supported yet: vhds of a route configuration in a scope";
        return Err(context.error_at("vhds", reason));
    }
    Common::compile(proto, inline, factories, context)?.table(proto, factories, context)
}

fn config(proto: &RouteConfiguration, context: &mut CompileContext<'_>) -> Result<RouteConfig, FieldError> {
    let names = &proto.internal_only_headers;
    Ok(RouteConfig {
        name: proto.name.as_str().into(),
        discovers_hosts: proto.vhds.is_some(),
        ignore_port_in_host_matching: proto.ignore_port_in_host_matching,
        ignore_path_parameters: proto.ignore_path_parameters_in_path_matching,
        host_header: (!proto.vhost_header.is_empty()).then(|| HeaderKey::new(&proto.vhost_header)),
        internal_only_headers: headers::names("internal_only_headers", names, context)?,
        request_headers: headers::request(&proto.request_headers_to_add, &proto.request_headers_to_remove, context)?,
        response_headers: headers::response(
            &proto.response_headers_to_add,
            &proto.response_headers_to_remove,
            context,
        )?,
        most_specific_header_mutations_wins: proto.most_specific_header_mutations_wins,
        metadata: values::metadata(proto.metadata.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::testing::{chosen, decide, error, get, table, try_table};
    use crate::route::Outcome;

    const HOST: &str = "name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c}}]";

    #[test]
    fn clusters_are_needed_where_they_are_validated() {
        let needs = |rest: &str| {
            let text = format!(
                "virtual_hosts: [{{name: v, domains: ['*'], routes: [\
                 {{match: {{prefix: /a}}, route: {{cluster: a, request_mirror_policies: [{{cluster: m}}]}}}}, \
                 {{match: {{prefix: /b}}, route: {{cluster_header: x}}}}, \
                 {{match: {{prefix: /}}, route: {{weighted_clusters: {{clusters: [\
                   {{name: w, weight: 1}}, {{cluster_header: x, weight: 1}}]}}}}}}]}}]{rest}"
            );
            try_table(&text, &|_| None).unwrap().1
        };
        assert_eq!(needs(""), ["a", "m", "w"]);
        assert_eq!(needs("\nvalidate_clusters: false"), [""; 0]);
    }

    #[test]
    fn domains_may_occur_once() {
        let hosts = |first: &str, second: &str| {
            error(&format!("virtual_hosts: [{{name: a, domains: [{first}]}}, {{name: b, domains: [x, {second}]}}]"))
        };
        let duplicate =
            "virtual_hosts[1].domains[1]: a domain may occur only once in a route configuration, whatever its case";
        assert_eq!(hosts("a.com", "A.com"), duplicate);
        assert_eq!(hosts("'*.a'", "'*.A'"), duplicate);
        assert_eq!(hosts("'*'", "'*'"), "virtual_hosts[1].domains[1]: only one virtual host may have the domain *");
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_path() {
        assert!(error("vhds: {config_source: {ads: {}}}").starts_with("vhds: not supported yet"));
        let route = |action: &str| {
            error(&format!(
                "virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, {action}}}]}}]"
            ))
        };
        let refused =
            "virtual_hosts[0].routes[0].route.cluster_specifier_plugin: there is no cluster specifier plugin 'x'";
        assert!(route("route: {cluster_specifier_plugin: x}").starts_with(refused));
    }

    #[test]
    fn the_configuration_says_how_hosts_are_found() {
        let table = table(&format!(
            "internal_only_headers: [X-Internal]\nvhost_header: x-host\nignore_port_in_host_matching: true\n\
             virtual_hosts: [{{{}}}, {{name: w, domains: [w], routes: []}}]",
            HOST.replace("'*'", "v")
        ));
        assert_eq!(table.internal_only_headers(), ["x-internal"]);
        assert_eq!(&*chosen(&table, &get("/", &[("x-host", "V:80")])).virtual_host_shared(), "v");
        assert!(matches!(decide(&table, &get("/", &[("x-host", "w")])), Outcome::NoRoute(_)));
        assert!(matches!(decide(&table, &get("/", &[])), Outcome::NoVirtualHost));
    }

    #[test]
    fn tls_may_be_required() {
        let table = table(&format!("virtual_hosts: [{{{HOST}, require_tls: EXTERNAL_ONLY}}]"));
        assert!(matches!(decide(&table, &get("/", &[])), Outcome::RequireTls(_)));
        assert!(matches!(decide(&table, &get("/", &[("x-forwarded-proto", "https")])), Outcome::Route(_)));
    }

    #[test]
    fn virtual_clusters_need_headers() {
        let host = |clusters: &str| format!("virtual_hosts: [{{{HOST}, virtual_clusters: [{clusters}]}}]");
        let refused = "virtual_hosts[0].virtual_clusters[0].headers: a virtual cluster must define headers";
        assert_eq!(error(&host("{name: a}")), refused);
        let table = table(&host("{name: a, headers: [{name: ':method', string_match: {exact: POST}}]}"));
        let mut head = get("/", &[]);
        let name = |head: &_| {
            let host = std::sync::Arc::clone(&chosen(&table, head).entry.virtual_host);
            super::testing::with_input(head, |input| host.virtual_cluster(input).unwrap().name.clone())
        };
        assert_eq!(name(&head), None);
        head.method = http::Method::POST;
        assert_eq!(name(&head).as_deref(), Some("a"));
    }

    #[test]
    fn every_covered_name_exists_in_the_schema() {
        let mistakes: Vec<_> = super::COVERAGE.iter().flat_map(tidegate_xds::Coverage::mistakes).collect();
        assert!(mistakes.is_empty(), "{mistakes:#?}");
    }
}
