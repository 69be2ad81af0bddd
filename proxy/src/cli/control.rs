//! Flags of `tidegate control`, and of the commands that change what it keeps.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// `tidegate control`.
#[derive(Debug, Clone, Args)]
pub struct ControlFlags {
    /// The directory: files in YAML or JSON, each of one resource, `resources: [...]` or the short form; a directory in it is a
    /// group of nodes. A file stands for a directory with nothing else in it
    #[arg(long, required_unless_present = "store", conflicts_with = "store")]
    pub source: Option<PathBuf>,
    /// Where resources are kept that `tidegate apply` and the admin interface change: a directory, or, for several replicas
    /// together, `etcd://[USER@]HOST[:PORT][,HOST[:PORT]]...[/PREFIX]`, or `etcd+https://...`
    #[arg(long, requires = "admin", value_name = "DIR|URL")]
    pub store: Option<PathBuf>,
    /// A file whose first line is the password of etcd's USER
    #[arg(long, requires = "store", value_name = "FILE")]
    pub store_password_file: Option<PathBuf>,
    /// Whom certificates of `etcd+https://` must come from, PEM; it is read again for new connections when it changes
    #[arg(long, requires = "store", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// The certificate chain that etcd is shown, PEM
    #[arg(long, requires = "store_ca", requires = "store_key", value_name = "FILE")]
    pub store_certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, requires = "store_certificate", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
    /// Where proxies come: xDS over gRPC (aggregated and by type, delta and state of the world), REST, CSDS, LRS
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where people ask: what is served, who is connected, what was refused. Whoever reaches it may read, and change a store,
    /// unless there is a token file; pages of a browser may not
    #[arg(long)]
    pub admin: Option<SocketAddr>,
    /// A file of tokens, one a line: clients, and who asks the admin interface anything but `/ready`, have to send one of them
    /// (`authorization: Bearer TOKEN`)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A certificate chain in PEM: clients are spoken to in TLS alone. It is read again when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Clients have to show a certificate that comes from one of these authorities
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// A service registry: `[NAME=]consul://HOST[:PORT]`, `[NAME=]nacos://HOST[:PORT]` (both in TLS with `+https` before the colon)
    /// or `[NAME=]dns://[SERVER]`; EDS clusters whose service is `NAME/SERVICE` get their endpoints from it; may be given again
    #[arg(long, value_name = "[NAME=]URL")]
    pub registry: Vec<String>,
    /// A file whose first line is the token of a registry; may be given again
    #[arg(long, value_name = "NAME=FILE")]
    pub registry_token_file: Vec<String>,
    /// Whom certificates of a registry must come from, PEM; may be given again, as the two that follow
    #[arg(long, value_name = "NAME=FILE")]
    pub registry_ca: Vec<String>,
    /// The certificate chain that a registry is shown, PEM
    #[arg(long, value_name = "NAME=FILE")]
    pub registry_certificate: Vec<String>,
    /// Its private key
    #[arg(long, value_name = "NAME=FILE")]
    pub registry_key: Vec<String>,
    /// A cluster that proxies have from their bootstrap, which resources may name; may be given again
    #[arg(long, value_name = "NAME")]
    pub bootstrap_cluster: Vec<String>,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
}

/// Where a control plane with a store is.
#[derive(Debug, Clone, Args)]
pub struct StoreFlags {
    /// Where its admin interface listens
    #[arg(long, default_value = "127.0.0.1:18001")]
    pub admin: String,
    /// A file whose first line is a token that it knows
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `tidegate apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyFlags {
    /// Resources in YAML or JSON: one, or `resources: [...]`, or the short form; `-` is what comes on standard input
    #[arg(short, long)]
    pub file: PathBuf,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Only if the version of all that is there is still this one (`tidegate get` shows it)
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate get`.
#[derive(Debug, Clone, Args)]
pub struct GetFlags {
    /// Cluster, ClusterLoadAssignment, Listener, RouteConfiguration, ...
    #[arg(value_name = "TYPE")]
    pub kind: Option<String>,
    /// Its name; all of the type where it is left out
    pub name: Option<String>,
    /// Only what the nodes of this group have; one resource is that of nodes in no group unless it is given
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteFlags {
    /// Cluster, ClusterLoadAssignment, Listener, RouteConfiguration, ...
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Its name
    pub name: String,
    /// Only if this is its version
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffFlags {
    /// Resources in YAML or JSON: one, or `resources: [...]`, or the short form; `-` is what comes on standard input
    #[arg(short, long)]
    pub file: PathBuf,
    #[command(flatten)]
    pub store: StoreFlags,
}
