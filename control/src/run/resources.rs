//! Resources over HTTP: read by anybody who may ask, changed where there is a store. Versions are entity tags: `If-Match` names
//! the one that is expected, `If-None-Match: *` expects nothing. It must not know how a change is checked or kept.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use prost::{Message, Name};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::to_json;
use tonic::body::Body;

use super::Plane;
use super::admin::{as_json, text};
use crate::server::resource_set::Version;
use crate::server::{REST, Resource, ResourceSet, ResourceType};
use crate::source::{Change, ChangeError, Changed, Expected, Refused, Store, read};

/// What errors call a body.
const BODY: &str = "body";

/// The longest body that is read.
const MAX_BODY_BYTES: usize = 8 << 20;

/// How many bodies are read at once.
pub(super) const MOST_BODIES: usize = 4;

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a body may be.
const TYPES: [&str; 5] = ["application/json", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];

/// Answers what lies under `/resources`; none: something else was asked for.
pub(super) async fn respond(plane: &Plane, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().trim_start_matches("/resources").trim_start_matches('/').to_owned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let may = match path.contains('/') {
        false if *request.method() == Method::POST => May::DryRun,
        true if reads => May::Group,
        _ => May::Nothing,
    };
    let Options { only_say, group } = match Options::read(request.uri().query(), may) {
        Ok(options) => options,
        Err(problem) => return problem.response(),
    };
    let answer = match (request.method().clone(), path.split_once('/')) {
        (Method::GET | Method::HEAD, None) if path.is_empty() => Ok(as_json(&list(plane))),
        (Method::GET | Method::HEAD, Some((kind, name))) => one(plane, kind, name, group.as_deref()),
        (Method::POST, None) if path.is_empty() => apply(plane, only_say, request).await,
        (Method::PUT, Some((kind, name))) => put(plane, kind, name, request).await,
        (Method::DELETE, Some((kind, name))) => delete(plane, kind, name, request.headers()).await,
        (Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::POST, _) => {
            Err(Problem(StatusCode::NOT_FOUND, "expected /resources, or /resources/TYPE/NAME".to_owned()))
        }
        _ => Err(Problem(StatusCode::METHOD_NOT_ALLOWED, "GET, PUT, DELETE, or POST to /resources".to_owned())),
    };
    answer.unwrap_or_else(Problem::response)
}

struct Problem(StatusCode, String);

