//! Hosts and routes of the short form to a route configuration. It must not know which listener asks for it.

use serde_json::{Map, Value, json};

use super::{Served, duration, filters, typed};
use crate::short::form::{
    Cors, Destination, File, Hash, HeaderMatch, Headers, Host, Limits, Match, Redirect, Respond, Retry, RetryOn,
    Rewrite, Route, TextMatch,
};
use crate::short::scalars::{Compared, Path, Pattern};
use crate::short::shape::{Or, Word};

/// The longest body of an answer where a configuration says nothing.
const USUAL_BODY: usize = 4096;

/// The field of a route configuration that its virtual hosts are in.
pub(super) const VIRTUAL_HOSTS: (&str, u32) = ("virtual_hosts", 2);

/// The routes of a listener, under its name, but for its virtual hosts.
pub(super) fn configuration(name: &str, hosts: &[Served<'_>]) -> Value {
    let mut configuration = json!({
        "name": name,
        // The nearest has the last word.
        "most_specific_header_mutations_wins": true,
    });
    let bodies = hosts.iter().flat_map(|served| &served.host.routes).filter_map(|route| route.respond.as_ref());
    if bodies.map(|respond| respond.body.len()).max().is_some_and(|longest| longest > USUAL_BODY) {
        configuration["max_direct_response_body_size_bytes"] = json!(crate::short::check::LONGEST_BODY);
    }
    configuration
}

/// A host of a file; no two hosts of a listener have one of these names.
pub(super) fn virtual_host(host: &Host, file: &File, names: &[&str]) -> Value {
    let name = names.first().copied().unwrap_or_default();
    let routes: Vec<Value> = host.routes.iter().map(|route| self::route(route, host.cors.as_ref())).collect();
    let mut virtual_host = json!({"name": name, "domains": names});
    let (own, all) = (host.limits.clone().unwrap_or_default(), file.limits.clone().unwrap_or_default());
    let limits = Limits { rate: own.rate.or(all.rate), body: own.body.or(all.body) };
    say(&mut virtual_host, filters::said(&limits, None));
    change(&mut virtual_host, "request", host.request_headers.as_ref());
    change(&mut virtual_host, "response", host.response_headers.as_ref());
    virtual_host["routes"] = json!(routes);
    virtual_host
}

fn say(level: &mut Value, said: Map<String, Value>) {
    if !said.is_empty() {
        level["typed_per_filter_config"] = Value::Object(said);
    }
}

fn route(route: &Route, cors_of_host: Option<&Cors>) -> Value {
    let everything = Match::default();
    let matched = route.r#match.as_ref().map_or(&everything, |Or(matched)| matched);
    let mut made = json!({});
    if let Some(name) = &route.name {
        made["name"] = json!(name.0);
    }
    made["match"] = self::matched(matched);
    if let Some(to) = &route.to {
        made["route"] = forward(route, to, matched);
    }
    if let Some(redirect) = &route.redirect {
        made["redirect"] = self::redirect(redirect, matched);
    }
    if let Some(Respond { status, body }) = &route.respond {
        made["direct_response"] = json!({"status": status.0});
        if !body.is_empty() {
            made["direct_response"]["body"] = json!({"inline_string": body});
        }
    }
    // The filter would merge what host and route say field by field: here the nearest counts as a whole.
    let cors = route.cors.as_ref().or(cors_of_host).filter(|_| route.to.is_some());
    let nothing = Limits::default();
    say(&mut made, filters::said(route.limits.as_ref().unwrap_or(&nothing), cors));
    change(&mut made, "request", route.request_headers.as_ref());
    change(&mut made, "response", route.response_headers.as_ref());
    made
}

// ---- What matches ----

fn matched(of: &Match) -> Value {
    let mut made = match (&of.prefix, &of.path, &of.regex) {
        (Some(Path(prefix)), ..) if prefix.ends_with('/') => json!({"prefix": prefix}),
        (Some(Path(prefix)), ..) => json!({"path_separated_prefix": prefix}),
        (_, Some(Path(path)), _) => json!({"path": path}),
        (_, _, Some(regex)) => json!({"safe_regex": {"regex": regex.text}}),
        (None, None, None) => json!({"prefix": "/"}),
    };
    let methods: Vec<&str> = of.methods.iter().map(|method| method.word()).collect();
    let method = match methods[..] {
        [] => None,
        [one] => Some(json!({"exact": one})),
        _ => Some(json!({"safe_regex": {"regex": methods.join("|")}})),
    };
    let method = method.map(|method| json!({"name": ":method", "string_match": method}));
    let headers = of.headers.0.iter().map(|(name, Or(header))| header_match(&name.0, header));
    let headers: Vec<Value> = method.into_iter().chain(headers).collect();
    if !headers.is_empty() {
        made["headers"] = json!(headers);
    }
    let query = of.query.0.iter().map(|(name, Or(text))| {
        let TextMatch { exact, prefix, suffix, contains, regex } = text;
        json!({"name": name.0, "string_match": text_match([exact, prefix, suffix, contains], regex)})
    });
    let query: Vec<Value> = query.collect();
    if !query.is_empty() {
        made["query_parameters"] = json!(query);
    }
    made
}

fn header_match(name: &str, header: &HeaderMatch) -> Value {
    let HeaderMatch { exact, prefix, suffix, contains, regex, present, not } = header;
    let mut made = json!({"name": name});
    match present {
        Some(present) => made["present_match"] = json!(present),
        None => {
            made["string_match"] = text_match([exact, prefix, suffix, contains], regex);
            if *not {
                // As the page says: a header that is not there is not the one that was meant.
                made["treat_missing_header_as_empty"] = json!(true);
            }
        }
    }
    if *not {
        made["invert_match"] = json!(true);
    }
    made
}

fn text_match([exact, prefix, suffix, contains]: [&Option<Compared>; 4], regex: &Option<Pattern>) -> Value {
    let texts = [("exact", exact), ("prefix", prefix), ("suffix", suffix), ("contains", contains)];
    let text = texts.into_iter().find_map(|(field, text)| Some(json!({field: text.as_ref()?.0})));
    text.or_else(|| Some(json!({"safe_regex": {"regex": regex.as_ref()?.text}}))).unwrap_or_default()
}

// ---- What is done ----

fn forward(route: &Route, to: &Destination, matched: &Match) -> Value {
    let mut made = match to {
        Destination::One(name) => json!({"cluster": name.0}),
        Destination::Split(split) => {
            let clusters = split.0.iter().map(|(name, share)| json!({"name": name.0, "weight": share.0}));
            json!({"weighted_clusters": {"clusters": clusters.collect::<Vec<_>>()}})
        }
    };
    for (field, time) in [("timeout", &route.timeout), ("idle_timeout", &route.idle_timeout)] {
        if let Some(time) = time {
            made[field] = json!(duration(time.0));
        }
    }
    if let Some(rewrite) = &route.rewrite {
        let Rewrite { prefix, path, regex, with, host } = rewrite;
        let (field, value) = match (prefix, path, regex, with) {
            (Some(to), ..) => replace_prefix(&matched.prefix, to),
            (_, Some(Path(path)), ..) => ("regex_rewrite", substitution("^/.*$", &literal(path))),
            (_, _, Some(regex), Some(with)) => ("regex_rewrite", substitution(&regex.text, with)),
            _ => ("", Value::Null),
        };
        if !field.is_empty() {
            made[field] = value;
        }
        if let Some(host) = host {
            made["host_rewrite_literal"] = json!(host.0);
        }
    }
    if let Some(retry) = &route.retry {
        made["retry_policy"] = retry_policy(retry);
    }
    if let Some(hash) = &route.hash {
        made["hash_policy"] = json!([hash_policy(hash)]);
    }
    if route.websocket.is_some() {
        made["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
    }
    made
}

fn redirect(redirect: &Redirect, matched: &Match) -> Value {
    let mut made = json!({"response_code": redirect.status.0});
    if let Some(scheme) = redirect.scheme {
        made["scheme_redirect"] = json!(scheme.word());
    }
    if let Some(host) = &redirect.host {
        made["host_redirect"] = json!(host.0);
    }
    if let Some(port) = redirect.port {
        made["port_redirect"] = json!(port.0);
    }
    if let Some(Path(path)) = &redirect.path {
        made["path_redirect"] = json!(path);
    }
    if let Some(to) = &redirect.prefix {
        let (field, value) = replace_prefix(&matched.prefix, to);
        made[field] = value;
    }
    if !redirect.query {
        made["strip_query"] = json!(true);
    }
    made
}

/// One prefix in place of another, with exactly one slash between it and what follows. Plain text in place of plain text
/// would make `//x` of `/api/x` where `/api` becomes `/`.
fn replace_prefix(from: &Option<Path>, Path(to): &Path) -> (&'static str, Value) {
    let from = from.as_ref().map_or("/", |Path(from)| from);
    let bare = to.trim_end_matches('/');
    match (from.ends_with('/'), bare.is_empty()) {
        (true, _) => ("prefix_rewrite", json!(format!("{bare}/"))),
        (false, false) => ("prefix_rewrite", json!(bare)),
        (false, true) => ("regex_rewrite", substitution(&format!("^{}/*", regex::escape(from)), "/")),
    }
}

fn substitution(regex: &str, with: &str) -> Value {
    json!({"pattern": {"regex": regex}, "substitution": with})
}

/// Text that stands for itself in a substitution.
fn literal(text: &str) -> String {
    text.replace('\\', "\\\\")
}

fn retry_policy(retry: &Retry) -> Value {
    const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    let by_status = (!retry.statuses.is_empty()).then_some("retriable-status-codes");
    let on: Vec<&str> = retry.when.iter().map(|on: &RetryOn| on.word()).chain(by_status).collect();
    let mut made = json!({
        "retry_on": on.join(","),
        "num_retries": retry.times.0,
        "retry_back_off": {"base_interval": duration(retry.backoff.0), "max_interval": duration(retry.backoff.0 * 10)},
        "retry_host_predicate": [
            {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": typed(PREVIOUS_HOSTS, json!({}))},
        ],
        "host_selection_retry_max_attempts": 3,
    });
    if by_status.is_some() {
        made["retriable_status_codes"] = retry.statuses.iter().map(|status| status.0).collect();
    }
    if let Some(timeout) = &retry.per_try_timeout {
        made["per_try_timeout"] = json!(duration(timeout.0));
    }
    made
}

fn hash_policy(hash: &Hash) -> Value {
    let Hash { header, cookie, ttl, query, client_address } = hash;
    match (header, cookie, query, client_address) {
        (Some(header), ..) => json!({"header": {"header_name": header.0}}),
        (_, Some(cookie), ..) => {
            let mut made = json!({"name": cookie.0});
            if let Some(ttl) = ttl {
                made["ttl"] = json!(duration(ttl.0));
                made["path"] = json!("/");
            }
            json!({"cookie": made})
        }
        (_, _, Some(query), _) => json!({"query_parameter": {"name": query.0}}),
        (.., Some(_) | None) => json!({"connection_properties": {"source_ip": true}}),
    }
}

/// Changes to the headers of requests or of responses.
fn change(level: &mut Value, of: &str, headers: Option<&Headers>) {
    let Some(Headers { set, add, remove }) = headers else { return };
    let ways = [(set, "OVERWRITE_IF_EXISTS_OR_ADD"), (add, "APPEND_IF_EXISTS_OR_ADD")];
    let added = ways.iter().flat_map(|(values, action)| {
        values.0.iter().map(move |(name, value)| {
            // A `%` would begin an operator of Envoy's format.
            let value = value.0.replace('%', "%%");
            json!({"header": {"key": name.0, "value": value}, "append_action": action, "keep_empty_value": true})
        })
    });
    let added: Vec<Value> = added.collect();
    if !added.is_empty() {
        level[format!("{of}_headers_to_add")] = json!(added);
    }
    if !remove.is_empty() {
        level[format!("{of}_headers_to_remove")] = remove.iter().map(|name| name.0.as_str()).collect();
    }
}
