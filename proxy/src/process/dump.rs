//! The sections of a configuration dump, written from what became of every resource.
//! It must not know how a dump is asked for.
//!
//! See <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/admin/v3/config_dump_shared.proto>.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use prost::Message as _;
use serde_json::{Value, json};
use tidegate_xds::pb::envoy::config::listener::v3::Listener;

use crate::config::extensions;
use crate::config::origin::name_of;
use crate::config::store::{
    Absent, Entry, InlineScopes, Kind, Ledger, Refused, ScopeSource, Text, routes_of, scope_of,
};

/// The bootstrap on the wire, and when it was read.
pub(super) struct Bootstrap<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: SystemTime,
    /// As it is told.
    pub(super) node: &'a Value,
}

/// All sections, in Envoy's order; that of endpoints where `static_endpoints` are given.
pub(super) fn sections(bootstrap: Bootstrap<'_>, static_endpoints: Option<Vec<Value>>, ledger: &Ledger) -> Vec<Value> {
    let mut first = section("BootstrapConfigDump", Vec::new());
    first["bootstrap"] = tidegate_xds::to_json("envoy.config.bootstrap.v3.Bootstrap", bootstrap.bytes);
    let node = &mut first["bootstrap"]["node"];
    for field in ["user_agent_name", "user_agent_build_version"] {
        node[field] = bootstrap.node[field].clone();
    }
    if let Some(version) = node.pointer_mut("/user_agent_build_version/version").and_then(Value::as_object_mut) {
        version.retain(|_, part| *part != 0);
    }
    node["extensions"] = extensions::list().into();
    first["last_updated"] = Value::String(timestamp(bootstrap.at));
    let mut sections = vec![first];
    let clusters = Lists::of(ledger, Kind::Cluster, "cluster");
    let lists = vec![
        ("static_clusters", clusters.fixed),
        ("dynamic_active_clusters", clusters.acting),
        ("dynamic_warming_clusters", clusters.others),
    ];
    sections.push(versioned("ClustersConfigDump", ledger.version(Kind::Cluster), lists));
    let extensions = Lists::of(ledger, Kind::Extension, "ecds_filter").dynamic();
    if !extensions.is_empty() {
        sections.push(section("EcdsConfigDump", vec![("ecds_filters", extensions)]));
    }
    if let Some(fixed) = static_endpoints {
        let endpoints = Lists::of(ledger, Kind::Endpoints, "endpoint_config");
        let lists = vec![("static_endpoint_configs", fixed), ("dynamic_endpoint_configs", endpoints.dynamic())];
        sections.push(section("EndpointsConfigDump", lists));
    }
    let (fixed, dynamic): (Vec<_>, Vec<_>) =
        ledger.of_kind(Kind::Listener).into_iter().partition(|(_, entry)| entry.is_static);
    let fixed = fixed.iter().filter_map(|(_, entry)| entry.acting.as_ref().or(entry.warming.as_deref()));
    let lists = vec![
        ("static_listeners", fixed.map(|text| state(Kind::Listener, text, "listener")).collect()),
        ("dynamic_listeners", listeners(&dynamic, &ledger.draining_listeners())),
    ];
    sections.push(versioned("ListenersConfigDump", ledger.version(Kind::Listener), lists));
    sections.push(section("ScopedRoutesConfigDump", scoped_routes(ledger)));
    let routes = Lists::of(ledger, Kind::Route, "route_config");
    let (fixed, mut dynamic) = routes.split();
    dynamic.iter_mut().for_each(|shown| add_hosts(shown, ledger));
    sections
        .push(section("RoutesConfigDump", vec![("static_route_configs", fixed), ("dynamic_route_configs", dynamic)]));
    sections.push(section("SecretsConfigDump", secrets(ledger)));
    sections
}

/// Secrets by where they came from, without what must stay secret.
fn secrets(ledger: &Ledger) -> Vec<(&'static str, Vec<Value>)> {
    let Lists { fixed, acting, others } = Lists::of(ledger, Kind::Secret, "secret");
    let named = |shown: Vec<Value>| -> Vec<Value> {
        let name = |mut shown: Value| {
            shown["name"] = shown["secret"]["name"].clone();
            shown
        };
        shown.into_iter().map(name).collect()
    };
    vec![
        ("static_secrets", named(fixed)),
        ("dynamic_active_secrets", named(acting)),
        ("dynamic_warming_secrets", named(others)),
    ]
}

