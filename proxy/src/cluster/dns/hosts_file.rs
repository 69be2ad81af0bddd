//! The system's hosts file, read again when it has changed. It must not know how other names are resolved.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::Family;

/// Static names and their addresses.
pub(super) struct HostsFile {
    path: PathBuf,
    read: Mutex<(Option<SystemTime>, Table)>,
}

type Table = HashMap<String, Vec<IpAddr>>;

impl HostsFile {
    pub(super) fn system() -> Self {
        Self::at("/etc/hosts")
    }

    fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), read: Mutex::default() }
    }

    /// The addresses of a name, if the file has it; empty when it has it in the other family only. `localhost` is known
    /// even where the file does not say so (RFC 6761).
    pub(super) fn lookup(&self, name: &str, family: Family) -> Option<Vec<IpAddr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let found = self.addresses(&name)?;
        Some(found.into_iter().filter(|address| address.is_ipv4() == (family == Family::V4)).collect())
    }

    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let modified = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
        let mut read = self.read.lock();
        if read.0 != modified {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            *read = (modified, parse(&text));
        }
        let own = read.1.get(name).cloned();
        own.or_else(|| (name == "localhost" || name.ends_with(".localhost")).then(loopback))
    }
}

fn loopback() -> Vec<IpAddr> {
    vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]
}

fn parse(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        for name in words {
            let addresses = table.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    // Envoy resolves localhost in both families, whichever the file has.
    if let Some(localhost) = table.get_mut("localhost") {
        for address in loopback() {
            if !localhost.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
                localhost.push(address);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_all_their_lines_addresses() {
        let table = parse("127.0.0.1 localhost\n10.0.0.1 Api.Test api # both\n::9\tapi\n# 1.1.1.1 no\nbroken x\n");
        assert_eq!(table["api"].len(), 2);
        assert_eq!(table["api.test"], ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(table["localhost"].len(), 2);
        assert!(!table.contains_key("no") && !table.contains_key("x"));
    }

    #[test]
    fn localhost_needs_no_file() {
        let hosts = HostsFile::at("/does/not/exist");
        assert_eq!(hosts.lookup("LOCALHOST.", Family::V4).unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts.lookup("example.com", Family::V4), None);
    }
}
