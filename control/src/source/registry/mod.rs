//! Endpoints out of service registries. An EDS cluster whose service is called `NAME/SERVICE` gets what the registry NAME says of
//! SERVICE; everything else is as the source behind it says. What a registry said last is served on while it cannot be asked.
//! It must not know how a registry is asked.

mod client;
mod consul;
mod dns;
mod follow;
mod instance;
mod json;
mod nacos;
mod registered;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod turns;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use self::consul::Consul;
use self::dns::Dns;
use self::instance::Instance;
use self::nacos::Nacos;
pub use self::registered::Registered;
use self::turns::Turns;
use crate::server::ResourceType;
use crate::server::resource_set::Reference;
use crate::source::Security;

/// What follows a scheme where TLS is spoken.
const SECURE: &str = "+https";

/// Why a registry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("registry '{name}': {reason}")]
pub struct RegistryError {
    /// Of the registry; its URL is not told, since there may be a secret in it.
    pub name: String,
    pub reason: String,
}

/// A service registry, and the name that clusters call it by.
#[derive(Debug)]
pub struct Registry {
    pub(crate) name: Arc<str>,
    kind: Kind,
    turns: Turns,
}

#[derive(Debug)]
enum Kind {
    Consul(Consul),
    Nacos(Nacos),
    Dns(Dns),
}

/// Where a follower of one service stands: what the registry gave to tell the newer from the older; 0: nothing yet.
type Cursor = u64;

/// What a registry answered.
#[derive(Debug)]
struct Answer {
    /// None: nothing is new.
    told: Option<Told>,
    /// How long it holds: then it is asked again.
    holds: Duration,
    /// Whether it says that it is of a time to come.
    ahead: bool,
}

/// What a registry says of a service.
#[derive(Debug)]
struct Told {
    instances: Vec<Instance>,
    /// How many there were that cannot be reached: without an IP address and a port.
    left_out: usize,
}

impl Answer {
    fn unchanged(holds: Duration) -> Self {
        Self { told: None, holds, ahead: false }
    }

    /// `read`: none for what cannot be reached.
    fn of<T>(found: impl IntoIterator<Item = T>, read: impl Fn(T) -> Option<Instance>, holds: Duration) -> Self {
        let (mut instances, mut left_out) = (Vec::new(), 0);
        for found in found {
            match read(found) {
                Some(instance) => instances.push(instance),
                None => left_out += 1,
            }
        }
        Self { told: Some(Told { instances, left_out }), holds, ahead: false }
    }
}

/// Why a registry did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Fault(String);

impl Fault {
    fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// What a registry is shown, and how TLS is spoken with it.
#[derive(Default)]
pub struct Access {
    pub token: Option<String>,
    pub security: Option<Arc<Security>>,
}

impl Registry {
    /// From `NAME=URL`, or from a URL, whose scheme is the name then: `consul://HOST[:PORT][?dc=…&tag=…&stale=true]`,
    /// `nacos://HOST[:PORT][/CONTEXT][?namespace=…&clusters=…]`, `dns://[SERVER[:PORT]]`; with `+https` after the scheme, TLS is
    /// spoken with it.
    ///
    /// # Errors
    /// What is no such URL, or does not go with `access`.
    pub fn parse(text: &str, access: Access) -> Result<Self, RegistryError> {
        let refused = |reason: String| RegistryError { name: name_of(text).to_owned(), reason };
        let (_, url) = parts(text);
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("expected SCHEME://HOST".to_owned()))?;
        let name = name_of(text);
        if name.is_empty() || name.contains('/') {
            return Err(refused("a name without '/' is required".to_owned()));
        }
        if rest.contains('#') {
            return Err(refused("nothing can be done with what follows the '#'".to_owned()));
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            let reason = "no user and no password can stand before the host; --registry-token-file has a token";
            return Err(refused(reason.to_owned()));
        }
        let (scheme, secure) = scheme.strip_suffix(SECURE).map_or((scheme, false), |scheme| (scheme, true));
        match &access.security {
            Some(_) if scheme == "dns" || !secure => {
                return Err(refused(format!(
                    "there are certificates, but no TLS: consul{SECURE}:// or nacos{SECURE}://"
                )));
            }
            None if secure && scheme != "dns" => {
                return Err(refused(format!("{scheme}{SECURE}:// requires --registry-ca {name}=FILE")));
            }
            _ => {}
        }
        let uri = || format!("http://{rest}").parse::<Uri>().map_err(|error| refused(error.to_string()));
        let kind = match scheme {
            "consul" => Consul::new(&uri()?, access).map(Kind::Consul),
            "nacos" => Nacos::new(&uri()?, access).map(Kind::Nacos),
            "dns" if !secure && access.token.is_none() => Dns::new(rest).map(Kind::Dns),
            "dns" => Err("of DNS only names are asked: there is no TLS, and no token".to_owned()),
            other => Err(format!("'{other}' is no kind of registry; there are consul, nacos and dns")),
        };
        Ok(Self { name: name.into(), kind: kind.map_err(refused)?, turns: Turns::default() })
    }