impl Problem {
    fn response(self) -> Response<Body> {
        let mut response = text(self.0, &format!("{}\n", self.1));
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// What may stand after the question mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    Nothing,
    DryRun,
    Group,
}

/// What stands there.
#[derive(Debug, Default)]
struct Options {
    /// A change is only to be told.
    only_say: bool,
    /// Whose resource is asked for.
    group: Option<String>,
}

impl Options {
    /// Anything else that is asked for would be done otherwise than meant.
    fn read(query: Option<&str>, may: May) -> Result<Self, Problem> {
        let mut options = Self::default();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            match (may, part, part.strip_prefix("group=")) {
                (May::DryRun, "dry_run" | "dry_run=true", _) => options.only_say = true,
                (May::DryRun, "dry_run=false", _) => options.only_say = false,
                (May::Group, _, Some(group)) => options.group = Some(decoded(group)?),
                _ => {
                    let expected = match may {
                        May::DryRun => "`dry_run`, `dry_run=true` or `dry_run=false`",
                        May::Group => "`group=NAME`",
                        May::Nothing => "nothing",
                    };
                    let reason = format!("expected {expected} after the question mark, found `{part}`");
                    return Err(Problem(StatusCode::BAD_REQUEST, reason));
                }
            }
        }
        Ok(options)
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let status = match &error {
            ChangeError::Conflict(_) => StatusCode::PRECONDITION_FAILED,
            ChangeError::Missing(..) => StatusCode::NOT_FOUND,
            ChangeError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ChangeError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ChangeError::TooMuch(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ChangeError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

fn list(plane: &Plane) -> Value {
    let of = |set: &ResourceSet| -> Vec<Value> {
        let all = ResourceType::all().flat_map(|kind| set.kind(kind).iter());
        all.map(|resource| {
            json!({
                "type": resource.kind.short(),
                "name": &*resource.name,
                "version": resource.version.to_string(),
                "origin": resource.place(None),
            })
        })
        .collect()
    };
    let sets = plane.sets.borrow();
    sets.all().map(|(name, set)| json!({"group": name, "version": set.version(), "resources": of(set)})).collect()
}

/// One resource as the nodes of a group have it, or those that are in none. Keys are not shown.
fn one(plane: &Plane, kind: &str, name: &str, group: Option<&str>) -> Result<Response<Body>, Problem> {
    let (kind, name) = (kind_of(kind)?, decoded(name)?);
    let sets = plane.sets.borrow().clone();
    let group = group.unwrap_or(REST);
    let set = sets.all().find(|(name, _)| *name == group).map(|(_, set)| set);
    let set = set.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("there is no group '{group}'")))?;
    let resource = set.kind(kind).get(&name).ok_or_else(|| ChangeError::Missing(kind, name.into()))?;
    let mut response = as_json(&shown(resource));
    let tag = HeaderValue::try_from(format!("\"{}\"", resource.version));
    response.headers_mut().extend(tag.ok().map(|tag| (ETAG, tag)));
    Ok(response)
}

async fn put(plane: &Plane, kind: &str, name: &str, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (kind, name, expected) = (kind_of(kind)?, decoded(name)?, expected(request.headers())?);
    let store = store(plane)?;
    let resources = body(plane, request).await?;
    let unfit = |reason: String| Problem(StatusCode::UNPROCESSABLE_ENTITY, reason);
    let [resource] = resources.as_slice() else {
        return Err(unfit(format!("expected one resource, found {}", resources.len())));
    };
    if resource.kind != kind || *resource.name != *name {
        return Err(unfit(format!(
            "expected {} '{name}', found {} '{}'",
            kind.short(),
            resource.kind.short(),
            resource.name
        )));
    }
    let change = Change { put: vec![(resource.clone(), expected)], ..Change::default() };
    Ok(told(&store.change(change, false).await?))
}

async fn delete(plane: &Plane, kind: &str, name: &str, headers: &HeaderMap) -> Result<Response<Body>, Problem> {
    let (kind, name, expected) = (kind_of(kind)?, decoded(name)?, expected(headers)?);
    let change = Change { delete: vec![(kind, name.into(), expected)], ..Change::default() };
    Ok(told(&store(plane)?.change(change, false).await?))
}

/// Several together, or, with `?dry_run`, what would become of them. `If-Match` names the version of all that is there.
async fn apply(plane: &Plane, only_say: bool, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let of = tag(request.headers().get(IF_MATCH))?;
    let store = store(plane)?;
    let put = body(plane, request).await?.into_iter().map(|resource| (resource, None)).collect();
    Ok(told(&store.change(Change { put, of, ..Change::default() }, only_say).await?))
}

fn store(plane: &Plane) -> Result<&Store, Problem> {
    let none =
        || Problem(StatusCode::METHOD_NOT_ALLOWED, "resources come from a directory: change its files".to_owned());
    plane.store.as_deref().ok_or_else(none)
}

async fn body(plane: &Plane, request: Request<Body>) -> Result<Vec<Arc<Resource>>, Problem> {
    let problem = |status, reason: String| Problem(status, reason);
    let says_json = content_type(request.headers())? == TYPES[0];
    let busy = |_| problem(StatusCode::SERVICE_UNAVAILABLE, "others send what they change: try again".to_owned());
    let _place = plane.bodies.try_acquire().map_err(busy)?;
    let body = tokio::time::timeout(PATIENCE, Limited::new(request.into_body(), MAX_BODY_BYTES).collect()).await;
    let body = body.map_err(|_| problem(StatusCode::REQUEST_TIMEOUT, "the body did not come to its end".to_owned()))?;
    let too_long = |_| {
        let reason = format!("the body could not be read, or has more than {MAX_BODY_BYTES} bytes");
        problem(StatusCode::PAYLOAD_TOO_LARGE, reason)
    };
    let body = body.map_err(too_long)?.to_bytes();
    // What is large takes its time: others are not to wait for it.
    let reading = tokio::task::spawn_blocking(move || parse(says_json, &body)).await;
    let unread = |_| problem(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read".to_owned());
    reading.map_err(unread)?.map_err(|faults| ChangeError::Refused(Refused { faults }).into())
}

/// What a body says it is: of what a page of another site may send without asking first, nothing is read.
fn content_type(headers: &HeaderMap) -> Result<&str, Problem> {
    let whole = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = whole.split(';').next().unwrap_or_default().trim();
    TYPES.into_iter().find(|known| given.eq_ignore_ascii_case(known)).ok_or_else(|| {
        let reason = format!("expected a body of type application/json or application/yaml, found '{given}'");
        Problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)
    })
}

/// The resources of a body, each once. Not all JSON is YAML: what can be read as JSON is.
fn parse(says_json: bool, body: &[u8]) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    let is_json = says_json || serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let resources = read(BODY, Path::new(if is_json { "body.json" } else { "body.yaml" }), body)?;
    if resources.is_empty() {
        return Err(vec![format!("{BODY}: expected resources, found none")]);
    }
    let mut known = HashMap::new();
    let mut faults = Vec::new();
    for resource in &resources {
        if let Some(before) = known.insert((resource.kind, &resource.name), resource) {
            let (kind, name) = (resource.kind.short(), &resource.name);
            let (here, there) = (resource.place(None), before.place(None));
            faults.push(format!("{here}: there is a {kind} '{name}' already, at {there}"));
        }
    }
    if faults.is_empty() { Ok(resources) } else { Err(faults) }
}

fn expected(headers: &HeaderMap) -> Result<Option<Expected>, Problem> {
    match (tag(headers.get(IF_MATCH))?.as_deref(), tag(headers.get(IF_NONE_MATCH))?.as_deref()) {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(Expected::Nothing)),
        (Some("*"), None) => Ok(Some(Expected::Anything)),
        (Some(version), None) => {
            Version::parse(version).map(|version| Some(Expected::Version(version))).ok_or_else(|| {
                // Nothing ever had it.
                Problem(StatusCode::PRECONDITION_FAILED, format!("'{version}' is no version"))
            })
        }
        _ => Err(Problem(StatusCode::BAD_REQUEST, "expected If-Match, or If-None-Match: *".to_owned())),
    }
}

