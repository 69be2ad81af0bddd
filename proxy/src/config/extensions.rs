//! Which of Envoy's extensions this build has, as nodes list them: names, categories, types. Read off what is accepted.
//! It must not know who is told.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidegate_filters::{access_log, http, listener, network};

use super::registry::Registry;

/// Where the messages of a category stand, and what their names begin with.
const CATEGORIES: [(&str, &str, &str); 7] = [
    ("access_loggers", "envoy.access_loggers", "envoy.access_loggers"),
    ("clusters", "envoy.clusters", "envoy.cluster"),
    ("filters.http", "envoy.filters.http", "envoy.filters.http"),
    ("filters.listener", "envoy.filters.listener", "envoy.filters.listener"),
    ("filters.network", "envoy.filters.network", "envoy.filters.network"),
    ("load_balancing_policies", "envoy.load_balancing_policies", "envoy.load_balancing_policies"),
    ("retry.host", "envoy.retry_host_predicates", "envoy.retry_host_predicates"),
];

/// Filters that are compiled beside the factories.
const BUILT_IN: [&str; 5] = [
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.network.direct_response.v3.Config",
    "envoy.extensions.filters.network.echo.v3.Echo",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
];

/// Clusters without a message of their own.
const CLUSTERS: [&str; 4] =
    ["envoy.cluster.eds", "envoy.cluster.logical_dns", "envoy.cluster.static", "envoy.cluster.strict_dns"];

/// `envoy.config.core.v3.Node.extensions`, by category, then by name.
pub(crate) fn list() -> Vec<Value> {
    let mut types: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for name in CLUSTERS {
        types.insert(("envoy.clusters", name.to_owned()), Vec::new());
    }
    let http = http::FACTORIES.iter().flat_map(|factory| {
        let own = factory.message();
        std::iter::once(own).chain(factory.override_message().filter(|message| *message != own))
    });
    let network = network::FACTORIES.iter().map(|factory| factory.message());
    let listener = listener::FACTORIES.iter().map(|factory| factory.message());
    let logs = access_log::FACTORIES.iter().map(|factory| factory.message());
    // Those without factories are named by what is accepted of them.
    let others = Registry::built_in().coverage().messages().filter(|message| {
        ["clusters", "load_balancing_policies", "retry.host"].iter().any(|folder| {
            message.strip_prefix("envoy.extensions.").is_some_and(|path| path.starts_with(&format!("{folder}.")))
        })
    });
    for message in http.chain(network).chain(listener).chain(logs).chain(BUILT_IN).chain(others) {
        if let Some(key) = place(message) {
            types.entry(key).or_default().push(message);
        }
    }
    let shown = |((category, name), mut types): ((&str, String), Vec<&str>)| {
        types.sort_unstable();
        let mut shown = json!({ "name": name, "category": category });
        if !types.is_empty() {
            shown["type_urls"] = types.into();
        }
        shown
    };
    types.into_iter().map(shown).collect()
}

/// The category and name of the extension whose message this is.
fn place(message: &str) -> Option<(&'static str, String)> {
    let path = message.strip_prefix("envoy.extensions.")?;
    let (package, message) = path.split_once(".v3.").filter(|(_, message)| !message.contains('.'))?;
    let (folder, name) = package.rsplit_once('.')?;
    let (_, category, prefix) = CATEGORIES.iter().find(|(of, ..)| *of == folder)?;
    let name = match (folder, name, message) {
        (_, "common", _) => return None,
        ("access_loggers", _, "StdoutAccessLog") => "stdout",
        ("access_loggers", _, "StderrAccessLog") => "stderr",
        _ => name,
    };
    Some((category, format!("{prefix}.{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_listed_under_envoys_names() {
        let list = list();
        let of = |name: &str| list.iter().find(|extension| extension["name"] == name).map(|found| &found["category"]);
        for (name, category) in [
            ("envoy.filters.http.cors", "envoy.filters.http"),
            ("envoy.filters.http.router", "envoy.filters.http"),
            ("envoy.filters.network.tcp_proxy", "envoy.filters.network"),
            ("envoy.filters.network.http_connection_manager", "envoy.filters.network"),
            ("envoy.filters.listener.tls_inspector", "envoy.filters.listener"),
            ("envoy.access_loggers.file", "envoy.access_loggers"),
            ("envoy.access_loggers.stdout", "envoy.access_loggers"),
            ("envoy.load_balancing_policies.ring_hash", "envoy.load_balancing_policies"),
            ("envoy.cluster.dns", "envoy.clusters"),
            ("envoy.cluster.eds", "envoy.clusters"),
        ] {
            assert_eq!(of(name).and_then(Value::as_str), Some(category), "{name}");
        }
        assert_eq!(of("envoy.filters.http.lua"), None);
        for message in BUILT_IN {
            assert!(Registry::built_in().coverage().messages().any(|accepted| accepted == message), "{message}");
            assert!(place(message).is_some(), "{message}");
        }
        let cors = list.iter().find(|extension| extension["name"] == "envoy.filters.http.cors").unwrap();
        let types = ["envoy.extensions.filters.http.cors.v3.Cors", "envoy.extensions.filters.http.cors.v3.CorsPolicy"];
        assert_eq!(cors["type_urls"], json!(types));
    }
}
