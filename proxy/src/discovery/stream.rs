//! Keeps one xDS stream open: connects, tells of what comes, and tries again with back-off (Envoy's `GrpcStream`).
//! It must not know what messages mean.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tidegate_control::client::Backoff;
use tidegate_filters::context::{ControlPlane, Waits};
use tidegate_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic_prost::ProstCodec;

use super::Report;
use super::channel::Channel;

/// What happens to a stream.
pub(crate) enum Event<Out, In> {
    /// It is open: requests go here.
    Connected(mpsc::Sender<Out>),
    Received(In),
    /// It is gone, or could not be opened; the next try follows by itself.
    Closed(Status),
}

/// What happens to a stream of either dialect.
pub(crate) enum Happened {
    Sotw(Event<DiscoveryRequest, DiscoveryResponse>),
    Delta(Event<DeltaDiscoveryRequest, DeltaDiscoveryResponse>),
}

impl Happened {
    pub(crate) fn is_response(&self) -> bool {
        matches!(self, Self::Sotw(Event::Received(_)) | Self::Delta(Event::Received(_)))
    }
}

/// Keeps the stream of `path` open until nobody listens.
async fn keep_open<Out, In>(channel: Channel, path: PathAndQuery, waits: Waits, reporter: Reporter<Out, In>)
where
    Out: Message + 'static,
    In: Message + Default + Send + 'static,
{
    let mut backoff = Backoff::new(waits.first, waits.longest);
    loop {
        let mut heard = false;
        let status = match once(&channel, path.clone(), &reporter, &mut heard).await {
            Ok(status) => status,
            Err(()) => return,
        };
        if heard {
            backoff.reset();
        }
        if reporter.tell(Event::Closed(status)).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next(rand::random()).max(SHORTEST)).await;
    }
}

/// At most so many requests are on their way: a server that reads none gets later what is due then.
const MOST_REQUESTS: usize = 16;

/// Whatever the jitter says, a server that closes at once is not asked more often.
const SHORTEST: Duration = Duration::from_millis(1);

/// One stream from its beginning to its end; `Err` when nobody listens any more.
async fn once<Out, In>(
    channel: &Channel,
    path: PathAndQuery,
    reporter: &Reporter<Out, In>,
    heard: &mut bool,
) -> Result<Status, ()>
where
    Out: Message + 'static,
    In: Message + Default + Send + 'static,
{
    let (outgoing, requests) = mpsc::channel(MOST_REQUESTS);
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(channel.max_message_bytes());
    // The server may say nothing before it has been asked.
    reporter.tell(Event::Connected(outgoing)).await?;
    let codec = ProstCodec::<Out, In>::default();
    let requests = tonic::Request::new(ReceiverStream::new(requests));
    let mut responses = match client.streaming(requests, path, codec).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(status),
    };
    loop {
        match responses.message().await {
            Ok(Some(message)) => {
                *heard = true;
                reporter.tell(Event::Received(message)).await?;
            }
            Ok(None) => return Ok(Status::ok("")),
            Err(status) => return Ok(status),
        }
    }
}

/// Keeps a stream of either dialect open and reports what happens to it.
pub(crate) async fn run(
    place: usize,
    control_plane: Arc<ControlPlane>,
    channel: Channel,
    path: PathAndQuery,
    reports: mpsc::Sender<Report>,
) {
    let waits = control_plane.waits;
    if control_plane.delta {
        keep_open(channel, path, waits, Reporter { place, reports, wrap: Happened::Delta }).await;
    } else {
        keep_open(channel, path, waits, Reporter { place, reports, wrap: Happened::Sotw }).await;
    }
}

/// Tells of one stream.
struct Reporter<Out, In> {
    place: usize,
    reports: mpsc::Sender<Report>,
    wrap: fn(Event<Out, In>) -> Happened,
}

impl<Out, In> Reporter<Out, In> {
    /// # Errors
    /// Nobody listens any more.
    async fn tell(&self, event: Event<Out, In>) -> Result<(), ()> {
        self.reports.send(Report::Stream(self.place, (self.wrap)(event))).await.map_err(drop)
    }
}