fn tag(value: Option<&HeaderValue>) -> Result<Option<String>, Problem> {
    let Some(value) = value else { return Ok(None) };
    let text = value.to_str().map_err(|_| Problem(StatusCode::BAD_REQUEST, "not an entity tag".to_owned()))?;
    Ok(Some(text.trim_matches('"').to_owned()))
}

/// By its short or its full name.
fn kind_of(name: &str) -> Result<ResourceType, Problem> {
    let found = ResourceType::all().find(|kind| kind.short() == name || kind.message() == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = ResourceType::all().map(ResourceType::short).collect();
        Problem(StatusCode::NOT_FOUND, format!("there is no type '{name}', only {}", known.join(", ")))
    })
}

/// A name without percent encoding.
fn decoded(name: &str) -> Result<String, Problem> {
    let unreadable = || Problem(StatusCode::BAD_REQUEST, format!("'{name}' is not a name"));
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(*byte);
        if *byte == b'%' {
            let (code, after) = rest.split_at_checked(2).ok_or_else(unreadable)?;
            let digits =
                std::str::from_utf8(code).ok().filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            *bytes.last_mut().ok_or_else(unreadable)? = code.ok_or_else(unreadable)?;
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| unreadable())
}

fn told(changed: &[Changed]) -> Response<Body> {
    let side = |resource: &Option<Arc<Resource>>| resource.as_deref().map(shown);
    let one = |changed: &Changed| {
        json!({
            "type": changed.kind.short(),
            "name": &*changed.name,
            "version": changed.after.as_ref().map(|resource| resource.version.to_string()),
            "before": side(&changed.before),
            "after": side(&changed.after),
        })
    };
    as_json(&json!({"changed": changed.iter().map(one).collect::<Vec<_>>()}))
}

fn shown(resource: &Resource) -> Value {
    to_json(&Any::full_name(), &resource.body.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let read = |name: &str| decoded(name).map_err(|problem| problem.0);
        assert_eq!(read("outbound%7C80%7c%7Cx/y"), Ok("outbound|80||x/y".to_owned()));
        for bad in ["%", "%4", "%zz", "%ff", "%+1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
