//! A body on its way out: framed as its head has announced, and never longer than that.
//! It must not know who sends it; what is wrong with its length is told to whoever owns the connection.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version};
use tokio::io::AsyncWrite;

use super::encode::{self, Delimit};
use super::io::Writer;
use crate::http::downstream::BodyLength;

/// How the rest of a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Outgoing {
    /// There is none to be seen: what is given is swallowed.
    #[default]
    Nothing,
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    /// Until the connection closes.
    Raw,
}

/// The body does not have the length that was announced. Only closing the connection tells the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not as long as was announced")]
pub(crate) struct WrongLength;

/// What a response's framing depends on beside itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    /// The request's version.
    pub version: Version,
    pub head_request: bool,
}

impl Outgoing {
    /// What a response's head says of its body, and how the body is written (RFC 9112 §6.3, and what Envoy says of a body
    /// that HEAD does not get).
    pub(crate) fn of_response(
        status: StatusCode,
        headers: &HeaderMap,
        length: BodyLength,
        answered: Answered,
    ) -> (Delimit, Self) {
        let stated = encode::stated_length(headers);
        let chunks = answered.version != Version::HTTP_10;
        if length == BodyLength::Tunnel {
            return (Delimit::AsIs, Self::Raw);
        }
        if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return (Delimit::AsIs, Self::Nothing);
        }
        if answered.head_request {
            let delimit = match (stated, length) {
                (None, BodyLength::Known(length)) => Delimit::Length(length),
                (None, _) if chunks => Delimit::Chunked,
                _ => Delimit::AsIs,
            };
            return (delimit, Self::Nothing);
        }
        match (length, stated) {
            (BodyLength::None | BodyLength::Tunnel, _) => (Delimit::Zero, Self::Nothing),
            (BodyLength::Known(length), _) | (BodyLength::Unknown, Some(length)) => {
                (Delimit::Length(length), Self::Length(length))
            }
            (BodyLength::Unknown, None) if chunks => (Delimit::Chunked, Self::Chunked),
            (BodyLength::Unknown, None) => (Delimit::AsIs, Self::Raw),
        }
    }

    /// How a request's body is written after a head with this `delimit`.
    pub(crate) fn of_request(headers: &HeaderMap, delimit: Delimit, tunnel: bool) -> Self {
        match delimit {
            _ if tunnel => Self::Raw,
            Delimit::Chunked => Self::Chunked,
            Delimit::Length(length) => Self::Length(length),
            Delimit::Zero => Self::Nothing,
            Delimit::AsIs => encode::stated_length(headers).map_or(Self::Nothing, Self::Length),
        }
    }

    /// Writes a piece; how many of its bytes belong to the body. More than was announced is not written.
    pub(crate) fn data<W: AsyncWrite + Unpin>(
        &mut self,
        mut data: Bytes,
        writer: &mut Writer<W>,
    ) -> Result<usize, WrongLength> {
        let given = data.len();
        if given == 0 {
            return Ok(0);
        }
        match self {
            Self::Nothing => return Ok(0),
            Self::Length(left) => {
                let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(given);
                *left -= allowed as u64;
                data.truncate(allowed);
                writer.push(data);
                return if allowed == given { Ok(given) } else { Err(WrongLength) };
            }
            Self::Raw => writer.push(data),
            Self::Chunked => {
                writer.encode(|out| encode::chunk_prefix(given, out));
                writer.push(data);
                writer.encode(|out| out.extend_from_slice(b"\r\n"));
            }
        }
        Ok(given)
    }

    /// Ends the body, with trailers if it has chunks; how many bytes they take.
    pub(crate) fn end<W: AsyncWrite + Unpin>(
        &mut self,
        trailers: Option<&HeaderMap>,
        writer: &mut Writer<W>,
    ) -> Result<usize, WrongLength> {
        match std::mem::take(self) {
            Self::Length(1..) => Err(WrongLength),
            Self::Chunked => {
                let mut fields = 0;
                writer.encode(|out| fields = encode::last_chunk(trailers, out));
                Ok(fields)
            }
            Self::Nothing | Self::Length(0) | Self::Raw => Ok(0),
        }
    }
}
