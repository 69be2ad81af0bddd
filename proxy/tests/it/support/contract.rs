//! Filters that exist to prove the contract, and a gateway in this process that knows them.
//! `google.protobuf.StringValue` is their configuration: its text says which filter it is.

use std::net::TcpStream;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tidegate::config::bootstrap::{Bootstrap, Overrides as Flags};
use tidegate::config::registry::Registry;
use tidegate::server::{self, Options};
use tidegate_filters::context::{CompileContext, Defaults};
use tidegate_filters::http::body::read_whole;
use tidegate_filters::http::filter::{ServiceCall, Verdict};
use tidegate_filters::http::{
    Body, BodyError, FilterFactory, Frame, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, RequestHead,
    Response, ResponseHead, Step, StreamContext,
};
use tidegate_xds::{Coverage, FieldError, Format};
use tokio::sync::mpsc;

/// The configuration of the contract's filter of this kind.
pub fn filter(kind: &str) -> String {
    format!(
        "{{ name: {kind}, typed_config: {{ \"@type\": type.googleapis.com/google.protobuf.StringValue, value: {kind} }} }}"
    )
}

/// How often streams ended, by filter kind and path.
static COMPLETED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How often `on_complete` ran for this kind and path.
pub fn completed(kind: &str, path: &str) -> usize {
    COMPLETED.lock().unwrap().iter().filter(|entry| **entry == format!("{kind} {path}")).count()
}

/// Serves a bootstrap in this process until the test's process ends; waits until `port` answers.
pub fn serve(bootstrap: &str, port: u16) {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::with_http_filters(&[&Factory]));
    let flags = Flags::default();
    let read = Bootstrap::read_with(&REGISTRY, bootstrap.as_bytes(), Format::Yaml, &flags, Defaults::Envoy);
    let bootstrap = read.unwrap_or_else(|errors| panic!("{errors:?}"));
    let options = Options {
        concurrency: 1,
        defaults: Defaults::Envoy,
        drain_time: Duration::ZERO,
        drain_immediately: true,
        parent_shutdown_time: Duration::ZERO,
        file_flush_interval: Duration::from_secs(10),
        node_address: None,
        admin_address_path: None,
        unknown_dynamic_fields: tidegate::config::files::UnknownDynamicFields::default(),
        snapshot_directory: None,
        command_line: Default::default(),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server::run(bootstrap, options)).unwrap();
    });
    super::gateway::eventually("the gateway listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
}

struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        "google.protobuf.StringValue"
    }
    fn works_upstream(&self) -> bool {
        true
    }
    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage { message: "google.protobuf.StringValue", enforced: &["value"], listed: &[] }]
    }
    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let kind: String = prost::Message::decode(config).map_err(|error| context.error(format!("{error}")))?;
        Ok(Arc::new(Config(kind)))
    }
}

struct Config(String);

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let inner: Box<dyn HttpFilter> = match &*self.0 {
            "echo" => Box::new(Echo(None)),
            "rewrite" => Box::new(Rewrite { refused: false }),
            "reply-to-response" => Box::new(ReplyToResponse),
            "cut-response" => Box::new(CutResponse),
            "mark-attempt" => Box::new(MarkAttempt),
            "choose-again" => Box::new(ChooseAgain),
            "begin-anew" => Box::new(BeginAnew),
            "hold-response" => Box::new(HoldResponse),
            "hints" => Box::new(Hints),
            "fault-in-body" => Box::new(FaultInBody),
            "call" => Box::new(Call),
            other => panic!("no such filter: {other}"),
        };
        Some(Box::new(Noted { inner, kind: self.0.clone(), path: String::new() }))
    }
}

/// Any of them, with its end written down.
struct Noted {
    inner: Box<dyn HttpFilter>,
    kind: String,
    path: String,
}

impl HttpFilter for Noted {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        self.path = String::from_utf8_lossy(request.head.path.as_bytes()).into_owned();
        self.inner.on_request(request, stream)
    }
    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        self.inner.on_response(response, stream)
    }
    fn on_informational(&mut self, head: &mut ResponseHead) {
        self.inner.on_informational(head);
    }
    fn on_complete(&mut self, stream: &mut StreamContext) {
        self.inner.on_complete(stream);
        COMPLETED.lock().unwrap().push(format!("{} {}", self.kind, self.path));
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap()
}

/// What goes up also comes back, piece by piece, trailers too, while both directions run.
struct Echo(Option<mpsc::Receiver<Frame>>);

impl HttpFilter for Echo {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, _: &'a mut StreamContext) -> Step<'a> {
        let (sender, receiver) = mpsc::channel(1);
        self.0 = Some(receiver);
        request.body = Body::stream(Tee { body: request.body.take(), sender: Some(sender), waiting: None });
        Step::Continue
    }
    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if let Some(receiver) = self.0.take() {
            response.head.headers.remove(http::header::CONTENT_LENGTH);
            response.body = Body::stream(Received { receiver, _upstream: response.body.take() });
        }
        Step::Continue
    }
}

type Reserve = Pin<Box<dyn Future<Output = Option<mpsc::OwnedPermit<Frame>>> + Send>>;

/// A body that is handed on and copied; it waits while the copy is not read.
struct Tee {
    body: Body,
    sender: Option<mpsc::Sender<Frame>>,
    waiting: Option<Reserve>,
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        let Some(sender) = &this.sender else { return this.body.poll_frame(cx) };
        let sender = sender.clone();
        let reserve = this.waiting.get_or_insert_with(|| Box::pin(async move { sender.reserve_owned().await.ok() }));
        let permit = ready!(reserve.as_mut().poll(cx));
        let Poll::Ready(frame) = this.body.poll_frame(cx) else {
            // The place is kept for the piece that will come.
            this.waiting = Some(Box::pin(std::future::ready(permit)));
            return Poll::Pending;
        };
        this.waiting = None;
        match (&frame, permit) {
            (Some(Ok(frame)), Some(permit)) => {
                let copy = match frame.data_ref() {
                    Some(data) => Frame::data(data.clone()),
                    None => Frame::trailers(frame.trailers_ref().cloned().unwrap_or_default()),
                };
                permit.send(copy);
            }
            _ => this.sender = None,
        }
        Poll::Ready(frame)
    }
}

