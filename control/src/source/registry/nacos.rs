//! Nacos' open API: the instances of a service, polled as often as Nacos says (`cacheMillis`)
//! (<https://nacos.io/en/docs/v2/guide/user/open-api/>). A service is `SERVICE` or `GROUP@@SERVICE`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::Uri;
use serde::Deserialize;

use super::client::{self, Client};
use super::instance::{Instance, Place};
use super::json::{self, Instances, Scalar};
use super::{Access, Answer, Cursor, Fault};

const PORT: u16 = 8848;

const LIMIT: Duration = Duration::from_secs(10);

/// How often Nacos is asked at least and at most, whatever it says.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// So far Nacos' clock may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(60);

/// Without a group, a service is in this one.
const GROUP: &str = "DEFAULT_GROUP";

/// One Nacos server.
#[derive(Debug)]
pub(super) struct Nacos {
    client: Client,
    path: String,
    options: BTreeMap<String, String>,
    access_token: Option<Token>,
    shortest: Duration,
}

/// What Nacos is to be shown, in the query, as its HTTP interface takes it.
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Nacos {
    pub(super) fn new(url: &Uri, access: Access) -> Result<Self, String> {
        let context = match url.path() {
            "" | "/" => "/nacos",
            path => path.trim_end_matches('/'),
        };
        let mut options = client::query(url, &["namespace", "clusters"])?;
        if let Some(namespace) = options.remove("namespace") {
            options.insert("namespaceId".to_owned(), namespace);
        }
        Ok(Self {
            client: Client::new(url, PORT, access.security)?,
            path: format!("{context}/v1/ns/instance/list"),
            options,
            access_token: access.token.map(Token),
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
        query.extend(self.access_token.iter().map(|token| ("accessToken", token.0.as_str())));
        let said: Said = self.client.get(&self.path, &query, LIMIT).await?.read()?;
        let holds = said.cache_millis.whole().map_or(LONGEST, Duration::from_millis).clamp(self.shortest, LONGEST);
        let said_at = said.last_ref_time.whole().unwrap_or(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = age(said_at, *cursor, now);
        match age {
            Age::Old => return Ok(Answer::unchanged(holds)),
            Age::New => *cursor = said_at,
            Age::Ahead => {}
        }
        let answer = Answer::of(said.hosts.0.into_iter().filter(Host::takes_requests), instance, holds);
        Ok(Answer { ahead: age == Age::Ahead, ..answer })
    }
}

/// How an answer stands to those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Of several servers one may lag behind: what is older than what is known is not taken, as by Nacos' own client.
    Old,
    New,
    /// It says that it is of a time to come. It is taken; but if it were what later ones are compared with, none of them would be.
    Ahead,
}

/// Both times and the cursor are since 1970, in milliseconds but for `now`.
fn age(said_at: u64, cursor: Cursor, now: Duration) -> Age {
    if u128::from(said_at) > (now + AHEAD).as_millis() {
        Age::Ahead
    } else if said_at < cursor {
        Age::Old
    } else {
        Age::New
    }
}

/// What is used of an answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    hosts: Instances<Host>,
    #[serde(default)]
    cache_millis: Scalar,
    #[serde(default)]
    last_ref_time: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Host {
    ip: Scalar,
    port: Scalar,
    weight: Scalar,
    enabled: Scalar,
    healthy: Scalar,
    cluster_name: Scalar,
    metadata: Option<BTreeMap<String, Scalar>>,
}

impl Host {
    fn weight(&self) -> f64 {
        self.weight.number().unwrap_or(1.0)
    }

    fn takes_requests(&self) -> bool {
        self.enabled != Scalar::Bool(false) && self.weight() > 0.0
    }
}

/// One instance; none where it has no IP address and port.
fn instance(host: Host) -> Option<Instance> {
    Some(Instance {
        priority: 0,
        place: Place { region: String::new(), zone: host.cluster_name.text().unwrap_or_default().to_owned() },
        address: host.ip.text()?.parse().ok()?,
        port: host.port.port()?,
        // Nacos' weights are fractions up to 10,000; Envoy's are whole numbers.
        weight: (host.weight() * 100.0).round().clamp(1.0, 1e6) as u32,
        healthy: host.healthy != Scalar::Bool(false),
        labels: json::labels(host.metadata),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_time_to_come_is_no_measure() {
        let age = |said_at, cursor| age(said_at, cursor, Duration::from_millis(1_000_000));
        assert_eq!((age(7, 7), age(6, 7), age(0, 0)), (Age::New, Age::Old, Age::New));
        assert_eq!((age(1_060_000, 7), age(1_060_001, 7), age(u64::MAX, 7)), (Age::New, Age::Ahead, Age::Ahead));
    }
}
