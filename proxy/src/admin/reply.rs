//! An answer of the admin interface. It must not know what it says.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

/// Status, content type and body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

const TEXT: &str = "text/plain; charset=UTF-8";

impl Reply {
    pub(super) fn ok(text: impl Into<String>) -> Self {
        Self::error(StatusCode::OK, text)
    }

    pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: text.into() }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, text)
    }

    /// JSON that is already written.
    pub(super) fn json_text(body: String) -> Self {
        Self { status: StatusCode::OK, content_type: "application/json", body }
    }

    /// JSON laid out as protobuf's printer does: indented by one space, with a line end after it.
    pub(super) fn json(value: &Value) -> Self {
        Self::json_text(super::json::pretty(value))
    }

    pub(super) fn html(body: String) -> Self {
        Self { status: StatusCode::OK, content_type: "text/html; charset=UTF-8", body }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::SERVER, HeaderValue::from_static("envoy")),
        ];
        (self.status, headers, self.body).into_response()
    }
}

#[cfg(test)]
impl Reply {
    pub(super) fn text(&self) -> &str {
        &self.body
    }

    pub(super) fn parsed(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}
