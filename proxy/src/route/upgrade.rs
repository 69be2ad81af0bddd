//! Which upgrades a route lets through (`upgrade_configs`). It must not know how one is carried.

use crate::proxy_header::ProxyVersion;

/// One `UpgradeConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Lower case: `websocket`, `connect`, `connect-udp`, ….
    pub kind: Box<[u8]>,
    pub enabled: bool,
}

/// `ConnectConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectConfig {
    /// A POST is a CONNECT too.
    pub allow_post: bool,
    /// A PROXY protocol header goes to the upstream first.
    pub proxy_protocol: Option<ProxyVersion>,
}
