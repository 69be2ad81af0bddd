//! Decodes a body by its framing, out of a buffer and without copying. It must not know where bytes come from.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::Framing;
use super::chunk::ChunkDecoder;
pub(crate) use super::chunk::may_be_a_trailer;
use crate::http::codec::CodecError;

/// A piece of a body.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// Trailers, if there were any; nothing comes after them.
    End(Option<HeaderMap>),
}

/// Where the decoder is in a body. What follows the body stays in the buffer.
#[derive(Debug)]
pub(crate) enum BodyDecoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
    Done,
}

impl BodyDecoder {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(ChunkDecoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes still to come, when that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(*length),
            Self::Done => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// The next piece; `None` when more bytes are needed.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, CodecError> {
        let piece = match self {
            Self::Done => Some(Piece::End(None)),
            Self::Length(left) => take(left, buffer),
            Self::UntilClose => (!buffer.is_empty()).then(|| Piece::Data(buffer.split().freeze())),
            Self::Chunked(chunks) => chunks.decode(buffer)?,
        };
        if matches!(self, Self::Length(0)) || matches!(piece, Some(Piece::End(_))) {
            *self = Self::Done;
        }
        Ok(piece)
    }

    /// The peer sends no more: whether the body is whole.
    pub(crate) fn end_of_input(&mut self) -> bool {
        if matches!(self, Self::UntilClose) {
            *self = Self::Done;
        }
        self.is_done()
    }
}

/// As much as is there and still belongs to the body; `None` when nothing is there.
pub(super) fn take(left: &mut u64, buffer: &mut BytesMut) -> Option<Piece> {
    if buffer.is_empty() {
        return None;
    }
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= n as u64;
    let data = if n == buffer.len() { buffer.split() } else { buffer.split_to(n) };
    Some(Piece::Data(data.freeze()))
}
