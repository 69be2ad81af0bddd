//! Redirects and direct responses. It must not know requests.

use bytes::Bytes;
use http::StatusCode;
use tidegate_filters::context::CompileContext;
use tidegate_filters::format::{Format, SubstitutionFormat};
use tidegate_filters::matching::Substitution;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::DataSource;
use tidegate_xds::pb::envoy::config::core::v3::data_source::Specifier;
use tidegate_xds::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use tidegate_xds::pb::envoy::config::route::v3::{DirectResponseAction, RedirectAction};

use super::headers;
use crate::route::{DirectResponse, Redirect, RedirectPath};

/// Compiles a redirect.
pub(super) fn redirect(proto: &RedirectAction, context: &mut CompileContext<'_>) -> Result<Redirect, FieldError> {
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Ok(Redirect {
        status: match RedirectResponseCode::try_from(proto.response_code) {
            Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
            Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
            Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Ok(RedirectResponseCode::MovedPermanently) | Err(_) => StatusCode::MOVED_PERMANENTLY,
        },
        scheme: match &proto.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => some(scheme),
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        },
        host: some(&proto.host_redirect),
        port: (proto.port_redirect != 0).then_some(proto.port_redirect),
        path: path(proto, context)?,
        strip_query: proto.strip_query,
    })
}

fn path(proto: &RedirectAction, context: &mut CompileContext<'_>) -> Result<RedirectPath, FieldError> {
    Ok(match &proto.path_rewrite_specifier {
        None => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Replace(path.as_str().into()),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            headers::value("prefix_rewrite", prefix, context)?.map_or(RedirectPath::Keep, RedirectPath::Prefix)
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            RedirectPath::Regex(context.within("regex_rewrite", |context| Substitution::compile(regex, context))?)
        }
        Some(PathRewriteSpecifier::PathRewrite(format)) if format.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRewrite(format)) => RedirectPath::Format(
            Format::compile_omitting_empty(format)
                .map_err(|error| context.error_at("path_rewrite", error.to_string()))?,
        ),
    })
}

