//! Notes when the first piece of a response's body comes (`US_RX_BODY_BEG`). It must not know who asks.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::SizeHint;
use tidegate_filters::http::{Body, BodyError, Frame};

/// A response's body on its way from the host.
pub(super) struct BodyBegin {
    pub(super) body: Body,
    pub(super) began: Arc<OnceLock<Instant>>,
}

impl http_body::Body for BodyBegin {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_data()
        {
            self.began.get_or_init(Instant::now);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[tokio::test]
    async fn data_begins_a_body_and_trailers_do_not() {
        let begun = |body| {
            let began = Arc::<OnceLock<Instant>>::default();
            (Body::stream(BodyBegin { body, began: Arc::clone(&began) }), began)
        };
        let (mut body, began) = begun(Body::full(Bytes::from_static(b"abc")));
        assert!(began.get().is_none());
        body.frame().await.unwrap().unwrap();
        assert!(began.get().is_some());
        let only_trailers = Body::stream(OnlyTrailers(Some(HeaderMap::new())));
        let (mut body, began) = begun(only_trailers);
        assert!(body.frame().await.unwrap().unwrap().is_trailers() && began.get().is_none());
    }

    struct OnlyTrailers(Option<HeaderMap>);

    impl http_body::Body for OnlyTrailers {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }
}
