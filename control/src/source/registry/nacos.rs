//! Nacos' open API: the instances of a service, polled as often as Nacos says (`cacheMillis`)
//! (<https://nacos.io/en/docs/v2/guide/user/open-api/>). A service is `SERVICE` or `GROUP@@SERVICE`.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Uri;
use serde_json::Value;

use super::client::{self, Client};
use super::instance::{Instance, Place};
use super::{Answer, Cursor, Fault};

const PORT: u16 = 8848;

const LIMIT: Duration = Duration::from_secs(10);

/// How often Nacos is asked at least and at most, whatever it says.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Without a group, a service is in this one.
const GROUP: &str = "DEFAULT_GROUP";

/// One Nacos server.
#[derive(Debug)]
pub(super) struct Nacos {
    client: Client,
    path: String,
    options: BTreeMap<String, String>,
    /// As its HTTP interface takes it.
    access_token: Option<String>,
    shortest: Duration,
}

impl Nacos {
    pub(super) fn new(url: &Uri, token: Option<&str>) -> Result<Self, String> {
        let context = match url.path() {
            "" | "/" => "/nacos",
            path => path.trim_end_matches('/'),
        };
        let mut options = client::query(url, &["namespace", "clusters"])?;
        if let Some(namespace) = options.remove("namespace") {
            options.insert("namespaceId".to_owned(), namespace);
        }
        Ok(Self {
            client: Client::new(url, PORT)?,
            path: format!("{context}/v1/ns/instance/list"),
            options,
            access_token: token.map(str::to_owned),
            shortest: SHORTEST,
        })
    }

    /// For tests, which do not want to wait.
    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Self {
        self.shortest = Duration::ZERO;
        self
    }

    pub(super) async fn ask(&self, service: &str, cursor: &mut Cursor) -> Result<Answer, Fault> {
        let (group, name) = service.split_once("@@").unwrap_or((GROUP, service));
        let whole = format!("{group}@@{name}");
        let mut query: Vec<(&str, &str)> = vec![("serviceName", &whole), ("groupName", group)];
        query.extend(self.options.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        query.extend(self.access_token.iter().map(|token| ("accessToken", token.as_str())));
        let answer = self.client.get(&self.path, &query, LIMIT).await?.body;
        let holds = answer["cacheMillis"].as_u64().map_or(LONGEST, Duration::from_millis).clamp(self.shortest, LONGEST);
        let hosts = answer["hosts"].as_array().ok_or_else(|| Fault::new("Nacos answers with no list of hosts"))?;
        let found = hosts.iter().filter_map(instance).collect();
        // Of several servers one may lag behind: what is older than what is known is not taken, as by Nacos' own client.
        let now = answer["lastRefTime"].as_u64().unwrap_or(0);
        if now < *cursor {
            return Ok(Answer { instances: None, holds });
        }
        *cursor = now;
        Ok(Answer { instances: Some(found), holds })
    }
}

/// One instance; none where it takes no requests, or has no address that is one.
fn instance(host: &Value) -> Option<Instance> {
    if host["enabled"] == false {
        return None;
    }
    let weight = host["weight"].as_f64().unwrap_or(1.0);
    if weight <= 0.0 {
        return None;
    }
    let address = host["ip"].as_str().unwrap_or_default();
    let port = host["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let (Ok(address), Some(port)) = (address.parse(), port) else {
        tracing::warn!(address, port = %host["port"], "an instance in Nacos without an IP address and a port is left out");
        return None;
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let labels = host["metadata"].as_object().into_iter().flatten();
    Some(Instance {
        priority: 0,
        place: Place { region: String::new(), zone: text(&host["clusterName"]).unwrap_or_default() },
        address,
        port,
        // Nacos' weights are fractions up to 10,000; Envoy's are whole numbers.
        weight: (weight * 100.0).round().clamp(1.0, 1e6) as u32,
        healthy: host["healthy"] != false,
        labels: labels.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect(),
    })
}
