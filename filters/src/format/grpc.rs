//! `%GRPC_STATUS%`: the status of a gRPC request, and its names. It must not know how gRPC is carried.

use http::{HeaderMap, StatusCode};

use super::FormatContext;
use super::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// Names by code: Envoy's in camel case, Abseil's in snake case.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl GrpcForm {
    pub(super) fn value<'a>(self, context: &FormatContext<'a>) -> Value<'a> {
        if !context.request.is_some_and(|request| request.is_grpc()) {
            return Value::Absent;
        }
        let Some(status) = status(context) else { return Value::Absent };
        let names = usize::try_from(status).ok().and_then(|index| NAMES.get(index));
        match (self, names) {
            (Self::Number, _) => Value::Signed(status),
            (Self::Camel, Some((name, _))) | (Self::Snake, Some((_, name))) => Value::Text(name.as_bytes()),
            // A code that gRPC does not define prints its number, as a string.
            (_, None) => Value::Owned(status.to_string().into_bytes()),
        }
    }
}

/// The gRPC status: of the trailers, of the headers (trailers-only), or what the HTTP status stands for. -1 is one that is
/// no number.
pub(crate) fn status(context: &FormatContext<'_>) -> Option<i64> {
    let of = |headers: Option<&HeaderMap>| {
        let value = headers?.get("grpc-status")?;
        Some(value.to_str().ok().and_then(|text| text.parse::<u32>().ok()).map_or(-1, i64::from))
    };
    of(context.response_trailers)
        .or_else(|| of(context.response.map(|response| &response.headers)))
        .or_else(|| context.info.response_code.map(from_http))
}

/// gRPC's mapping of HTTP statuses (`http-grpc-status-mapping.md`).
fn from_http(status: StatusCode) -> i64 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