/// A kind's resources: the bootstrap's, those that act, and those that warm, are waited for or were refused at once.
struct Lists {
    fixed: Vec<Value>,
    acting: Vec<Value>,
    others: Vec<Value>,
}

impl Lists {
    fn of(ledger: &Ledger, kind: Kind, field: &str) -> Self {
        let mut lists = Self { fixed: Vec::new(), acting: Vec::new(), others: Vec::new() };
        for (name, entry) in ledger.of_kind(kind) {
            match (&entry.acting, &entry.warming) {
                (Some(text), None) if entry.is_static => lists.fixed.push(state(kind, text, field)),
                (acting, warming) => {
                    lists.acting.extend(acting.as_ref().map(|text| judged(state(kind, text, field), kind, &entry)));
                    lists.others.extend(warming.as_ref().map(|text| judged(state(kind, text, field), kind, &entry)));
                    if acting.is_none() && warming.is_none() {
                        lists.others.push(judged(json!({ field: unknown(kind, &name) }), kind, &entry));
                    }
                }
            }
        }
        lists
    }

    fn split(self) -> (Vec<Value>, Vec<Value>) {
        (self.fixed, [self.acting, self.others].concat())
    }

    fn dynamic(self) -> Vec<Value> {
        self.split().1
    }
}

/// Scopes that stand in listeners; then those that act of sources.
fn scoped_routes(ledger: &Ledger) -> Vec<(&'static str, Vec<Value>)> {
    let scopes = ledger.of_kind(Kind::Scope);
    let shown = |(source, ScopeSource { name, version, at }): (Arc<str>, ScopeSource)| {
        let mut shown = json!({ "name": name, "version_info": *version });
        let own = scopes.iter().filter(|(entry, _)| scope_of(&source, entry).is_some());
        let acting: Vec<_> =
            own.filter_map(|(_, entry)| entry.acting.as_ref()).map(|text| resource(Kind::Scope, text)).collect();
        if !acting.is_empty() {
            shown["scoped_route_configs"] = acting.into();
        }
        shown["last_updated"] = timestamp(at).into();
        shown
    };
    let inline = |InlineScopes { name, scopes, at }: InlineScopes| {
        let text = |bytes: &Vec<u8>| Text { bytes: bytes.as_slice().into(), version: "".into(), at };
        let scopes: Vec<_> = scopes.iter().map(|bytes| resource(Kind::Scope, &text(bytes))).collect();
        json!({ "name": name, "scoped_route_configs": scopes, "last_updated": timestamp(at) })
    };
    vec![
        ("inline_scoped_route_configs", ledger.all_inline_scopes().into_iter().map(inline).collect()),
        ("dynamic_scoped_route_configs", ledger.scope_sources().into_iter().map(shown).collect()),
    ]
}

/// The virtual hosts of a route configuration that were discovered, behind its own.
fn add_hosts(shown: &mut Value, ledger: &Ledger) {
    let update = shown["route_config"]["name"].as_str().and_then(|routes| {
        let update = ledger.host_update(routes)?;
        Some((routes.to_owned(), update.version, timestamp(update.at)))
    });
    let Some((routes, version, at)) = update else { return };
    let all = ledger.of_kind(Kind::VirtualHost).into_iter();
    let own = all.filter(|(name, _)| routes_of(name) == Some(&routes)).filter_map(|(_, entry)| entry.acting);
    let hosts = own.map(|text| tidegate_xds::to_json(Kind::VirtualHost.message(), &text.bytes));
    match &mut shown["route_config"]["virtual_hosts"] {
        Value::Array(known) => known.extend(hosts),
        none => *none = hosts.collect::<Vec<_>>().into(),
    }
    if shown["last_updated"].as_str().is_none_or(|routes| routes < at.as_str()) {
        shown["version_info"] = (*version).into();
        shown["last_updated"] = at.into();
    }
}

