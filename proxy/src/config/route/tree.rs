//! A virtual host's `matcher`: a tree whose actions are routes and lists of routes. It must not know how trees match.

use std::sync::Arc;

use prost::Name;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::{Inputs, Matcher};
use tidegate_xds::pb::envoy::config::route::v3::{Route, RouteList as RouteListProto};
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::xds::r#type::matcher::v3::Matcher as MatcherProto;
use tidegate_xds::{FieldError, any};

use super::virtual_host::{self, Host};
use crate::route::{Branch, RouteList};

/// The clusters of routes in a tree need not exist, as in Envoy.
const VALIDATE_CLUSTERS: bool = false;

/// Compiles a virtual host's tree.
pub(super) fn compile(
    matcher: &MatcherProto,
    host: &Host<'_>,
    context: &mut CompileContext<'_>,
) -> Result<Matcher<Branch>, FieldError> {
    Matcher::compile(matcher, Inputs::RouteTable, context, &mut |action, context| branch(action, host, context))
}

fn branch(
    action: &TypedExtensionConfig,
    host: &Host<'_>,
    context: &mut CompileContext<'_>,
) -> Result<Branch, FieldError> {
    let place = context.path.to_string().into();
    context.within("typed_config", |context| {
        let config = action.typed_config.clone().unwrap_or_default();
        let routes = match any::type_name(&config.type_url) {
            Some(name) if name == Route::full_name() => {
                let route = any::unpack(&config, &context.path)?;
                RouteList::new(vec![Arc::new(virtual_host::route(&route, host, VALIDATE_CLUSTERS, context)?)])
            }
            Some(name) if name == RouteListProto::full_name() => {
                let list: RouteListProto = any::unpack(&config, &context.path)?;
                virtual_host::list(&list.routes, host, VALIDATE_CLUSTERS, context)?
            }
            _ => return Err(context.error(format!("a Route or a RouteList is required, found {:?}", config.type_url))),
        };
        Ok(Branch { place, routes })
    })
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{decide, error, get, try_table, with_input};
    use crate::route::{Outcome, RouteTable, Trace, route};

    const TYPE: &str = "type.googleapis.com";

    fn table(host: &str) -> RouteTable {
        let text = format!("virtual_hosts: [{{name: v, domains: ['*'], {host}}}]");
        let (table, needs) = try_table(&text, &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(needs.is_empty(), "{needs:?}");
        table
    }

    fn refused(host: &str) -> String {
        error(&format!("virtual_hosts: [{{name: v, domains: ['*'], {host}}}]"))
    }

    fn input(name: &str, field: &str) -> String {
        format!("input: {{name: i, typed_config: {{'@type': {TYPE}/envoy.{name}{field}}}}}")
    }

    fn path() -> String {
        input("type.matcher.v3.HttpRequestHeaderMatchInput", ", header_name: ':path'")
    }

    fn to(kind: &str, fields: &str) -> String {
        format!("action: {{name: a, typed_config: {{'@type': {TYPE}/envoy.config.route.v3.{kind}, {fields}}}}}")
    }

    fn one(cluster: &str) -> String {
        to("Route", &format!("name: {cluster}, match: {{prefix: /}}, route: {{cluster: {cluster}}}"))
    }

    /// The name of the route that a path takes.
    fn taken(table: &RouteTable, path: &str) -> Option<String> {
        match decide(table, &get(path, &[("x", "b")])) {
            Outcome::Route(route) => Some(route.entry.name.to_string()),
            Outcome::NoRoute(_) => None,
            _ => panic!("{path}"),
        }
    }

    #[test]
    fn a_branch_is_a_route_or_a_list_of_routes() {
        let list = to(
            "RouteList",
            "routes: [{name: b, match: {path: /l/b}, route: {cluster: b}}, {name: c, match: {prefix: /l/c}, route: {cluster: c}}]",
        );
        let table = table(&format!(
            "matcher: {{matcher_tree: {{{}, prefix_match_map: {{map: {{/l/: {{{list}}}, /a: {{{}}}}}}}}}, \
             on_no_match: {{{}}}}}",
            path(),
            one("a"),
            to("Route", "name: rest, match: {path: /rest}, route: {cluster: r}"),
        ));
        for (path, expected) in [
            ("/a", Some("a")),
            ("/l/b", Some("b")),
            ("/l/c?x", Some("c")),
            ("/l/d", None),
            ("/rest", Some("rest")),
            ("/", None),
        ] {
            assert_eq!(taken(&table, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_trace_names_the_branch_and_what_failed_in_it() {
        let inner =
            format!("matcher: {{matcher_tree: {{{}, exact_match_map: {{map: {{/x: {{{}}}}}}}}}}}", path(), one("x"));
        let table = table(&format!("matcher: {{on_no_match: {{{inner}}}}}"));
        let traced = |path| {
            let mut trace = Trace::default();
            with_input(&get(path, &[]), |input| route(&table, input, Some(&mut trace)));
            trace
        };
        let at = "virtual_hosts[0].matcher.on_no_match.matcher.matcher_tree.exact_match_map.map[\"/x\"].action";
        assert_eq!((traced("/x").branch.as_deref(), traced("/x").tried.len()), (Some(at), 1));
        assert_eq!((traced("/y").branch, traced("/y").tried.len()), (None, 0));
    }

    #[test]
    fn filter_state_may_be_matched_on_and_is_not_there() {
        let state = input("extensions.matching.common_inputs.network.v3.FilterStateInput", ", key: k");
        let item = |input: &str, on: &str| {
            format!("{{predicate: {{single_predicate: {{{input}, value_match: {{prefix: /}}}}}}, on_match: {{{on}}}}}")
        };
        let table = table(&format!(
            "matcher: {{matcher_list: {{matchers: [{}, {}]}}}}",
            item(&state, &one("state")),
            item(&path(), &one("path")),
        ));
        assert_eq!(taken(&table, "/").as_deref(), Some("path"));
    }

    /// As Envoy 1.40 refuses them.
    #[test]
    fn trees_that_mean_nothing_are_refused() {
        let tree = |input: &str, on: &str| {
            format!("matcher: {{matcher_tree: {{{input}, exact_match_map: {{map: {{a: {{{on}}}}}}}}}}}")
        };
        let query = input("type.matcher.v3.HttpRequestQueryParamMatchInput", ", query_param: q");
        let at = "virtual_hosts[0].matcher.matcher_tree";
        assert_eq!(
            refused(&tree(&query, &one("a"))),
            format!(
                "{at}.input.typed_config: this input cannot be matched on here: {TYPE}/envoy.type.matcher.v3.HttpRequestQueryParamMatchInput"
            )
        );
        assert_eq!(
            refused(&tree(&path(), &to("RouteList", "routes: [{match: {prefix: /}, route: {}}]"))),
            format!(
                "{at}.exact_match_map.map[\"a\"].action.typed_config.routes[0].route: one of `cluster_specifier` is required: `cluster`, `cluster_header`, `weighted_clusters`, `cluster_specifier_plugin`, `inline_cluster_specifier_plugin`"
            )
        );
        let other =
            to("RouteList", "").replace("envoy.config.route.v3.RouteList, ", "envoy.config.route.v3.FilterAction");
        assert_eq!(
            refused(&tree(&path(), &other)),
            format!(
                "{at}.exact_match_map.map[\"a\"].action.typed_config: a Route or a RouteList is required, found \"{TYPE}/envoy.config.route.v3.FilterAction\""
            )
        );
        let both = format!("{}, routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]", tree(&path(), &one("a")));
        assert_eq!(refused(&both), "virtual_hosts[0]: matcher and routes cannot both be set");
    }
}
