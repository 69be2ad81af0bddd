//! Resources in etcd, where several replicas of a control plane keep them together. Each follows what is there by itself and
//! serves what holds together of it; the same content has the same versions at all of them, so that proxies may move from one
//! to another. What is served outlives etcd. It must not know how a request travels, nor who is served.

mod follow;
mod messages;
mod mirror;
mod session;
#[cfg(test)]
mod tests;
mod url;
mod write;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use self::url::{EtcdUrl, EtcdUrlError, Password};

use self::follow::Follower;
use self::messages::ResponseHeader;
use self::mirror::Mirror;
use self::session::{Session, User};
use super::Told;
use crate::server::{ResourceSet, Sets};
use crate::source::{Elsewhere, Refused, Security};

/// An etcd that is followed.
#[derive(Debug)]
pub(super) struct Kept {
    shared: Arc<Shared>,
    following: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// What the follower writes, and changes read.
#[derive(Debug)]
struct Shared {
    url: EtcdUrl,
    user: Option<User>,
    security: Option<Arc<Security>>,
    elsewhere: Elsewhere,
    mirror: Mutex<Mirror>,
    /// The mirror's, to wait for.
    revision: watch::Sender<i64>,
    /// What held together last.
    served: Mutex<Arc<ResourceSet>>,
    /// Why the etcd that is there now is not believed.
    lost: Mutex<Option<String>>,
    told: watch::Sender<Told>,
    /// Through which changes go; none while no member can be used.
    session: Mutex<Option<Arc<Session>>>,
    link: Mutex<Link>,
    /// Held while a change is made: those of one replica come one after another.
    writing: tokio::sync::Mutex<()>,
}

/// What opens an etcd.
#[derive(Debug, Default)]
pub struct Access {
    /// Of its user.
    pub password: Option<Password>,
    /// How TLS is spoken with it.
    pub security: Option<Arc<Security>>,
}

/// How it stands with an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The member that is asked, or was last.
    pub member: String,
    /// Up to where its history is known.
    pub revision: i64,
    /// Why it cannot be followed, and since when; none while it is.
    pub fault: Option<(String, Instant)>,
}

impl Kept {
    pub(super) async fn connect(url: EtcdUrl, access: Access, elsewhere: Elsewhere) -> Result<Self, Refused> {
        let Access { password, security } = access;
        match (url.secure, &security) {
            (true, None) => return Err(refused("etcd: etcd+https:// requires --store-ca FILE".to_owned())),
            (false, Some(_)) => {
                return Err(refused("etcd: there are certificates, but no TLS: etcd+https://HOST".to_owned()));
            }
            _ => {}
        }
        let user = match (url.user.clone(), password) {
            (Some(name), Some(password)) => Some(User { name, password }),
            (None, None) => None,
            (Some(user), None) => return Err(refused(format!("etcd: a password is required for the user '{user}'"))),
            (None, Some(_)) => return Err(refused("etcd: a password without a user: etcd://USER@HOST".to_owned())),
        };
        if user.is_some() && !url.secure && !url.members.iter().all(|member| is_local(member)) {
            tracing::warn!("the password goes to etcd in clear: there is etcd+https://");
        }
        let shared = Arc::new(Shared::new(url, user, security, elsewhere));
        let (started, first) = oneshot::channel();
        let following = tokio::spawn(Follower::new(shared.clone()).run(started));
        // Whoever does not wait any longer ends it with this.
        let kept = Self { shared, following };
        first.await.unwrap_or_else(|_| Err(refused("etcd: it is not followed any more".to_owned())))?;
        Ok(kept)
    }

    pub(super) fn told(&self) -> watch::Receiver<Told> {
        self.shared.told.subscribe()
    }

    pub(super) fn set(&self) -> Arc<ResourceSet> {
        self.shared.served.lock().clone()
    }

    pub(super) fn link(&self) -> Link {
        self.shared.link()
    }
}

impl Shared {
    fn new(url: EtcdUrl, user: Option<User>, security: Option<Arc<Security>>, elsewhere: Elsewhere) -> Self {
        let link = Link { member: url.members.first().cloned().unwrap_or_default(), revision: 0, fault: None };
        Self {
            mirror: Mutex::new(Mirror::new(&url.prefix)),
            url,
            user,
            security,
            elsewhere,
            revision: watch::Sender::new(0),
            served: Mutex::default(),
            lost: Mutex::default(),
            told: watch::Sender::new(Ok(Arc::default())),
            session: Mutex::default(),
            link: Mutex::new(link),
            writing: tokio::sync::Mutex::default(),
        }
    }

    fn link(&self) -> Link {
        Link { revision: *self.revision.borrow(), ..self.link.lock().clone() }
    }

    /// Takes a new mirror in place of the one before.
    fn replace(&self, read: Mirror) {
        let before = std::mem::replace(&mut *self.mirror.lock(), read);
        let (head, empty) = {
            let mirror = self.mirror.lock();
            (mirror.head, mirror.set.is_empty() && mirror.faults.is_empty())
        };
        if is_another(before.head, head) {
            tracing::warn!(
                before = before.head.revision,
                revision = head.revision,
                "this is another etcd than before, or it has gone back in time"
            );
            let served = self.served.lock().len();
            if empty && served > 0 {
                *self.lost.lock() = Some(format!(
                    "etcd: another one than before, or without its data: nothing is under {} (revision {}, before {}); \
                     the {served} resources from before are served until they are there again, or this process is restarted",
                    self.url.prefix, head.revision, before.head.revision
                ));
            }
        }
        self.publish();
    }

    /// Tells what is there now, if it is something else than was told last: all of it, or why it cannot be served.
    fn publish(&self) {
        let (set, faults, revision) = {
            let mirror = self.mirror.lock();
            (mirror.set.clone(), mirror.faults(), mirror.head.revision)
        };
        let told = self.judge(set, faults);
        self.told.send_if_modified(|last| {
            let same = match (&*last, &told) {
                (Ok(last), Ok(now)) => last.rest.version() == now.rest.version(),
                (Err(last), Err(now)) => last == now,
                _ => false,
            };
            if !same {
                *last = told;
            }
            !same
        });
        // After the rest: who waits for it finds what goes with it.
        self.revision.send_replace(revision);
    }

    fn judge(&self, set: ResourceSet, faults: Vec<String>) -> Told {
        if !faults.is_empty() {
            return Err(Refused { faults });
        }
        let mut served = self.served.lock();
        let mut lost = self.lost.lock();
        if let Some(reason) = &*lost {
            if removes(&served, &set) {
                return Err(refused(reason.clone()));
            }
            *lost = None;
        }
        self.elsewhere.check(&set, &served)?;
        if served.version() != set.version() {
            *served = Arc::new(set);
        }
        Ok(Arc::new(Sets { rest: served.clone(), groups: Vec::new() }))
    }
}

/// Whether a member is on this machine.
fn is_local(member: &str) -> bool {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether an etcd cannot be the one that was asked before.
fn is_another(before: ResponseHeader, now: ResponseHeader) -> bool {
    before.revision > 0 && (before.cluster_id != now.cluster_id || now.revision < before.revision)
}

/// Whether something of what was before is gone.
fn removes(before: &ResourceSet, after: &ResourceSet) -> bool {
    super::change::changes(before, after).iter().any(|changed| changed.after.is_none())
}

fn refused(fault: String) -> Refused {
    Refused { faults: vec![fault] }
}