/// Compiles a direct response, of `limit` bytes at most.
pub(super) fn direct(
    proto: &DirectResponseAction,
    limit: u32,
    context: &mut CompileContext<'_>,
) -> Result<DirectResponse, FieldError> {
    let status = u16::try_from(proto.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let Some(status) = status else { return Err(context.error_at("status", "no HTTP status")) };
    let body = match &proto.body {
        Some(body) => context.within("body", |context| data(body, limit, context))?,
        None => Bytes::new(),
    };
    let format = match &proto.body_format {
        Some(format) => Some(context.within("body_format", |context| SubstitutionFormat::compile(format, context))?),
        None => None,
    };
    Ok(DirectResponse { status, body, format })
}

fn data(source: &DataSource, limit: u32, context: &mut CompileContext<'_>) -> Result<Bytes, FieldError> {
    let (field, bytes) = match &source.specifier {
        Some(Specifier::InlineString(text)) => ("inline_string", Bytes::copy_from_slice(text.as_bytes())),
        Some(Specifier::InlineBytes(bytes)) => ("inline_bytes", Bytes::copy_from_slice(bytes)),
        Some(Specifier::Filename(path)) => {
            let read = std::fs::read(path)
                .map_err(|error| context.error_at("filename", format!("cannot read '{path}': {error}")))?;
            ("filename", read.into())
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            let unset = |_| context.error_at("environment_variable", format!("'{name}' is not set"));
            ("environment_variable", std::env::var(name).map_err(unset)?.into())
        }
        None => return Ok(Bytes::new()),
    };
    if bytes.len() > limit as usize {
        let reason = format!("response body size is {} bytes; maximum is {limit}", bytes.len());
        return Err(context.error_at(field, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use crate::config::route::testing::{chosen, connection, get, route_error, routes, table};
    use tidegate_filters::http::LocalReply;
    use tidegate_filters::stream_info::StreamInfo;

    fn reply(action: &str, path: &str) -> LocalReply {
        let table = routes(&format!("[{{match: {{prefix: /r}}, {action}}}]"));
        let mut head = get(path, &[]);
        let info = StreamInfo::new(Arc::new(connection()), Instant::now(), SystemTime::now());
        chosen(&table, &head).local_reply(&mut head, &info, true).unwrap()
    }

    /// As Envoy 1.40 answered them.
    #[test]
    fn redirects_say_where() {
        for (redirect, status, location) in [
            ("path_redirect: /np", 301, "http://h.com/np?q=1"),
            ("response_code: PERMANENT_REDIRECT, strip_query: true", 308, "http://h.com/r/a"),
            ("https_redirect: true, port_redirect: 443", 301, "https://h.com:443/r/a?q=1"),
            ("scheme_redirect: ftp, host_redirect: new", 301, "ftp://new/r/a?q=1"),
            ("prefix_rewrite: /x, response_code: FOUND", 302, "http://h.com/x/a?q=1"),
            (
                "regex_rewrite: {pattern: {regex: '/r/(.*)'}, substitution: '/z/\\1'}, response_code: SEE_OTHER",
                303,
                "http://h.com/z/a?q=1",
            ),
            ("response_code: TEMPORARY_REDIRECT", 307, "http://h.com/r/a?q=1"),
        ] {
            let reply = reply(&format!("redirect: {{{redirect}}}"), "/r/a?q=1");
            assert_eq!((reply.status.as_u16(), reply.headers["location"].to_str().unwrap()), (status, location));
        }
    }

    #[test]
    fn replies_have_the_routes_headers() {
        let direct = "direct_response: {status: 200, body: {inline_string: hi}}, \
                      response_headers_to_add: [{header: {key: content-type, value: text/html}}]";
        let reply = reply(direct, "/r");
        assert_eq!(
            (&*reply.body, &reply.headers["content-type"]),
            (&b"hi"[..], &http::HeaderValue::from_static("text/html"))
        );
    }

    /// As Envoy 1.40 answered them.
    #[test]
    fn formats_are_filled_from_the_request() {
        let location = |format: &str, path| {
            let reply = reply(&format!("redirect: {{path_rewrite: '{format}', strip_query: true}}"), path);
            reply.headers["location"].to_str().unwrap().to_owned()
        };
        assert_eq!(location("/n%REQ(:authority)%", "/r?q"), "http://h.com/nh.com");
        assert_eq!(location("/k?a=%REQ(x-a)%", "/r?q"), "http://h.com/k?a=");
        assert_eq!(location("%REQ(x-a)%", "/r?q"), "http://h.com/r");
        let json = "direct_response: {status: 200, body: {inline_string: abc}, body_format: {json_format: {b: '%LOCAL_REPLY_BODY%'}}}, \
                    response_headers_to_add: [{header: {key: content-type, value: zz}}]";
        let found = reply(json, "/r");
        assert_eq!(
            (&*found.body, &found.headers["content-type"]),
            (&b"{\"b\":\"abc\"}\n"[..], &http::HeaderValue::from_static("application/json"))
        );
        let text = "direct_response: {status: 200, body_format: {text_format_source: {inline_string: '%REQ(x-a)%'}, content_type: text/x}}";
        let found = reply(text, "/r");
        assert_eq!(
            (&*found.body, &found.headers["content-type"]),
            (&b"-"[..], &http::HeaderValue::from_static("text/x"))
        );
    }

    #[test]
    fn a_body_may_not_be_too_large() {
        let route = |length: usize| {
            format!(
                "[{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: '{}'}}}}}}]",
                "x".repeat(length)
            )
        };
        routes(&route(4096));
        let reason = "response body size is 4097 bytes; maximum is 4096";
        assert_eq!(route_error(&route(4097)), format!("routes[0].direct_response.body.inline_string: {reason}"));
        table(&format!(
            "max_direct_response_body_size_bytes: 4097\nvirtual_hosts: [{{name: v, domains: ['*'], routes: {}}}]",
            route(4097)
        ));
        let file = "[{match: {prefix: /}, direct_response: {status: 200, body: {filename: /nonexistent}}}]";
        assert!(route_error(file).starts_with("routes[0].direct_response.body.filename: cannot read '/nonexistent'"));
    }
}