/// Listeners with their states, of which one may have several; then what was refused, each by itself, as in Envoy.
fn listeners(dynamic: &[(Arc<str>, Entry)], draining: &[(Arc<str>, Text)]) -> Vec<Value> {
    let of = |text: &Text| state(Kind::Listener, text, "listener");
    let mut shown: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, entry) in dynamic.iter().filter(|(_, entry)| entry.refused.is_none() || entry.latest().is_some()) {
        let listener = shown.entry(name).or_insert_with(|| json!({ "name": **name }));
        if let Some(text) = &entry.acting {
            listener["active_state"] = of(text);
        }
        if let Some(text) = &entry.warming {
            listener["warming_state"] = of(text);
        }
        listener["client_status"] = client_status(entry).into();
    }
    for (name, text) in draining {
        shown.entry(name).or_insert_with(|| json!({ "name": **name }))["draining_state"] = of(text);
    }
    // One that has an address stands with its name besides.
    let with_address =
        |refused: &Refused| Listener::decode(&*refused.text.bytes).is_ok_and(|one| one.address.is_some());
    for (name, entry) in dynamic {
        if let Some(refused) = entry.refused.as_deref().filter(|refused| with_address(refused)) {
            let listener = shown.entry(name).or_insert_with(|| json!({ "name": **name }));
            listener["error_state"] = error_state(Kind::Listener, refused);
            listener["client_status"] = client_status(entry).into();
        }
    }
    let refused = dynamic.iter().filter_map(|(_, entry)| entry.refused.as_deref());
    let refused = refused.map(|refused| json!({ "error_state": error_state(Kind::Listener, refused) }));
    shown.into_values().chain(refused).collect()
}

/// A resource that nothing is known of but its name.
fn unknown(kind: Kind, name: &str) -> Value {
    let field = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
    json!({ "@type": kind.type_url(), field: name_of(name) })
}

fn state(kind: Kind, text: &Text, field: &str) -> Value {
    let mut shown = json!({});
    if !text.version.is_empty() {
        shown["version_info"] = (*text.version).into();
    }
    shown[field] = resource(kind, text);
    shown["last_updated"] = timestamp(text.at).into();
    shown
}

fn resource(kind: Kind, text: &Text) -> Value {
    let mut resource = json!({ "@type": kind.type_url() });
    if let (Some(into), Value::Object(from)) =
        (resource.as_object_mut(), tidegate_xds::to_json(kind.message(), &text.bytes))
    {
        into.extend(from);
    }
    resource
}

/// With what its source was answered, for what a source brings.
fn judged(mut shown: Value, kind: Kind, entry: &Entry) -> Value {
    if entry.is_static {
        return shown;
    }
    if let Some(refused) = &entry.refused {
        shown["error_state"] = error_state(kind, refused);
    }
    shown["client_status"] = client_status(entry).into();
    shown
}

fn error_state(kind: Kind, refused: &Refused) -> Value {
    let mut shown = json!({
        "failed_configuration": resource(kind, &refused.text),
        "last_update_attempt": timestamp(refused.text.at),
        "details": refused.reason,
    });
    if !refused.text.version.is_empty() {
        shown["version_info"] = (*refused.text.version).into();
    }
    shown
}

/// `envoy.admin.v3.ClientResourceStatus`
fn client_status(entry: &Entry) -> &'static str {
    if entry.refused.is_some() {
        return "NACKED";
    }
    if entry.acting.is_some() || entry.warming.is_some() {
        return "ACKED";
    }
    match entry.absent {
        Absent::Requested => "REQUESTED",
        Absent::Missing => "DOES_NOT_EXIST",
        Absent::TimedOut => "TIMEOUT",
    }
}

/// A section of a dump; empty lists are left out.
fn section(kind: &str, lists: Vec<(&str, Vec<Value>)>) -> Value {
    versioned(kind, None, lists)
}

/// The same of what comes as a whole, with its version.
fn versioned(kind: &str, version: Option<Arc<str>>, lists: Vec<(&str, Vec<Value>)>) -> Value {
    let mut section = json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{kind}") });
    if let Some(version) = version.filter(|version| !version.is_empty()) {
        section["version_info"] = (*version).into();
    }
    for (field, list) in lists {
        if !list.is_empty() {
            section[field] = Value::Array(list);
        }
    }
    section
}

/// RFC 3339 with milliseconds, as protobuf prints timestamps.
fn timestamp(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}
