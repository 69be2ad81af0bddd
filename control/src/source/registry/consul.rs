//! Consul's HTTP API: blocking queries of a service's health
//! (<https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service>,
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>).

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::Instant;

use super::client::{self, Client};
use super::instance::{Instance, Place};
use super::json::{self, Instances, Scalar};
use super::{Access, Answer, Cursor, Fault};

const PORT: u16 = 8500;

/// The same for HTTPS.
const SECURE_PORT: u16 = 8501;

/// How long Consul may hold a query; it adds up to a sixteenth of it.
const WAIT: &str = "55s";

/// How often it is asked for one service at most, whatever it does with its index.
const PAUSE: Duration = Duration::from_secs(1);

/// Longer than the wait with what Consul adds.
const LIMIT: Duration = Duration::from_secs(75);

/// How long it may take where it is not to wait.
const SHORT_LIMIT: Duration = Duration::from_secs(10);

/// One Consul agent or server.
#[derive(Debug)]
pub(super) struct Consul {
    client: Client,
    options: BTreeMap<String, String>,
    stale: bool,
    pause: Duration,
}

impl Consul {
    pub(super) fn new(url: &Uri, access: Access) -> Result<Self, String> {
        if !matches!(url.path(), "" | "/") {
            return Err("nothing is expected after the host".to_owned());
        }
        let mut options = client::query(url, &["dc", "tag", "ns", "partition", "filter", "stale"])?;
        let stale = match options.remove("stale").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("stale: expected true or false, found '{other}'")),
        };
        let port = if access.security.is_some() { SECURE_PORT } else { PORT };
        let mut client = Client::new(url, port, access.security)?;
        if let Some(token) = access.token {
            client = client.with_header("x-consul-token", &token)?;
        }
        Ok(Self { client, options, stale, pause: PAUSE })
    }

    /// For tests, which do not want to wait.
    #[cfg(test)]
    pub(super) fn impatient(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// What the service is, or, where it may wait, what it is once it is other than it was at the cursor.
    pub(super) async fn ask(&self, service: &str, cursor: &mut Cursor, waits: bool) -> Result<Answer, Fault> {
        let began = Instant::now();
        let index = cursor.to_string();
        let mut query: Vec<(&str, &str)> = vec![("passing", "true")];
        query.extend(self.options.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        if self.stale {
            query.push(("stale", ""));
        }
        if waits {
            query.extend([("index", index.as_str()), ("wait", WAIT)]);
        }
        let limit = if waits { LIMIT } else { SHORT_LIMIT };
        let path = format!("/v1/health/service/{}", utf8_percent_encode(service, NON_ALPHANUMERIC));
        let answer = self.client.get(&path, &query, limit).await.inspect_err(|_| *cursor = 0)?;
        if header(&answer.headers, "x-consul-knownleader") == Some("false") {
            *cursor = 0;
            return Err(Fault::new("Consul has no leader: what it says may be old"));
        }
        let now = header(&answer.headers, "x-consul-index").and_then(|index| index.parse::<u64>().ok()).unwrap_or(0);
        let before = *cursor;
        // An index that goes back is of another life of the server, as after a restore: begin again.
        *cursor = if now < before { 0 } else { now };
        // Mostly Consul has held the query back for longer than that.
        let holds = self.pause.saturating_sub(began.elapsed());
        if now == before && before > 0 {
            return Ok(Answer::unchanged(holds));
        }
        let entries: Instances<Entry> = answer.read().inspect_err(|_| *cursor = 0)?;
        Ok(Answer::of(entries.0, instance, holds))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What is used of an entry.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    node: Option<Node>,
    service: Option<Service>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    address: Scalar,
    locality: Option<Locality>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    address: Scalar,
    port: Scalar,
    meta: Option<BTreeMap<String, Scalar>>,
    weights: Option<Weights>,
    locality: Option<Locality>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Weights {
    passing: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Locality {
    region: Scalar,
    zone: Scalar,
}

/// One entry; none where it has no IP address and port.
fn instance(entry: Entry) -> Option<Instance> {
    let (node, service) = (entry.node.unwrap_or_default(), entry.service.unwrap_or_default());
    // A service without an address of its own is at its node's.
    let mut addresses = [&service.address, &node.address].into_iter().filter_map(Scalar::text);
    let address = addresses.find(|text| !text.is_empty())?.parse().ok()?;
    let port = service.port.port()?;
    let text = |value: &Scalar| value.text().unwrap_or_default().to_owned();
    let place = service.locality.or(node.locality);
    let weight = service.weights.and_then(|weights| weights.passing.whole()).unwrap_or(1);
    Some(Instance {
        priority: 0,
        place: place.map(|place| Place { region: text(&place.region), zone: text(&place.zone) }).unwrap_or_default(),
        address,
        port,
        weight: u32::try_from(weight).unwrap_or(u32::MAX).max(1),
        healthy: true,
        labels: json::labels(service.meta),
    })
}
