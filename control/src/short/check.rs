//! What must hold within a file of the short form beside the shapes of its values. It must not know other files.

use std::time::Duration;

use tidegate_xds::FieldPath;

use super::form::{
    AccessLog, Cors, Discovery, File, Headers, Host, Limits, LogFormat, Match, Redirect, Respond, Rewrite, Route,
    Upstream,
};
use super::scalars::Host as Address;
use super::shape::{Faults, Or};

/// The shortest time that a rate may be filled in.
const SHORTEST_FILL: Duration = Duration::from_millis(50);

/// The longest body that a route answers with.
pub(super) const LONGEST_BODY: usize = 64 << 10;

/// Checks a file that has been read.
pub(super) fn file(file: &File, faults: &mut Faults) {
    let root = FieldPath::root();
    limits(file.limits.as_ref(), &root, faults);
    idle_limits(file, faults);
    for (name, Or(listen)) in &file.listen.0 {
        log(listen.access_log.as_ref(), &root.clone().field("listen").key(&name.0), faults);
    }
    log(file.access_log.as_ref(), &root, faults);
    if file.access_log.is_some() && file.listen.0.iter().all(|(_, Or(listen))| listen.access_log.is_some()) {
        faults.push(&root.clone().field("access_log"), "acts only on a listener of this file that says none itself");
    }
    for (name, of) in &file.upstreams.0 {
        upstream(of, &root.clone().field("upstreams").key(&name.0), faults);
    }
    for (index, of) in file.hosts.iter().enumerate() {
        host(of, &root.clone().field("hosts").index(index), faults);
    }
}

fn host(host: &Host, path: &FieldPath, faults: &mut Faults) {
    if host.names.is_empty() {
        faults.push(&path.clone().field("names"), "must not be empty");
    }
    if host.routes.is_empty() {
        faults.push(&path.clone().field("routes"), "must not be empty");
    }
    limits(host.limits.as_ref(), path, faults);
    cors(host.cors.as_ref(), path, faults);
    if host.cors.is_some() && !host.routes.iter().any(|route| route.to.is_some() && route.cors.is_none()) {
        faults.push(&path.clone().field("cors"), "acts only on a route with `to` that says none itself");
    }
    headers(host.request_headers.as_ref(), &path.clone().field("request_headers"), faults);
    if host.request_headers.is_some() && !host.routes.iter().any(|route| route.to.is_some()) {
        faults.push(&path.clone().field("request_headers"), "acts only on a route with `to`");
    }
    headers(host.response_headers.as_ref(), &path.clone().field("response_headers"), faults);
    for (index, of) in host.routes.iter().enumerate() {
        route(of, &path.clone().field("routes").index(index), faults);
    }
    if let Some(index) = host.routes.iter().position(takes_all)
        && host.routes.len() > index + 1
    {
        let reason = format!("is never reached: `routes[{index}]` takes all requests");
        faults.push(&path.clone().field("routes").index(index + 1), reason);
    }
}

/// Whether a limit is said.
type Says = fn(&Limits) -> bool;

/// Each limit by its name.
const LIMITS: [(&str, Says); 2] = [("rate", |limits| limits.rate.is_some()), ("body", |limits| limits.body.is_some())];

/// What a file limits does nothing where every route has a limit nearer to it.
fn idle_limits(file: &File, faults: &mut Faults) {
    for (field, says) in LIMITS {
        let says = |limits: &Option<Limits>| limits.as_ref().is_some_and(says);
        let is_left = |host: &Host| host.routes.iter().any(|route| !says(&route.limits));
        let mut tell = |path: FieldPath, whom: &str| {
            let reason = format!("acts only on a {whom} that has none of its own, and there is none");
            faults.push(&path.field("limits").field(field), reason);
        };
        if says(&file.limits) && !file.hosts.iter().any(|host| !says(&host.limits) && is_left(host)) {
            tell(FieldPath::root(), "host");
        }
        for (index, host) in file.hosts.iter().enumerate() {
            if says(&host.limits) && !is_left(host) {
                tell(FieldPath::root().field("hosts").index(index), "route");
            }
        }
    }
}

/// Whether no request gets past a route.
fn takes_all(route: &Route) -> bool {
    let Some(Or(Match { prefix, path, regex, methods, headers, query })) = &route.r#match else { return true };
    prefix.as_ref().is_none_or(|prefix| prefix.0 == "/")
        && path.is_none()
        && regex.is_none()
        && methods.is_empty()
        && headers.0.is_empty()
        && query.0.is_empty()
}

