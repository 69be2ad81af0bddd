//! An etcd in this process, with what its API promises and what may go wrong with it. It must not know who asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::server::connections::{Incoming, Limits};
use crate::server::tls::Tls;
use crate::source::store::etcd::messages::{self, *};

const LIMITS: Limits =
    Limits { most: 1000, head: std::time::Duration::from_secs(60), idle: std::time::Duration::from_secs(600) };

/// The data that members share, and what is wrong with them.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

pub(super) struct State {
    cluster_id: u64,
    revision: i64,
    compacted: i64,
    history: Vec<Event>,
    /// Where there is none, nothing is answered.
    pub(super) leader: bool,
    /// How often that was said.
    pub(super) leaderless: usize,
    /// User and password, once they are asked for.
    pub(super) user: Option<(String, String)>,
    /// The token that is good.
    pub(super) token: String,
    pub(super) max_txn_ops: usize,
    /// What comes between: before the next page, before the next transaction.
    pub(super) before_page: Vec<Write>,
    pub(super) before_txn: Vec<Write>,
    /// Parts of revisions come one by one.
    pub(super) fragments: bool,
    /// Watches of other numbers end.
    life: u64,
    pub(super) ranges: Vec<RangeRequest>,
    pub(super) watches: Vec<i64>,
}

/// A key, and its new value where it is not deleted.
pub(super) type Write = (String, Option<Bytes>);

/// One way in.
pub(super) struct Member {
    pub(super) address: SocketAddr,
    dead: Arc<AtomicBool>,
    changed: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        self.task.abort();
    }
}

impl Member {
    /// Answers nobody any more.
    pub(super) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.changed.send_modify(|count| *count += 1);
    }
}

impl State {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.cluster_id, revision: self.revision })
    }

    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, KeyValue> {
        let mut keys = BTreeMap::new();
        for event in &self.history {
            let pair = event.kv.clone().unwrap();
            if pair.mod_revision > revision {
                break;
            }
            match event.r#type() {
                EventType::Put => keys.insert(pair.key.clone(), pair),
                EventType::Delete => keys.remove(&pair.key),
            };
        }
        keys
    }

    /// All of it in one revision.
    fn write(&mut self, writes: impl IntoIterator<Item = (Vec<u8>, Option<Bytes>)>) {
        self.revision += 1;
        let mod_revision = self.revision;
        self.history.extend(writes.into_iter().map(|(key, value)| Event {
            r#type: if value.is_some() { EventType::Put } else { EventType::Delete }.into(),
            kv: Some(KeyValue { key, mod_revision, value: value.unwrap_or_default() }),
        }));
    }

    pub(super) fn write_all(&mut self, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.write(writes.into_iter().map(|(key, value)| (key.into_bytes(), value)));
        }
    }

    fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        if request.revision > 0 && request.revision < self.compacted {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        if request.revision > 0 {
            let writes = std::mem::take(&mut self.before_page);
            self.write_all(writes);
        }
        self.ranges.push(request.clone());
        let revision = if request.revision > 0 { request.revision } else { self.revision };
        let mut kvs: Vec<KeyValue> = self
            .at(revision)
            .into_values()
            .filter(|pair| within(&pair.key, &request.key, &request.range_end))
            .collect();
        let more = request.limit > 0 && kvs.len() > request.limit as usize;
        if request.count_only {
            kvs.clear();
        } else if more {
            kvs.truncate(request.limit as usize);
        }
        Ok(RangeResponse { header: self.header(), kvs, more })
    }

    fn transact(&mut self, request: TxnRequest) -> Result<TxnResponse, Status> {
        if request.compare.len().max(request.success.len()) > self.max_txn_ops {
            return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
        }
        let writes = std::mem::take(&mut self.before_txn);
        self.write_all(writes);
        let keys = self.at(self.revision);
        let holds = |compare: &Compare| {
            assert_eq!(compare.target(), CompareTarget::Mod);
            let wanted = compare.mod_revision.unwrap();
            let is = |found: i64| match compare.result() {
                CompareResult::Equal => found == wanted,
                CompareResult::Less => found < wanted,
            };
            let mut found = keys.values().filter(|pair| within(&pair.key, &compare.key, &compare.range_end)).peekable();
            if found.peek().is_none() { is(0) } else { found.all(|pair| is(pair.mod_revision)) }
        };
        let succeeded = request.compare.iter().all(holds);
        if succeeded {
            self.write(request.success.into_iter().map(|operation| match operation.request.unwrap() {
                messages::Request::Put(put) => (put.key, Some(put.value)),
                messages::Request::DeleteRange(delete) => (delete.key, None),
            }));
        }
        Ok(TxnResponse { header: self.header(), succeeded })
    }

    fn admit(&mut self, metadata: &MetadataMap) -> Result<(), Status> {
        if !self.leader {
            self.leaderless += 1;
            return Err(Status::unavailable("etcdserver: no leader"));
        }
        let Some(_) = &self.user else { return Ok(()) };
        match metadata.get("token") {
            None => Err(Status::invalid_argument("etcdserver: user name is empty")),
            Some(token) if token == self.token.as_str() => Ok(()),
            Some(_) => Err(Status::unauthenticated("etcdserver: invalid auth token")),
        }
    }

    fn authenticate(&self, request: &AuthenticateRequest) -> Result<AuthenticateResponse, Status> {
        match &self.user {
            None => Err(Status::failed_precondition("etcdserver: authentication is not enabled")),
            Some((name, password)) if (name, password) == (&request.name, &request.password) => {
                Ok(AuthenticateResponse { token: self.token.clone() })
            }
            Some(_) => Err(Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password")),
        }
    }
}