    /// Asks once, and waits a while for something new where the registry lets one.
    async fn ask(&self, service: &str, cursor: &mut Cursor) -> Result<Answer, Fault> {
        // Who knows nothing yet has nothing to wait for.
        let knows = matches!(self.kind, Kind::Consul(_)) && *cursor > 0;
        let turn = if knows { self.turns.any().await } else { self.turns.short().await };
        let mut answer = match &self.kind {
            Kind::Consul(consul) => consul.ask(service, cursor, turn.waits).await?,
            Kind::Nacos(nacos) => nacos.ask(service, cursor).await?,
            Kind::Dns(dns) => dns.ask(service).await?,
        };
        if knows && !turn.waits {
            answer.holds = answer.holds.max(self.turns.rotation());
        }
        Ok(answer)
    }
}

/// The name, where there is one, and the URL.
fn parts(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        // An equals sign may also stand in what follows the question mark.
        Some((name, url)) if !name.contains([':', '/', '?']) => (Some(name), url),
        _ => (None, text),
    }
}

/// What a registry is called by its `NAME=URL` or URL.
pub fn name_of(text: &str) -> &str {
    let (name, url) = parts(text);
    let scheme = || url.split([':', '/', '?', '#', '@']).next().unwrap_or_default();
    name.unwrap_or_else(|| scheme().strip_suffix(SECURE).unwrap_or(scheme()))
}

/// Reads a token: a file's first line.
///
/// # Errors
/// It cannot be read, or there is none in it.
pub fn token(path: &Path) -> Result<String, String> {
    first_line(path, "token")
}

/// Reads a secret: a file's first line. `what` it is called in errors.
pub(super) fn first_line(path: &Path, what: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let first = text.lines().next().map(str::trim).unwrap_or_default();
    if first.is_empty() { Err(format!("there is no {what} in {}", path.display())) } else { Ok(first.to_owned()) }
}

/// The registries by name.
#[derive(Debug, Clone, Default)]
pub struct Registries(BTreeMap<Arc<str>, Arc<Registry>>);

impl Registries {
    /// # Errors
    /// Two of one name.
    pub fn new(registries: Vec<Registry>) -> Result<Self, RegistryError> {
        let mut all = BTreeMap::new();
        for registry in registries {
            let name = Arc::clone(&registry.name);
            if all.insert(Arc::clone(&name), Arc::new(registry)).is_some() {
                let reason = "there is another one of this name; name it with NAME=URL".to_owned();
                return Err(RegistryError { name: name.to_string(), reason });
            }
        }
        Ok(Self(all))
    }

    /// Whether a reference is to endpoints that one of these has.
    pub(super) fn have(&self, reference: &Reference) -> bool {
        reference.to == ResourceType::ENDPOINTS && self.of(&reference.name).is_some()
    }

    /// The registry of a service, and what it is called there.
    fn of<'a>(&self, service: &'a str) -> Option<(&Arc<Registry>, &'a str)> {
        let (name, service) = service.split_once('/')?;
        self.0.get(name).map(|registry| (registry, service)).filter(|_| !service.is_empty())
    }
}
