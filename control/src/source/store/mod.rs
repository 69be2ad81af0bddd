//! Resources that are changed one request at a time, or several together. Each change is checked as a whole and says, if its
//! author wishes, which versions it expects to find. It must not know how a request travels.

mod change;
mod etcd;
mod file;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

pub use change::{Change, ChangeError, Changed, Expected};
pub use etcd::{Access, EtcdUrl, EtcdUrlError, Link, Password};

use super::{Elsewhere, Refused, Registries, Source, aside};
use crate::server::{ResourceSet, Sets};

/// What a store tells whoever serves it.
type Told = Result<Arc<Sets>, Refused>;

/// The store.
#[derive(Debug)]
pub struct Store(Kept);

/// Where it keeps what it has.
#[derive(Debug)]
enum Kept {
    File(Arc<file::Kept>),
    Etcd(etcd::Kept),
}

impl Store {
    /// Opens a directory, with what was kept there. `held_elsewhere`: clusters that proxies have by themselves; `registries`: whose
    /// services resources may name.
    ///
    /// # Errors
    /// What is kept there cannot be read, or does not hold together.
    pub fn open(
        directory: &Path,
        held_elsewhere: impl IntoIterator<Item = String>,
        registries: Registries,
    ) -> Result<Arc<Self>, Refused> {
        let elsewhere = Elsewhere { clusters: held_elsewhere.into_iter().collect(), registries };
        Ok(Arc::new(Self(Kept::File(Arc::new(file::Kept::open(directory, elsewhere)?)))))
    }

    /// The same for what etcd keeps, where others change it too. Waits for etcd as long as it cannot be reached.
    ///
    /// # Errors
    /// etcd lets nobody in with what it is shown, or what it keeps cannot be served.
    pub async fn connect(
        url: EtcdUrl,
        access: Access,
        held_elsewhere: impl IntoIterator<Item = String>,
        registries: Registries,
    ) -> Result<Arc<Self>, Refused> {
        let elsewhere = Elsewhere { clusters: held_elsewhere.into_iter().collect(), registries };
        Ok(Arc::new(Self(Kept::Etcd(etcd::Kept::connect(url, access, elsewhere).await?))))
    }

    /// What fills a control plane from here.
    pub fn source(&self) -> impl Source + use<> {
        Following::new(match &self.0 {
            Kept::File(file) => file.told(),
            Kept::Etcd(etcd) => etcd.told(),
        })
    }

    /// All that is there and holds together.
    pub fn set(&self) -> Arc<ResourceSet> {
        match &self.0 {
            Kept::File(file) => file.set(),
            Kept::Etcd(etcd) => etcd.set(),
        }
    }

    /// Makes a change, or says what it would be; what stays as it is is not told.
    ///
    /// # Errors
    /// Nothing has changed then, unless where it is kept did not say what became of the change.
    pub async fn change(&self, change: Change, only_say: bool) -> Result<Vec<Changed>, ChangeError> {
        match &self.0 {
            Kept::File(file) => {
                let file = Arc::clone(file);
                aside(move || file.change(change, only_say)).await
            }
            Kept::Etcd(etcd) => etcd.change(change, only_say).await,
        }
    }

    /// How it stands with what others change too; none where nobody else does.
    pub fn link(&self) -> Option<Link> {
        match &self.0 {
            Kept::File(_) => None,
            Kept::Etcd(etcd) => Some(etcd.link()),
        }
    }
}

/// Gives what a store tells.
struct Following(watch::Receiver<Told>);

impl Following {
    /// What was told last is news too.
    fn new(mut told: watch::Receiver<Told>) -> Self {
        told.mark_changed();
        Self(told)
    }
}

impl Source for Following {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        // An error means that the store is gone: nothing will change any more.
        if self.0.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.0.borrow_and_update().clone()
    }
}