fn within(key: &[u8], from: &[u8], to: &[u8]) -> bool {
    if to.is_empty() { key == from } else { from <= key && key < to }
}

impl Fake {
    pub(super) fn new() -> Self {
        let state = State {
            cluster_id: 1,
            revision: 1,
            compacted: 0,
            history: Vec::new(),
            leader: true,
            leaderless: 0,
            user: None,
            token: "token-1".to_owned(),
            max_txn_ops: 128,
            before_page: Vec::new(),
            before_txn: Vec::new(),
            fragments: false,
            life: 0,
            ranges: Vec::new(),
            watches: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(0) }
    }

    /// Makes something other than it is, and lets everybody see.
    pub(super) fn make<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let made = what(&mut self.state.lock());
        self.changed.send_modify(|count| *count += 1);
        made
    }

    /// In one revision.
    pub(super) fn write(&self, writes: Vec<Write>) {
        self.make(|state| state.write_all(writes));
    }

    pub(super) fn put(&self, key: &str, value: impl Into<Bytes>) {
        self.write(vec![(key.to_owned(), Some(value.into()))]);
    }

    pub(super) fn delete(&self, key: &str) {
        self.write(vec![(key.to_owned(), None)]);
    }

    pub(super) fn value(&self, key: &str) -> Option<Bytes> {
        let state = self.state.lock();
        state.at(state.revision).get(key.as_bytes()).map(|pair| pair.value.clone())
    }

    /// Ends all watches; what follows happens before there are new ones.
    pub(super) fn cut(&self, then: impl FnOnce(&mut State)) {
        self.make(|state| {
            state.life += 1;
            then(state);
        });
    }

    /// The history up to now is gone.
    pub(super) fn compact(state: &mut State) {
        state.compacted = state.revision;
    }

    /// Another etcd, with nothing in it.
    pub(super) fn wipe(state: &mut State) {
        (state.cluster_id, state.revision, state.compacted) = (state.cluster_id + 1, 1, 0);
        state.history.clear();
    }

    pub(super) async fn member(&self) -> Member {
        self.member_with(None).await
    }

    /// One that speaks TLS.
    pub(super) async fn secure_member(&self, tls: Arc<Tls>) -> Member {
        self.member_with(Some(tls)).await
    }

    async fn member_with(&self, tls: Option<Arc<Tls>>) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dead = Arc::new(AtomicBool::new(false));
        let entrance = Entrance { fake: self.clone(), dead: dead.clone() };
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .serve_with_incoming(entrance, Incoming::new(listener, LIMITS, tls))
                .await
                .unwrap();
        });
        Member { address, dead, changed: self.changed.clone(), task }
    }
}