fn route(route: &Route, path: &FieldPath, faults: &mut Faults) {
    let at = |field: &str| path.clone().field(field);
    limits(route.limits.as_ref(), path, faults);
    cors(route.cors.as_ref(), path, faults);
    headers(route.request_headers.as_ref(), &at("request_headers"), faults);
    headers(route.response_headers.as_ref(), &at("response_headers"), faults);
    let prefix = route.r#match.as_ref().is_some_and(|Or(Match { prefix, .. })| prefix.is_some());
    let mut needs_prefix = |needed: bool, field: &str| {
        if needed && !prefix {
            faults.push(&at(field).field("prefix"), "acts only where the route matches by `prefix`");
        }
    };
    needs_prefix(route.rewrite.as_ref().is_some_and(|rewrite| rewrite.prefix.is_some()), "rewrite");
    needs_prefix(route.redirect.as_ref().is_some_and(|redirect| redirect.prefix.is_some()), "redirect");
    if let Some(redirect) = &route.redirect
        && is_idle(redirect)
    {
        faults.push(&at("redirect"), "leads to where it came from: say `scheme`, `host`, `port`, `path` or `prefix`");
    }
    if let Some(Rewrite { prefix: None, path: None, regex: None, with: None, host: None }) = &route.rewrite {
        faults.push(&at("rewrite"), "changes nothing: say `prefix`, `path`, `regex` or `host`");
    }
    if let Some(Rewrite { regex: Some(regex), with: Some(with), .. }) = &route.rewrite
        && let Err(reason) = replacement(with, regex.groups)
    {
        faults.push(&at("rewrite").field("with"), reason);
    }
    if route.respond.as_ref().is_some_and(|respond| respond.body.len() > LONGEST_BODY) {
        faults.push(&at("respond").field("body"), "must be 64 KiB at most");
    }
    if let Some(Respond { status, body }) = &route.respond
        && matches!(status.0, 204 | 304)
        && !body.is_empty()
    {
        faults.push(&at("respond").field("body"), format!("a response with status {} has none", status.0));
    }
    if route.retry.as_ref().is_some_and(|retry| retry.when.is_empty() && retry.statuses.is_empty()) {
        faults.push(&at("retry").field("when"), "without a reason there is no other try");
    }
}

fn is_idle(redirect: &Redirect) -> bool {
    let Redirect { scheme, host, port, path, prefix, status: _, query: _ } = redirect;
    scheme.is_none() && host.is_none() && port.is_none() && path.is_none() && prefix.is_none()
}

/// Whether what replaces a match names only groups that are there.
fn replacement(with: &str, groups: usize) -> Result<(), String> {
    let mut characters = with.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('\\') => {}
                Some(digit) if digit.to_digit(10).is_some_and(|group| group as usize <= groups) => {}
                Some(digit) if digit.is_ascii_digit() => {
                    return Err(format!("`\\{digit}` is none of the {groups} groups of the regular expression"));
                }
                _ => return Err("a `\\` must be followed by the number of a group, or by another".to_owned()),
            },
            (control, _) if control.is_control() => return Err("must be on one line".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

fn log(log: Option<&Or<AccessLog>>, path: &FieldPath, faults: &mut Faults) {
    if let Some(Or(AccessLog { to, format: LogFormat::Json })) = log
        && to.0 == "none"
    {
        faults.push(&path.clone().field("access_log").field("format"), "acts only where there is a log");
    }
}

fn limits(limits: Option<&Limits>, path: &FieldPath, faults: &mut Faults) {
    if let Some(Limits { rate: None, body: None }) = limits {
        faults.push(&path.clone().field("limits"), "limits nothing: say `rate` or `body`");
    }
    if let Some(Limits { rate: Some(rate), .. }) = limits
        && rate.per.0 < SHORTEST_FILL
    {
        faults.push(&path.clone().field("limits").field("rate").field("per"), "must be 50ms at least");
    }
}

fn cors(cors: Option<&Cors>, path: &FieldPath, faults: &mut Faults) {
    let Some(cors) = cors else { return };
    if cors.origins.is_empty() {
        faults.push(&path.clone().field("cors").field("origins"), "must not be empty");
    }
    if cors.max_age.as_ref().is_some_and(|max_age| max_age.0.subsec_millis() > 0) {
        faults.push(&path.clone().field("cors").field("max_age"), "must be whole seconds");
    }
    if cors.credentials && cors.origins.iter().any(|origin| origin.0 == "*") {
        let reason = "any site could act in the name of whoever visits it: name the origins";
        faults.push(&path.clone().field("cors").field("credentials"), reason);
    }
}

fn headers(headers: Option<&Headers>, path: &FieldPath, faults: &mut Faults) {
    let Some(headers) = headers else { return };
    if headers.set.0.is_empty() && headers.add.0.is_empty() && headers.remove.is_empty() {
        faults.push(path, "changes nothing: say `set`, `add` or `remove`");
    }
    // What is there is taken out first.
    for (index, name) in headers.remove.iter().enumerate() {
        if headers.set.0.iter().any(|(set, _)| set == name) {
            faults.push(&path.clone().field("remove").index(index), "does nothing beside `set`, which takes its place");
        }
    }
    let mut refuse = |name: &str, path: FieldPath| {
        if name == "host" {
            faults.push(&path, "a header that routing owns; `rewrite` has a `host`");
        }
    };
    for (field, values) in [("set", &headers.set), ("add", &headers.add)] {
        values.0.iter().for_each(|(name, _)| refuse(&name.0, path.clone().field(field).key(&name.0)));
    }
    for (index, name) in headers.remove.iter().enumerate() {
        refuse(&name.0, path.clone().field("remove").index(index));
    }
}

fn upstream(upstream: &Upstream, path: &FieldPath, faults: &mut Faults) {
    for (index, Or(endpoint)) in upstream.endpoints.iter().enumerate() {
        if let (Discovery::Static, (Address::Name(name), _)) = (upstream.discovery, &endpoint.address.0) {
            let reason = format!("'{name}' is no IP address; names need `discovery: dns`");
            faults.push(&path.clone().field("endpoints").index(index), reason);
        }
    }
}
