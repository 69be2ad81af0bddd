//! A connection to one member of an etcd: calls, each within its time, and watches that end when the member has lost its
//! cluster. It must not know what is kept there, nor which other members there are.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Password;
use super::messages::{
    AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::source::Security;
use crate::source::dial::Dialer;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a short answer may take: longer than etcd itself waits for its cluster (5 s and two elections).
const ANSWER: Duration = Duration::from_secs(8);

/// The same for a long one.
const LONG_ANSWER: Duration = Duration::from_secs(30);

/// A member is asked whether it is still there; etcd takes more often than every 5 s for an attack.
const KEEPALIVE: Duration = Duration::from_secs(6);

/// How long it may take to say so.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// The longest message that is read, in bytes.
pub(super) const LONGEST: usize = 64 << 20;

/// Why a member is of no use, or what it has against a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot be reached, or has lost its cluster.
    #[error("{0}")]
    Unreachable(String),
    /// It does not let us in, or not there.
    #[error("{0}")]
    Denied(String),
    /// The token that shows who we are is of no use any more.
    #[error("{0}")]
    Token(String),
    /// What is asked for is no longer in its history.
    #[error("what was asked for is no longer in its history (compacted)")]
    Compacted,
    /// More than it, or we, take at once.
    #[error("{0}")]
    TooMuch(String),
    /// Anything else that it says.
    #[error("{0}")]
    Answer(String),
}

/// Who we are to an etcd.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Password,
}

#[derive(Debug)]
pub(super) struct Session {
    channel: Channel,
    user: Option<User>,
    token: Mutex<Option<AsciiMetadataValue>>,
}

/// A watch that is open for as long as this is held.
#[derive(Debug)]
pub(super) struct Watch {
    responses: Streaming<WatchResponse>,
    /// What etcd is asked ends with this.
    _requests: mpsc::Sender<WatchRequest>,
}

impl Session {
    /// `member`: `HOST:PORT`.
    pub(super) async fn open(member: &str, user: Option<User>, security: Option<Arc<Security>>) -> Result<Self, Fault> {
        let scheme = if security.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{member}"))
            .map_err(|error| Fault::Answer(error.to_string()))?
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let connected = endpoint.connect_with_connector(Dialer::new(security, b"h2", CONNECT)).await;
        let channel = connected.map_err(|error| Fault::Unreachable(format!("cannot connect: {}", chain(&error))))?;
        let session = Self { channel, user, token: Mutex::new(None) };
        session.authenticate().await?;
        Ok(session)
    }

    /// A page of the keys of a range.
    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Fault> {
        let limit = if request.count_only { ANSWER } else { LONG_ANSWER };
        self.call("/etcdserverpb.KV/Range", request, limit).await
    }

    /// A transaction. A [`Fault::Unreachable`] leaves open whether it was made.
    pub(super) async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, Fault> {
        self.call("/etcdserverpb.KV/Txn", request, LONG_ANSWER).await
    }

    /// Watches a range from a revision on.
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Watch, Fault> {
        let (requests, receiver) = mpsc::channel(1);
        // There is room for the first.
        let _ = requests.try_send(WatchRequest { create_request: Some(create) });
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LONGEST);
        let opened = async {
            grpc.ready().await.map_err(|error| Fault::Unreachable(chain(&error)))?;
            let mut request = tonic::Request::new(ReceiverStream::new(receiver));
            self.sign(request.metadata_mut());
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            grpc.streaming(request, path, codec).await.map_err(|status| fault(&status))
        };
        let late = |_| Fault::Unreachable(format!("no answer within {} s", ANSWER.as_secs()));
        let responses = tokio::time::timeout(ANSWER, opened).await.map_err(late)??.into_inner();
        let mut watch = Watch { responses, _requests: requests };
        let first = tokio::time::timeout(ANSWER, watch.next()).await.map_err(late)??;
        if first.created {
            Ok(watch)
        } else {
            Err(Fault::Answer("a watch does not begin with its creation".to_owned()))
        }
    }

    /// A call with its answer. A token that is too old is replaced once: nothing has been done with it then.
    pub(super) async fn call<M, R>(&self, path: &'static str, message: M, limit: Duration) -> Result<R, Fault>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        match self.call_once(path, message.clone(), limit).await {
            Err(Fault::Token(_)) if self.user.is_some() => {
                self.authenticate().await?;
                self.call_once(path, message, limit).await
            }
            answer => answer,
        }
    }

    async fn call_once<M, R>(&self, path: &'static str, message: M, limit: Duration) -> Result<R, Fault>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LONGEST);
        let answered = async {
            grpc.ready().await.map_err(|error| Fault::Unreachable(chain(&error)))?;
            let mut request = tonic::Request::new(message);
            self.sign(request.metadata_mut());
            let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<M, R>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| fault(&status))
        };
        let late = |_| Fault::Unreachable(format!("no answer within {} s", limit.as_secs()));
        tokio::time::timeout(limit, answered).await.map_err(late)?
    }

    /// Gets a token, where there is a user.
    async fn authenticate(&self) -> Result<(), Fault> {
        let Some(user) = &self.user else { return Ok(()) };
        *self.token.lock() = None;
        let request = AuthenticateRequest { name: user.name.clone(), password: user.password.reveal().to_owned() };
        let answer: AuthenticateResponse = self.call_once("/etcdserverpb.Auth/Authenticate", request, ANSWER).await?;
        let unfit = |_| Fault::Answer("the token is none that can be sent".to_owned());
        let mut token: AsciiMetadataValue = answer.token.parse().map_err(unfit)?;
        token.set_sensitive(true);
        *self.token.lock() = Some(token);
        Ok(())
    }

    /// What goes with every call: the token, and that a member without a leader is of no use.
    fn sign(&self, metadata: &mut MetadataMap) {
        metadata.insert("hasleader", AsciiMetadataValue::from_static("true"));
        if let Some(token) = self.token.lock().clone() {
            metadata.insert("token", token);
        }
    }
}

