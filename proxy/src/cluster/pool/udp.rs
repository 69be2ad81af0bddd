//! The end of a CONNECT-UDP: the datagrams of its capsules go to a host in UDP packets, and the host's packets come back as
//! capsules. It must not know who asked, nor over which protocol.
//!
//! As in Envoy there is no pool: a socket a tunnel, outside the cluster's breakers and connection stats.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use socket2::{Domain, SockRef, Socket, Type};
use tidegate_filters::http::{Body, BodyError, Frame, LocalReply, ResponseHead};
use tidegate_filters::stream_info::{Address, ResponseFlags};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::{Begun, PoolError, connect};
use crate::cluster::Cluster;
use crate::cluster::host::Host;
use crate::cluster::options::NotPrepared;
use crate::http::codec::capsule::{self, CapsuleError, CapsuleReader};
use crate::http::headers::CAPSULE_PROTOCOL;
use crate::http::wire_bytes::WireBytes;

/// The largest UDP packet.
const MAX_PACKET_BYTES: usize = 65_535;

/// Makes a socket that speaks with the host alone; nothing is sent yet. Only the host's first address is used.
pub(super) fn open(cluster: &Cluster, host: &Host) -> Result<UdpSocket, PoolError> {
    let Address::Ip(address) = &host.address else {
        return Err(PoolError::Local(format!("no UDP socket for {}", host.address).into()));
    };
    let socket = Socket::new(Domain::for_address(*address), Type::DGRAM, None).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let prepared = cluster.config().connection.apply_source(SockRef::from(&socket), *address);
    prepared.map_err(|error| {
        if matches!(error, NotPrepared::Bind(..)) {
            cluster.stats().traffic.bind_errors().inc();
        }
        PoolError::Local(connect::local_reason(&error))
    })?;
    socket.connect(&(*address).into()).map_err(failed)?;
    UdpSocket::from_std(socket.into()).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` takes")]
fn failed(error: io::Error) -> PoolError {
    PoolError::Local(connect::reason(&error))
}

/// Begins the exchange: the tunnel stands at once, for UDP has nobody to ask.
pub(super) fn send(socket: UdpSocket, bytes: Option<&Arc<WireBytes>>, payload: Body) -> Begun {
    let socket = Arc::new(socket);
    let (broken, breaks) = oneshot::channel();
    let body = FromHost { socket: Arc::clone(&socket), breaks: Some(breaks), bytes: bytes.cloned() };
    let pump = Box::pin(upward(socket, bytes.cloned(), payload, broken));
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert(&CAPSULE_PROTOCOL, HeaderValue::from_static("?1"));
    Begun::new(head, Body::stream(body), Some(pump))
}

/// Moves datagrams up until the client has no more. The host has no way to learn of that, so the other way goes on.
async fn upward(
    socket: Arc<UdpSocket>,
    bytes: Option<Arc<WireBytes>>,
    mut payload: Body,
    broken: oneshot::Sender<CapsuleError>,
) {
    let mut capsules = CapsuleReader::default();
    while let Some(Ok(frame)) = payload.frame().await {
        let Ok(data) = frame.into_data() else { break };
        capsules.push(data);
        loop {
            match capsules.next() {
                Ok(None) => break,
                Ok(Some(datagram)) => {
                    // What the system does not take (too large, or an error that came back for one before) is lost, as any
                    // packet may be.
                    let _ = socket.send(&datagram).await;
                    if let Some(bytes) = &bytes {
                        bytes.add_sent(0, datagram.len() as u64);
                    }
                }
                Err(error) => {
                    // Without a reader the tunnel has ended already.
                    let _ = broken.send(error);
                    return;
                }
            }
        }
    }
}

/// What the host says, a capsule a packet. While the client does not take more, packets wait in the socket, which drops
/// what it has no room for.
struct FromHost {
    socket: Arc<UdpSocket>,
    /// Comes when the client's capsules cannot be read on; none once they have ended.
    breaks: Option<oneshot::Receiver<CapsuleError>>,
    bytes: Option<Arc<WireBytes>>,
}

impl http_body::Body for FromHost {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        if let Some(breaks) = &mut this.breaks
            && let Poll::Ready(ended) = Pin::new(breaks).poll(cx)
        {
            this.breaks = None;
            if let Ok(error) = ended {
                return Poll::Ready(Some(Err(broken(error))));
            }
        }
        let mut space = [std::mem::MaybeUninit::uninit(); MAX_PACKET_BYTES];
        let mut packet = ReadBuf::uninit(&mut space);
        // Errors are of packets that were sent (nobody listens there, no way to it): the next may fare better.
        while ready!(this.socket.poll_recv(cx, &mut packet)).is_err() {}
        let capsule = capsule::datagram(packet.filled());
        if let Some(bytes) = &this.bytes {
            bytes.add_received(0, capsule.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(capsule))))
    }
}

/// The client's capsules end the exchange as a host's broken response would, as in Envoy.
fn broken(error: CapsuleError) -> BodyError {
    let details = format!("upstream_reset_after_response_started{{protocol_error|{error}}}");
    let reply = LocalReply::new(StatusCode::BAD_GATEWAY, details);
    BodyError::Reply(Box::new(reply.flag(ResponseFlags::UPSTREAM_PROTOCOL_ERROR)))
}
