//! Consul's HTTP API: blocking queries of a service's health
//! (<https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service>,
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>).

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::time::Instant;

use super::client::{self, Client};
use super::instance::{Instance, Place};
use super::{Answer, Cursor, Fault};

const PORT: u16 = 8500;

/// How long Consul may hold a query; it adds up to a sixteenth of it.
const WAIT: &str = "55s";

/// How often it is asked for one service at most, whatever it does with its index.
const PAUSE: Duration = Duration::from_secs(1);

/// Longer than the wait with what Consul adds.
const LIMIT: Duration = Duration::from_secs(75);

/// One Consul agent or server.
#[derive(Debug)]
pub(super) struct Consul {
    client: Client,
    options: BTreeMap<String, String>,
    stale: bool,
    pause: Duration,
}

impl Consul {
    pub(super) fn new(url: &Uri, token: Option<&str>) -> Result<Self, String> {
        if !matches!(url.path(), "" | "/") {
            return Err("nothing is expected after the host".to_owned());
        }
        let mut options = client::query(url, &["dc", "tag", "ns", "partition", "filter", "stale"])?;
        let stale = match options.remove("stale").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("stale: expected true or false, found '{other}'")),
        };
        let mut client = Client::new(url, PORT)?;
        if let Some(token) = token {
            client = client.with_header("x-consul-token", token)?;
        }
        Ok(Self { client, options, stale, pause: PAUSE })
    }

    /// For tests, which do not want to wait.
    #[cfg(test)]
    pub(super) fn impatient(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Waits until the service is other than it was at the cursor.
    pub(super) async fn ask(&self, service: &str, cursor: &mut Cursor) -> Result<Answer, Fault> {
        let began = Instant::now();
        let index = cursor.to_string();
        let mut query: Vec<(&str, &str)> = vec![("passing", "true")];
        query.extend(self.options.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        if self.stale {
            query.push(("stale", ""));
        }
        if *cursor > 0 {
            query.extend([("index", index.as_str()), ("wait", WAIT)]);
        }
        let path = format!("/v1/health/service/{}", utf8_percent_encode(service, NON_ALPHANUMERIC));
        let answer = self.client.get(&path, &query, LIMIT).await.inspect_err(|_| *cursor = 0)?;
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
            return Ok(Answer { instances: None, holds });
        }
        let entries = answer.body.as_array().ok_or_else(|| Fault::new("Consul answers with no list of instances"))?;
        Ok(Answer { instances: Some(entries.iter().filter_map(instance).collect()), holds })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// One entry; none where it has no address that is one.
fn instance(entry: &Value) -> Option<Instance> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (service, node) = (&entry["Service"], &entry["Node"]);
    // A service without an address of its own is at its node's.
    let address = text(&service["Address"]).or_else(|| text(&node["Address"]))?;
    let port = service["Port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let (Ok(address), Some(port)) = (address.parse(), port) else {
        tracing::warn!(address, port = %service["Port"], "an instance in Consul without an IP address and a port is left out");
        return None;
    };
    let locality = [&service["Locality"], &node["Locality"]].into_iter().find(|locality| locality.is_object());
    let place = locality.map(|locality| Place {
        region: text(&locality["Region"]).unwrap_or_default(),
        zone: text(&locality["Zone"]).unwrap_or_default(),
    });
    let meta = service["Meta"].as_object().into_iter().flatten();
    let weight = service["Weights"]["Passing"].as_u64().unwrap_or(1);
    Some(Instance {
        priority: 0,
        place: place.unwrap_or_default(),
        address,
        port,
        weight: u32::try_from(weight).unwrap_or(u32::MAX).max(1),
        healthy: true,
        labels: meta.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect(),
    })
}