impl Watch {
    /// What is told next.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Fault> {
        let message = self.responses.message().await.map_err(|status| fault(&status))?;
        let response = message.ok_or_else(|| Fault::Unreachable("it ended the watch".to_owned()))?;
        if response.compact_revision > 0 {
            return Err(Fault::Compacted);
        }
        if response.canceled {
            // The reasons are the texts of the calls' errors, without their codes.
            return Err(by_text(&response.cancel_reason).unwrap_or_else(|| {
                Fault::Unreachable(format!("it ended the watch: {}", plain(&response.cancel_reason)))
            }));
        }
        Ok(response)
    }
}

/// What a status means.
fn fault(status: &Status) -> Fault {
    let said = || plain(status.message());
    if let Some(fault) = by_text(status.message()) {
        return fault;
    }
    match status.code() {
        Code::Unauthenticated => Fault::Token(said()),
        Code::PermissionDenied => Fault::Denied(said()),
        // Ours: more than LONGEST. Or the other side's, which has its own.
        Code::OutOfRange => Fault::TooMuch(said()),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
            // A broken connection's own words; the code alone says little.
            let told = with_behind(said(), std::error::Error::source(status));
            Fault::Unreachable(if told.is_empty() { status.code().to_string() } else { told })
        }
        code => Fault::Answer(if said().is_empty() { code.to_string() } else { said() }),
    }
}

/// What is known by its words alone: codes differ from one version to the next, and a cancelled watch has none.
fn by_text(text: &str) -> Option<Fault> {
    let said = || plain(text);
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["required revision has been compacted"]) {
        Some(Fault::Compacted)
    } else if has(&["invalid auth token", "revision of auth store is old"]) {
        Some(Fault::Token(said()))
    } else if has(&["authentication failed", "authentication is not enabled", "permission denied"]) {
        Some(Fault::Denied(said()))
    } else if has(&["user name is empty"]) {
        Some(Fault::Denied("it wants to know who asks: etcd://USER@HOST, and a password".to_owned()))
    } else if has(&["request is too large", "message larger than max", "too many operations in txn"]) {
        Some(Fault::TooMuch(said()))
    } else {
        None
    }
}

/// etcd's own words, short enough for a line.
fn plain(text: &str) -> String {
    text.trim_start_matches("etcdserver: ").chars().filter(|c| !c.is_control()).take(200).collect()
}

/// An error and what lies behind it.
fn chain(error: &dyn std::error::Error) -> String {
    with_behind(error.to_string(), error.source())
}

/// What is said, and what lies behind it, of which each says something new.
fn with_behind(mut told: String, mut behind: Option<&dyn std::error::Error>) -> String {
    while let Some(error) = behind {
        let said = error.to_string();
        if !told.ends_with(&said) {
            told = format!("{told}: {said}");
        }
        behind = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_words_are_understood() {
        let of = |code: Code, text: &str| fault(&Status::new(code, text));
        assert_eq!(of(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"), Fault::Compacted);
        assert!(matches!(of(Code::OutOfRange, "decoded message length too large"), Fault::TooMuch(_)));
        assert!(matches!(of(Code::InvalidArgument, "etcdserver: request is too large"), Fault::TooMuch(_)));
        assert!(matches!(
            of(Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            Fault::TooMuch(_)
        ));
        assert!(matches!(of(Code::Unauthenticated, "etcdserver: invalid auth token"), Fault::Token(_)));
        assert!(matches!(of(Code::InvalidArgument, "etcdserver: revision of auth store is old"), Fault::Token(_)));
        assert!(matches!(of(Code::PermissionDenied, "etcdserver: permission denied"), Fault::Denied(_)));
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        let said = "authentication failed, invalid user ID or password".to_owned();
        assert_eq!(of(Code::InvalidArgument, wrong), Fault::Denied(said));
        assert!(matches!(of(Code::Unavailable, "etcdserver: no leader"), Fault::Unreachable(_)));
        assert!(matches!(of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Fault::Answer(_)));
        assert_eq!(of(Code::Unavailable, "a\nb"), Fault::Unreachable("ab".to_owned()));
    }
}
