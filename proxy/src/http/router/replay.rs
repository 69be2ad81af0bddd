//! A request's body read more than once: by retries one after another, by mirrors at the same time.
//! What was read is kept up to a limit; past it nobody may begin anew. It must not know why it is read again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use tidegate_filters::http::{Body, BodyError};

/// A body that several may read from its beginning.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<State>>);

struct State {
    source: Body,
    pieces: VecDeque<Bytes>,
    /// The number of the first piece that is kept.
    first: usize,
    kept_bytes: usize,
    limit_bytes: usize,
    trailers: Option<HeaderMap>,
    end: Option<Result<(), BodyError>>,
    /// More than the limit came: what every reader has read is dropped.
    overflowed: bool,
    /// Where each reader is, by the piece it reads next; `None` when it was dropped.
    readers: Vec<Option<usize>>,
    waiting: Vec<Waker>,
}

impl Replay {
    pub(super) fn new(source: Body, limit_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            source,
            pieces: VecDeque::new(),
            first: 0,
            kept_bytes: 0,
            limit_bytes,
            trailers: None,
            end: None,
            overflowed: false,
            readers: Vec::new(),
            waiting: Vec::new(),
        })))
    }

    /// The body from its beginning; `None` once more came than may be kept.
    pub(super) fn reader(&self) -> Option<Body> {
        let mut state = self.0.lock();
        if state.overflowed {
            return None;
        }
        if state.first == 0 && state.pieces.is_empty() && state.source.is_end() && state.end.is_none() {
            return Some(Body::Empty);
        }
        state.readers.push(Some(0));
        let index = state.readers.len() - 1;
        drop(state);
        Some(Body::stream(Reader { replay: self.clone(), index, trailers_read: false }))
    }

    /// Whether it can be read from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !self.0.lock().overflowed
    }
}

impl State {
    fn drop_read(&mut self) {
        let slowest = self.readers.iter().flatten().copied().min().unwrap_or(usize::MAX);
        while self.first < slowest {
            let Some(piece) = self.pieces.pop_front() else { break };
            self.kept_bytes -= piece.len();
            self.first += 1;
        }
        self.wake();
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Reads one piece more; `Pending` also while a slower reader holds too much.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.overflowed {
            self.drop_read();
            if self.kept_bytes > self.limit_bytes {
                self.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        match self.source.poll_frame(cx) {
            Poll::Pending => {
                self.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(None) => self.end = Some(Ok(())),
            Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    self.kept_bytes += data.len();
                    self.overflowed |= self.kept_bytes > self.limit_bytes;
                    self.pieces.push_back(data);
                    if self.source.is_end() {
                        self.end = Some(Ok(()));
                    }
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    self.end = Some(Ok(()));
                }
            },
        }
        self.wake();
        Poll::Ready(())
    }
}

/// One reading of the body.
struct Reader {
    replay: Replay,
    index: usize,
    trailers_read: bool,
}

impl Reader {
    fn position(&self, state: &State) -> usize {
        state.readers.get(self.index).copied().flatten().unwrap_or(0)
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let replay = self.replay.clone();
        let mut state = replay.0.lock();
        loop {
            let at = self.position(&state);
            if let Some(piece) = state.pieces.get(at - state.first).cloned() {
                state.readers[self.index] = Some(at + 1);
                if state.overflowed {
                    state.drop_read();
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match state.end.clone() {
                Some(Ok(())) => {
                    if let Some(trailers) = state.trailers.clone().filter(|_| !self.trailers_read) {
                        self.trailers_read = true;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => std::task::ready!(state.poll_more(cx)),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.replay.0.lock();
        let read = self.position(&state) - state.first >= state.pieces.len();
        read && matches!(state.end, Some(Ok(()))) && (state.trailers.is_none() || self.trailers_read)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.replay.0.lock();
        state.readers[self.index] = None;
        if state.overflowed {
            state.drop_read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut body: Body) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            all.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
        all
    }

    #[tokio::test]
    async fn a_body_can_be_read_again_until_it_is_too_large() {
        let replay = Replay::new(Body::full("hello"), 100);
        assert_eq!(all(replay.reader().unwrap()).await, b"hello");
        assert_eq!(all(replay.reader().unwrap()).await, b"hello");
    }

    #[tokio::test]
    async fn two_readers_read_the_same_at_the_same_time() {
        let replay = Replay::new(Body::full("hello"), 100);
        let (one, two) = (replay.reader().unwrap(), replay.reader().unwrap());
        let (one, two) = tokio::join!(all(one), all(two));
        assert_eq!((one, two), (b"hello".to_vec(), b"hello".to_vec()));
    }

    #[tokio::test]
    async fn past_the_limit_nobody_begins_anew() {
        struct Ten(u32);
        impl http_body::Body for Ten {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                self.0 += 1;
                Poll::Ready((self.0 <= 10).then(|| Ok(Frame::data(Bytes::from_static(b"0123456789")))))
            }
        }
        let replay = Replay::new(Body::stream(Ten(0)), 25);
        assert_eq!(all(replay.reader().unwrap()).await.len(), 100);
        assert!(!replay.is_whole());
        assert!(replay.reader().is_none());
    }
}
