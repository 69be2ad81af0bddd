//! Discovery in JSON over HTTP (`api_type: REST`), as Envoy polls it. It must not know what is served.

use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use prost::{Message, Name};
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tidegate_xds::{Format, UnknownFields, load, to_whole_json};
use tonic::body::Body;

use super::discovery;
use crate::server::stream::{Call, Context};

const MAX_REQUEST_BYTES: usize = 1 << 20;

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn serve(context: &Context, call: &Call, request: http::Request<Body>) -> Response<Body> {
    if request.method() != http::Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "POST a DiscoveryRequest in JSON\n");
    }
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect();
    let Ok(body) = tokio::time::timeout(PATIENCE, body).await else {
        return text(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end\n");
    };
    let Ok(body) = body else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "the request could not be read, or is too long\n");
    };
    let read = load::<DiscoveryRequest>(&body.to_bytes(), Format::Json, UnknownFields::Collect);
    let request = match read {
        Ok(read) => read.message,
        Err(errors) => {
            let lines: String = errors.iter().map(|error| format!("{error}\n")).collect();
            return text(StatusCode::BAD_REQUEST, &lines);
        }
    };
    let Some(answer) = discovery::answer(context, call, &request) else {
        return text(StatusCode::NOT_MODIFIED, "");
    };
    let json = to_whole_json(&DiscoveryResponse::full_name(), &answer.encode_to_vec());
    let mut response = text(StatusCode::OK, &json.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response
}
