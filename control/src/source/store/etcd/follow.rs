//! Follows an etcd for as long as somebody needs it: reads everything at one revision, then watches from there, at one member
//! after another. It must not know what becomes of what is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::messages::{Event, KeyValue, RangeRequest, ResponseHeader, WatchCreateRequest};
use super::mirror::{MOST_BYTES, Mirror};
use super::session::{Fault, LONGEST, Session, Watch};
use super::{Shared, is_another, refused};
use crate::client::Backoff;
use crate::source::{Refused, random};

/// How many keys are asked for at once, unless they are long.
const PAGE: i64 = 256;

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// No member is tried sooner again.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// What has been followed for so long has worked: the waits begin anew.
const WORKED: Duration = Duration::from_secs(10);

pub(super) struct Follower {
    shared: Arc<Shared>,
    /// Which member's turn it is.
    turn: usize,
    backoff: Backoff,
    /// What is there cannot be told by what changed: everything is to be read.
    read_all: bool,
    /// Since when the member at hand is followed.
    since: Option<Instant>,
    /// Who waits for the first read.
    started: Option<oneshot::Sender<Result<(), Refused>>>,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), LONGEST_WAIT);
        Self { shared, turn: 0, backoff, read_all: true, since: None, started: None }
    }

    /// Never ends by itself, unless the start is impossible; that is told.
    pub(super) async fn run(mut self, started: oneshot::Sender<Result<(), Refused>>) {
        self.started = Some(started);
        let members = self.shared.url.members.clone();
        // There is always one.
        while let Some(member) = members.get(self.turn % members.len().max(1)) {
            let Err(fault) = self.follow(member).await;
            *self.shared.session.lock() = None;
            if let Some(started) = self.started.take_if(|_| matches!(fault, Fault::Denied(_) | Fault::TooMuch(_))) {
                // An error means that nobody waits any longer.
                let _ = started.send(Err(refused(format!("etcd {member}: {fault}"))));
                return;
            }
            self.tell(member, &fault);
            if self.since.take().is_some_and(|since| since.elapsed() >= WORKED) {
                self.backoff.reset();
            }
            match fault {
                // The member is well.
                Fault::Compacted => self.read_all = true,
                Fault::TooMuch(_) => {
                    self.read_all = true;
                    self.turn = self.turn.wrapping_add(1);
                }
                _ => self.turn = self.turn.wrapping_add(1),
            }
            tokio::time::sleep(self.backoff.next(random()).max(SHORTEST_WAIT)).await;
        }
    }

    /// Follows one member until it is of no use.
    async fn follow(&mut self, member: &str) -> Result<std::convert::Infallible, Fault> {
        let session = Arc::new(Session::open(member, self.shared.user.clone(), self.shared.security.clone()).await?);
        if self.read_all || !self.goes_on(&session).await? {
            let range = self.shared.mirror.lock().range();
            let (head, all) = read(&session, range).await?;
            let before = self.shared.mirror.lock().set.clone();
            self.shared.replace(Mirror::read(&self.shared.url.prefix, &before, head, all));
            self.read_all = false;
        }
        let (key, range_end) = self.shared.mirror.lock().range();
        let start_revision = self.shared.mirror.lock().head.revision + 1;
        let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, fragment: true };
        let watch = session.watch(create).await?;
        *self.shared.session.lock() = Some(session);
        self.begun(member);
        self.since = Some(Instant::now());
        self.take(watch).await
    }

    /// Whether what changed since is all that is missing. One that was set up anew knows nothing of it.
    async fn goes_on(&self, session: &Session) -> Result<bool, Fault> {
        let (key, range_end) = self.shared.mirror.lock().range();
        let request = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
        let now = session.range(request).await?.header.unwrap_or_default();
        Ok(!is_another(self.shared.mirror.lock().head, now))
    }

    async fn take(&mut self, mut watch: Watch) -> Result<std::convert::Infallible, Fault> {
        let (mut events, mut bytes) = (Vec::<Event>::new(), 0);
        loop {
            let response = watch.next().await?;
            bytes += response
                .events
                .iter()
                .filter_map(|event| event.kv.as_ref())
                .map(|pair| pair.value.len())
                .sum::<usize>();
            if bytes > LONGEST {
                // Read in pages it may be less.
                self.read_all = true;
                return Err(Fault::TooMuch(format!("more than {} MiB changed at once", LONGEST >> 20)));
            }
            events.extend(response.events);
            if response.fragment {
                continue;
            }
            let head = response.header.unwrap_or_default();
            let too_much = {
                let mut mirror = self.shared.mirror.lock();
                mirror.apply(head, std::mem::take(&mut events));
                mirror.is_too_much()
            };
            bytes = 0;
            if too_much {
                return Err(more_than_is_kept());
            }
            self.shared.publish();
        }
    }

    /// The member is followed.
    fn begun(&mut self, member: &str) {
        let mut link = self.shared.link.lock();
        let revision = *self.shared.revision.borrow();
        if link.fault.take().is_some() || self.started.is_some() {
            tracing::info!(member, revision, "etcd is followed");
        }
        member.clone_into(&mut link.member);
        drop(link);
        if let Some(started) = self.started.take() {
            let first = self.shared.told.borrow().clone().map(drop);
            // An error means that nobody waits any longer, and then this task ends too.
            let _ = started.send(first);
        }
    }

    fn tell(&self, member: &str, fault: &Fault) {
        let text = fault.to_string();
        let mut link = self.shared.link.lock();
        member.clone_into(&mut link.member);
        let (since, known) = match &link.fault {
            Some((known, since)) => (*since, *known == text),
            None => (std::time::Instant::now(), false),
        };
        if !known && self.started.is_some() {
            tracing::warn!(member, fault = text, "etcd cannot be read yet");
        } else if !known {
            tracing::warn!(member, fault = text, "etcd is not followed: what it said last is served");
        }
        link.fault = Some((text, since));
    }
}

/// Everything at one revision.
async fn read(
    session: &Session,
    (mut key, range_end): (Vec<u8>, Vec<u8>),
) -> Result<(ResponseHeader, Vec<KeyValue>), Fault> {
    let (mut head, mut all, mut bytes) = (None::<ResponseHeader>, Vec::<KeyValue>::new(), 0);
    let mut limit = PAGE;
    loop {
        let revision = head.map_or(0, |head| head.revision);
        let request =
            RangeRequest { key: key.clone(), range_end: range_end.clone(), limit, revision, count_only: false };
        let page = match session.range(request).await {
            // What is left in the page may be short enough.
            Err(Fault::TooMuch(_)) if limit > 1 => {
                limit /= 4;
                continue;
            }
            page => page?,
        };
        let head = *head.get_or_insert(page.header.unwrap_or_default());
        bytes += page.kvs.iter().map(|pair| pair.key.len() + pair.value.len()).sum::<usize>();
        if bytes > MOST_BYTES {
            return Err(more_than_is_kept());
        }
        let more = page.more && !page.kvs.is_empty();
        all.extend(page.kvs);
        let Some(last) = all.last().filter(|_| more) else { return Ok((head, all)) };
        key.clone_from(&last.key);
        // The first key after it.
        key.push(0);
    }
}

fn more_than_is_kept() -> Fault {
    Fault::TooMuch(format!("more than {} MiB are kept under the prefix", MOST_BYTES >> 20))
}
