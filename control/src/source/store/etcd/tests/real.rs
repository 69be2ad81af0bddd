//! The same against the real etcd, where its binary is installed (Debian: `etcd-server`).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use prost::Message;

use super::*;

/// One member on ports of its own, with its data in a directory that goes away with it.
struct Etcd {
    process: Child,
    directory: PathBuf,
    /// For clients, and for other members.
    ports: [u16; 2],
    /// It speaks TLS with clients, and lets in only whom the same authority vouches for.
    certificates: Option<Certificates>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Etcd {
    /// None where there is no etcd.
    fn start(name: &str) -> Option<Self> {
        Self::start_with(name, None)
    }

    fn start_with(name: &str, certificates: Option<Certificates>) -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("tidegate-etcd-{}-{name}", std::process::id()));
        let ports = free_ports();
        match spawn(&directory, ports, certificates.as_ref()) {
            Ok(process) => Some(Self { process, directory, ports, certificates }),
            Err(error) => {
                println!("skipped: etcd cannot be started ({error}); install Debian's etcd-server");
                None
            }
        }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    fn url(&self) -> EtcdUrl {
        let scheme = if self.certificates.is_some() { "etcd+https" } else { "etcd" };
        EtcdUrl::parse(&format!("{scheme}://{}/t", self.address())).unwrap().unwrap()
    }

    fn security(&self) -> Option<Arc<Security>> {
        self.certificates.as_ref().map(|certificates| certificates.client(true))
    }