#[derive(Clone)]
struct Entrance {
    fake: Fake,
    dead: Arc<AtomicBool>,
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Entrance {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

impl Entrance {
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        assert_eq!(request.headers()["hasleader"], "true");
        if self.dead.load(Ordering::SeqCst) {
            return Status::unavailable("dead").into_http();
        }
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/etcdserverpb.Auth/Authenticate" => {
                self.unary(request, |state, _, message| state.authenticate(&message)).await
            }
            "/etcdserverpb.KV/Range" => {
                self.unary(request, |state, metadata, message| {
                    state.admit(metadata)?;
                    state.range(message)
                })
                .await
            }
            "/etcdserverpb.KV/Txn" => {
                self.unary(request, |state, metadata, message| {
                    state.admit(metadata)?;
                    state.transact(message)
                })
                .await
            }
            "/etcdserverpb.Watch/Watch" => {
                Grpc::new(ProstCodec::<WatchResponse, WatchRequest>::default()).streaming(Watching(self), request).await
            }
            _ => Status::unimplemented(path).into_http(),
        }
    }

    async fn unary<M, R, F>(self, request: http::Request<Body>, answer: F) -> http::Response<Body>
    where
        M: Message + Default + 'static,
        R: Message + Default + 'static,
        F: Fn(&mut State, &MetadataMap, M) -> Result<R, Status> + Clone + Send + Sync + 'static,
    {
        Grpc::new(ProstCodec::<R, M>::default()).unary(Unary(self.fake, answer), request).await
    }
}

struct Unary<F>(Fake, F);

impl<M, R, F> UnaryService<M> for Unary<F>
where
    M: Message + Default + 'static,
    R: Message + Default + 'static,
    F: Fn(&mut State, &MetadataMap, M) -> Result<R, Status>,
{
    type Response = R;
    type Future = Answer<Result<Response<R>, Status>>;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        let (metadata, _, message) = request.into_parts();
        let answer = self.0.make(|state| (self.1)(state, &metadata, message));
        Box::pin(async move { answer.map(Response::new) })
    }
}

struct Watching(Entrance);

impl StreamingService<WatchRequest> for Watching {
    type Response = WatchResponse;
    type ResponseStream = ReceiverStream<Result<WatchResponse, Status>>;
    type Future = Answer<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let entrance = self.0.clone();
        Box::pin(async move {
            let (metadata, _, mut requests) = request.into_parts();
            let create = requests.message().await?.and_then(|request| request.create_request).unwrap();
            entrance.fake.make(|state| {
                state.watches.push(create.start_revision);
                state.admit(&metadata)
            })?;
            let (sender, receiver) = mpsc::channel(4);
            tokio::spawn(async move {
                let ended = watch(&entrance, create, &sender).await;
                let _ = sender.send(ended).await;
                drop(requests);
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

/// Tells what changes until something ends it.
async fn watch(
    entrance: &Entrance,
    create: WatchCreateRequest,
    to: &mpsc::Sender<Result<WatchResponse, Status>>,
) -> Result<WatchResponse, Status> {
    let mut changed = entrance.fake.changed.subscribe();
    let life = entrance.fake.state.lock().life;
    let header = || entrance.fake.state.lock().header();
    let gone = |_| Status::new(Code::Cancelled, "nobody listens");
    to.send(Ok(WatchResponse { header: header(), created: true, ..WatchResponse::default() })).await.map_err(gone)?;
    let mut from = create.start_revision;
    loop {
        let (events, now, fragments) = {
            let state = entrance.fake.state.lock();
            if !state.leader {
                let cancel_reason = "etcdserver: no leader".to_owned();
                return Ok(WatchResponse { canceled: true, cancel_reason, ..WatchResponse::default() });
            }
            if entrance.dead.load(Ordering::SeqCst) || state.life != life {
                return Err(Status::unavailable("the connection is gone"));
            }
            if from < state.compacted {
                let compact_revision = state.compacted;
                return Ok(WatchResponse { canceled: true, compact_revision, ..WatchResponse::default() });
            }
            let new = |event: &&Event| {
                let pair = event.kv.as_ref().unwrap();
                pair.mod_revision >= from && within(&pair.key, &create.key, &create.range_end)
            };
            (state.history.iter().filter(new).cloned().collect::<Vec<_>>(), state.revision, state.fragments)
        };
        from = now + 1;
        let parts = if fragments { 1 } else { events.len().max(1) };
        let mut parts = events.chunks(parts).peekable();
        while let Some(part) = parts.next() {
            let fragment = parts.peek().is_some();
            let response = WatchResponse { header: header(), fragment, events: part.to_vec(), ..Default::default() };
            to.send(Ok(response)).await.map_err(gone)?;
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = to.closed() => return Err(Status::new(Code::Cancelled, "nobody listens")),
        }
    }
}