struct Received {
    receiver: mpsc::Receiver<Frame>,
    _upstream: Body,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.receiver.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// Holds each direction until it is whole, up to ten bytes, then changes body and headers.
struct Rewrite {
    refused: bool,
}

impl HttpFilter for Rewrite {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, _: &'a mut StreamContext) -> Step<'a> {
        Step::wait(async move {
            let Ok(Some((data, _))) = read_whole(&mut request.body, 10).await else {
                self.refused = true;
                return Verdict::Reply(Box::new(LocalReply::request_too_large()));
            };
            request.body = doubled(&data, &mut request.head.headers);
            Verdict::Continue
        })
    }
    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if self.refused {
            return Step::Continue;
        }
        Step::wait(async move {
            let Ok(Some((data, _))) = read_whole(&mut response.body, 10).await else {
                return Verdict::Reply(Box::new(LocalReply::response_too_large()));
            };
            response.body = doubled(&data, &mut response.head.headers);
            Verdict::Continue
        })
    }
}

fn doubled(data: &[u8], headers: &mut HeaderMap) -> Body {
    headers.insert("x-was", HeaderValue::from(data.len()));
    headers.remove(http::header::TRANSFER_ENCODING);
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(data.len() * 2));
    Body::full([data, data].concat())
}

/// Answers in place of the upstream.
struct ReplyToResponse;

impl HttpFilter for ReplyToResponse {
    fn on_response<'a>(&'a mut self, _: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        Step::reply(LocalReply::new(StatusCode::IM_A_TEAPOT, "from_the_response").body("instead"))
    }
}

/// Ends the response's body with a reply after its first piece, when it is too late for one.
struct CutResponse;

impl HttpFilter for CutResponse {
    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        response.head.headers.remove(http::header::CONTENT_LENGTH);
        response.body = Body::stream(FaultAfterFirst(response.body.take(), false));
        Step::Continue
    }
}

/// The same with the request's body.
struct FaultInBody;

impl HttpFilter for FaultInBody {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, _: &'a mut StreamContext) -> Step<'a> {
        request.body = Body::stream(FaultAfterFirst(request.body.take(), false));
        Step::Continue
    }
}

struct FaultAfterFirst(Body, bool);

impl http_body::Body for FaultAfterFirst {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.1 {
            let reply = LocalReply::new(StatusCode::UNPROCESSABLE_ENTITY, "fault_in_body").body("no").close();
            return Poll::Ready(Some(Err(BodyError::Reply(Box::new(reply)))));
        }
        let frame = ready!(self.0.poll_frame(cx));
        self.1 = true;
        Poll::Ready(frame)
    }
}

/// Upstream: says which attempt it belongs to, both ways.
struct MarkAttempt;

impl HttpFilter for MarkAttempt {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let attempts = HeaderValue::from(stream.info.upstream.attempts);
        request.head.headers.append("x-attempt", attempts);
        if request.head.path == "/refused" {
            return Step::reply(LocalReply::new(StatusCode::FORBIDDEN, "refused_upstream").body("refused"));
        }
        Step::Continue
    }
    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        response.head.headers.append("x-attempt", HeaderValue::from(stream.info.upstream.attempts));
        Step::Continue
    }
}

/// Makes another route match.
struct ChooseAgain;

impl HttpFilter for ChooseAgain {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        request.head.headers.insert("x-way", header("other"));
        stream.clear_route_cache();
        Step::Continue
    }
}

/// Begins anew until the request says that it did so twice; with `/for-ever` always.
struct BeginAnew;

impl HttpFilter for BeginAnew {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let times = HeaderName::from_static("x-times");
        let before: u32 = request.head.headers.get(&times).map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        if before < 2 || request.head.path == "/for-ever" {
            request.head.headers.insert(times, HeaderValue::from(before + 1));
            stream.recreate_stream();
        }
        Step::Continue
    }
}

/// Never lets the response go.
struct HoldResponse;

impl HttpFilter for HoldResponse {
    fn on_response<'a>(&'a mut self, _: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        Step::wait(std::future::pending())
    }
}

struct Hints;

impl HttpFilter for Hints {
    fn on_informational(&mut self, head: &mut ResponseHead) {
        head.headers.insert("x-hinted", header("yes"));
    }
}

/// Asks the service that `x-ask` names and hands on what it said.
struct Call;

impl HttpFilter for Call {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let cluster = request.head.headers.get("x-ask").map(|value| value.to_str().unwrap().to_owned());
        let Some(cluster) = cluster else { return Step::Continue };
        let services = Arc::clone(&stream.services);
        Step::wait(async move {
            let head = RequestHead::new(http::Method::POST, header("service"), header("/ask"));
            let call = ServiceCall {
                cluster,
                request: Request { head, body: Body::full("question") },
                timeout: Duration::from_millis(300),
                max_body_bytes: 20,
            };
            let said = match services.call(call).await {
                Ok(mut response) => {
                    let (data, _) = read_whole(&mut response.body, 20).await.unwrap().unwrap();
                    format!("{} {}", response.head.status.as_u16(), String::from_utf8_lossy(&data))
                }
                Err(error) => error.to_string(),
            };
            request.head.headers.insert("x-said", header(&said));
            Verdict::Continue
        })
    }
}