    /// Somebody else's connection, once it answers.
    async fn session(&mut self) -> Session {
        within(async {
            loop {
                // A port that was free may be somebody else's by now.
                if self.process.try_wait().unwrap().is_some() {
                    self.ports = free_ports();
                    let _ = std::fs::remove_dir_all(&self.directory);
                    self.process = spawn(&self.directory, self.ports, self.certificates.as_ref()).unwrap();
                }
                if let Ok(session) = Session::open(&self.address(), None, self.security()).await
                    && session.range(messages::RangeRequest { key: b"x".to_vec(), ..Default::default() }).await.is_ok()
                {
                    return session;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }
}

fn spawn(directory: &Path, ports: [u16; 2], certificates: Option<&Certificates>) -> std::io::Result<Child> {
    let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let client = if certificates.is_some() { client.replace("http", "https") } else { client };
    let mut command = Command::new("etcd");
    command.args(["--name", "one", "--log-level", "error", "--data-dir"]).arg(directory);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("one={peer}")]);
    if let Some(certificates) = certificates {
        let files = [("--cert-file", "chain"), ("--key-file", "key"), ("--trusted-ca-file", "ca")];
        command.args(files.iter().flat_map(|(flag, file)| [(*flag).into(), certificates.path(file)]));
        command.arg("--client-cert-auth");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Two that nobody listens on, below the range that the kernel hands out: etcd must find its own again when it comes back.
fn free_ports() -> [u16; 2] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |_| loop {
        let number = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let port = 15_000 + u16::try_from(number % 16_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    };
    [0, 1].map(free)
}

/// What tests ask beside what replicas do.
#[derive(Clone, PartialEq, Message)]
struct Compaction {
    #[prost(int64, tag = "1")]
    revision: i64,
    #[prost(bool, tag = "2")]
    physical: bool,
}

/// `AuthUserAddRequest`, and `AuthUserGrantRoleRequest`.
#[derive(Clone, PartialEq, Message)]
struct Names {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    other: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

async fn write(session: &Session, key: &str, value: &str) -> i64 {
    let put = messages::PutRequest { key: key.into(), value: value.to_owned().into() };
    let success = vec![messages::RequestOp { request: Some(messages::Request::Put(put)) }];
    let made = session.transact(messages::TxnRequest { compare: Vec::new(), success }).await.unwrap();
    made.header.unwrap().revision
}

#[tokio::test]
async fn two_replicas_and_the_real_etcd() {
    let Some(mut etcd) = Etcd::start("replicas") else { return };
    let somebody = etcd.session().await;
    let (one, other) = (replica(etcd.url()).await, replica(etcd.url()).await);
    let many = (0..127).map(|number| (cluster(&format!("c{number}"), ""), Some(Expected::Nothing))).collect();
    within(one.change(Change { put: many, ..Change::default() }, false)).await.unwrap();
    until(|| other.set().len() == 127).await;
    assert_eq!(one.set().version(), other.set().version());
    let more = (0..128).map(|number| (cluster(&format!("d{number}"), ""), None)).collect();
    let refused = within(one.change(Change { put: more, ..Change::default() }, false)).await.unwrap_err();
    assert!(matches!(refused, ChangeError::TooMuch(_)), "{refused}");
    // Longer than a request may be; and then longer than a message.
    for length in [1_600_000, 3_000_000] {
        let refused = within(one.change(put(cluster("long", &"x".repeat(length)), None), false)).await.unwrap_err();
        assert!(matches!(refused, ChangeError::TooMuch(_)), "{refused}");
    }
    let version = one.set().kind(ResourceType::CLUSTER).get("c7").unwrap().version;
    let changes = [
        put(cluster("c7", "one"), Some(Expected::Version(version))),
        put(cluster("c7", "other"), Some(Expected::Version(version))),
    ];
    let [first, second] = changes;
    let (first, second) = within(async { tokio::join!(one.change(first, false), other.change(second, false)) }).await;
    assert!(
        matches!((&first, &second), (Ok(_), Err(ChangeError::Conflict(_))) | (Err(ChangeError::Conflict(_)), Ok(_))),
        "{first:?} {second:?}"
    );
    until(|| one.set().version() == other.set().version()).await;

    let served = one.set().version();
    write(&somebody, "/t/Cluster/c8", "name: [").await;
    until(|| refusal(&one).is_some_and(|reason| reason.starts_with("/t/Cluster/c8:"))).await;
    assert_eq!(one.set().version(), served);
    within(other.change(delete("c8"), false)).await.unwrap();
    until(|| refusal(&one).is_none() && one.set().len() == 126).await;
}

#[tokio::test]
async fn the_real_etcd_compacts_and_comes_back() {
    let Some(mut etcd) = Etcd::start("compacts") else { return };
    let somebody = etcd.session().await;
    let replica = replica(etcd.url()).await;
    within(replica.change(put(cluster("a", ""), None), false)).await.unwrap();
    // Whoever begins before what is left of the history is told so.
    let revision =
        write(&somebody, "/t/Cluster/b", std::str::from_utf8(&mirror::written(&cluster("b", ""))).unwrap()).await;
    until(|| replica.set().len() == 2).await;
    let compaction = Compaction { revision, physical: true };
    let _: Nothing = somebody.call("/etcdserverpb.KV/Compact", compaction, Duration::from_secs(10)).await.unwrap();
    let create = messages::WatchCreateRequest { key: b"/t/".to_vec(), start_revision: 1, ..Default::default() };
    let mut watch = somebody.watch(create).await.unwrap();
    assert_eq!(within(watch.next()).await.unwrap_err(), session::Fault::Compacted);
    let old = messages::RangeRequest { key: b"/t/".to_vec(), revision: 1, ..Default::default() };
    assert_eq!(within(somebody.range(old)).await.unwrap_err(), session::Fault::Compacted);

    // Killed, and started again on its data.
    etcd.process.kill().unwrap();
    etcd.process.wait().unwrap();
    until(|| fault(&replica).is_some()).await;
    let unmade = within(replica.change(put(cluster("c", ""), None), false)).await.unwrap_err();
    assert!(matches!(unmade, ChangeError::Unreachable(_)), "{unmade}");
    assert_eq!((replica.set().len(), refusal(&replica)), (2, None));
    etcd.process = spawn(&etcd.directory, etcd.ports, None).unwrap();
    until(|| fault(&replica).is_none()).await;
    within(replica.change(put(cluster("c", ""), None), false)).await.unwrap();
    assert_eq!(replica.set().len(), 3);
}

#[tokio::test]
async fn the_real_etcd_speaks_tls() {
    let Some(mut etcd) = Etcd::start_with("tls", Some(Certificates::new())) else { return };
    let somebody = etcd.session().await;
    let access = |security| Access { password: None, security };
    let replica = within(Kept::connect(etcd.url(), access(etcd.security()), Elsewhere::default())).await.unwrap();
    within(replica.change(put(cluster("a", ""), None), false)).await.unwrap();
    let range = messages::RangeRequest { key: b"/t/Cluster/a".to_vec(), ..Default::default() };
    assert_eq!(within(somebody.range(range.clone())).await.unwrap().kvs.len(), 1);
    let nobody = etcd.certificates.as_ref().unwrap().client(false);
    let asked = async {
        let session = Session::open(&etcd.address(), None, Some(nobody)).await?;
        session.range(range).await
    };
    let fault = within(asked).await.unwrap_err();
    assert!(matches!(fault, session::Fault::Unreachable(_)), "{fault}");
}

#[tokio::test]
async fn the_real_etcd_asks_who_comes() {
    let Some(mut etcd) = Etcd::start("users") else { return };
    let somebody = etcd.session().await;
    let said = within(Kept::connect(with_user(etcd.url()), password("right"), Elsewhere::default())).await.unwrap_err();
    assert!(said.to_string().contains("authentication is not enabled"), "{said}");
    let limit = Duration::from_secs(20);
    for (user, other) in [("root", "secret"), ("me", "right")] {
        let names = Names { user: user.to_owned(), other: other.to_owned() };
        let _: Nothing = somebody.call("/etcdserverpb.Auth/UserAdd", names, limit).await.unwrap();
    }
    let role = |user: &str| Names { user: user.to_owned(), other: "root".to_owned() };
    let _: Nothing = somebody.call("/etcdserverpb.Auth/UserGrantRole", role("root"), limit).await.unwrap();
    let _: Nothing = somebody.call("/etcdserverpb.Auth/AuthEnable", Nothing {}, limit).await.unwrap();

    let told = async |url: EtcdUrl, text: Option<&str>| {
        within(Kept::connect(url, text.map(password).unwrap_or_default(), Elsewhere::default()))
            .await
            .unwrap_err()
            .to_string()
    };
    let said = told(etcd.url(), None).await;
    assert!(said.contains("it wants to know who asks"), "{said}");
    let said = told(with_user(etcd.url()), Some("wrong")).await;
    assert!(said.contains("authentication failed") && !said.contains("wrong"), "{said}");
    // Known, but not let in here.
    let said = told(with_user(etcd.url()), Some("right")).await;
    assert!(said.contains("permission denied"), "{said}");
    let root = EtcdUrl { user: Some("root".to_owned()), ..etcd.url() };
    let replica = within(Kept::connect(root, password("secret"), Elsewhere::default())).await.unwrap();
    within(replica.change(put(cluster("a", ""), None), false)).await.unwrap();
    assert_eq!(replica.set().len(), 1);
}
