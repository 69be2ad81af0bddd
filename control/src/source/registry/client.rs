//! Asks a registry over HTTP, and reads JSON. It must not know what is asked, nor what is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::de::DeserializeOwned;

use super::Fault;
use crate::source::Security;
use crate::source::dial::Dialer;

/// The longest answer, in bytes: thousands of instances.
const LONGEST: usize = 8 << 20;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// One registry's HTTP interface.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool<Dialer, Empty<Bytes>>,
    scheme: &'static str,
    authority: String,
    headers: HeaderMap,
}

/// An answer that says that it is one (2xx).
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    body: Bytes,
    authority: String,
}

impl Answer {
    /// What it says.
    ///
    /// # Errors
    /// It is not JSON, or says something else.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Fault::new(format!("{} does not answer as it should: {error}", self.authority)))
    }
}

impl Client {
    /// `port` where `url` has none; `security` where TLS is spoken.
    ///
    /// # Errors
    /// There is no host in it.
    pub(super) fn new(url: &Uri, port: u16, security: Option<Arc<Security>>) -> Result<Self, String> {
        let host = url.host().filter(|host| !host.is_empty()).ok_or("a host is required")?;
        let authority = format!("{host}:{}", url.port_u16().unwrap_or(port));
        let scheme = if security.is_some() { "https" } else { "http" };
        let pool = Pool::builder(TokioExecutor::new()).build(Dialer::new(security, b"http/1.1", CONNECT));
        Ok(Self { pool, scheme, authority, headers: HeaderMap::new() })
    }

    /// A header that goes with everything that is asked.
    ///
    /// # Errors
    /// A value that no header may have.
    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Result<Self, String> {
        let mut value = HeaderValue::from_str(value).map_err(|_| "the token has characters that no header may have")?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    /// Gets what is at `path` with this query, within `limit`.
    ///
    /// # Errors
    /// Nobody is there, no answer comes in time, it is too long or not a 2xx.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], limit: Duration) -> Result<Answer, Fault> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
        let url = format!("{}://{}{path}?{}", self.scheme, self.authority, pairs.join("&"));
        let mut request = Request::builder().method(Method::GET).uri(url);
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
        }
        let request = request.body(Empty::new()).map_err(Fault::new)?;
        let answered = async {
            let response = self.pool.request(request).await.map_err(|error| Fault::new(chain(&error)))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST).collect().await.map_err(Fault::new)?.to_bytes();
            if !head.status.is_success() {
                let said: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
                return Err(Fault::new(format!("{} says {}: {said}", self.authority, head.status)));
            }
            Ok(Answer { headers: head.headers, body, authority: self.authority.clone() })
        };
        let late = |_| Fault::new(format!("{} does not answer within {} s", self.authority, limit.as_secs()));
        tokio::time::timeout(limit, answered).await.map_err(late)?
    }
}

/// An error and what lies behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        told = format!("{told}: {error}");
        behind = error.source();
    }
    told
}

/// What follows the question mark; keys that are not among `known` are refused.
pub(super) fn query(url: &Uri, known: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !known.contains(&key) {
            return Err(format!("'{key}' is not known; there are {}", known.join(", ")));
        }
        found.insert(key.to_owned(), percent_decode_str(value).decode_utf8_lossy().into_owned());
    }
    Ok(found)
}
