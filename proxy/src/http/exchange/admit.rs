//! What every request must be before anyone routes on it: a host, a path in one form, headers that this client may send.
//! It must not know routes but for the headers that a route configuration keeps internal, nor filters.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tidegate_filters::http::LocalReply;

use super::routing::Snapped;
use super::{Connection, Exchange};
use crate::http::path::{self, Normalized};
use crate::http::{connect_udp, headers, host, request_headers};

/// True, a request on a TLS connection for a host that the connection's filter chain is not for is answered 421 (RFC 9110, 15.5.20).
/// Envoy has nothing of the kind.
const REFUSE_MISDIRECTED: &str = "tidegate.http.refuse_misdirected_requests";

/// Unset or true, a path with a fragment is refused; false, the fragment is cut off.
const REJECT_FRAGMENT: &str = "envoy.reloadable_features.http_reject_path_with_fragment";

impl Connection {
    fn is_misdirected(&self, authority: &HeaderValue) -> bool {
        if self.info.tls.is_none() || self.shared.runtime().boolean(REFUSE_MISDIRECTED) != Some(true) {
            return false;
        }
        let host = host::without_port(authority).trim_end_matches('.').to_ascii_lowercase();
        !self.chain.is_for(&host)
    }
}

impl Exchange<'_> {
    /// Everything before the route: what a request must be, whom it comes from, which path it is for.
    pub(super) fn admit(&mut self) -> Result<(), Box<LocalReply>> {
        let hcm = &self.connection.hcm;
        let head = &mut self.request.head;
        if head.authority.is_empty() {
            return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "missing_host_header")));
        }
        if self.connection.is_misdirected(&head.authority) {
            return Err(Box::new(LocalReply::new(StatusCode::MISDIRECTED_REQUEST, "misdirected_request")));
        }
        if connect_udp::is_asked(head) && !connect_udp::retarget(head) {
            let reply = LocalReply::new(StatusCode::NOT_FOUND, "invalid_path");
            return Err(Box::new(reply.body("The path is incorrect for CONNECT-UDP")));
        }
        let connect = head.method == Method::CONNECT;
        if !connect && head.path.as_bytes().first() != Some(&b'/') {
            hcm.stats.downstream_rq_non_relative_path().inc();
            let details = if head.path.is_empty() { "missing_path_rejected" } else { "absolute_path_rejected" };
            return Err(Box::new(LocalReply::new(StatusCode::NOT_FOUND, details)));
        }
        if let Some(fragment) = head.path.as_bytes().iter().position(|byte| *byte == b'#') {
            let strip = self.connection.shared.runtime().boolean(REJECT_FRAGMENT) == Some(false);
            let path = http::HeaderValue::from_bytes(&head.path.as_bytes()[..fragment]);
            if strip && let Ok(path) = path {
                head.path = path;
            }
        }
        if head.path.as_bytes().contains(&b'#') {
            hcm.stats.downstream_rq_failed_path_normalization().inc();
            return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed")));
        }
        if !head.path.is_empty() {
            match path::normalize(&head.path, hcm.path) {
                Normalized::Same => {}
                Normalized::Changed(path) => head.path = path,
                Normalized::Redirect(path) => {
                    hcm.stats.downstream_rq_redirected_with_normalized_path().inc();
                    let reply = LocalReply::new(StatusCode::TEMPORARY_REDIRECT, "path_normalization_failed");
                    head.path = path.clone();
                    return Err(Box::new(reply.header(http::header::LOCATION, path)));
                }
                Normalized::Rejected(shown) => {
                    if let Some(path) = shown {
                        head.path = path;
                    }
                    hcm.stats.downstream_rq_failed_path_normalization().inc();
                    return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed")));
                }
            }
        }
        host::normalize(hcm, &self.connection.info, head);
        for mutation in &hcm.early_mutations {
            mutation.apply_request(head, &self.stream.info);
        }
        let configuration = Snapped::load(self.connection);
        let table = configuration.table(self.connection, head);
        let internal_only: &[HeaderName] = table.as_ref().map_or(&[], |table| &table.config.internal_only_headers);
        let node = self.connection.shared.node_address();
        match request_headers::sanitize(hcm, &self.connection.info, internal_only, node, head) {
            Ok(client) => {
                self.stream.info.downstream_remote = client.remote;
                self.stream.info.internal_request = client.internal;
                self.stream.info.request_id = head.headers.get(&headers::X_REQUEST_ID).cloned();
                self.configuration = Some(configuration);
                Ok(())
            }
            Err(status) => {
                hcm.stats.downstream_rq_rejected_via_ip_detection().inc();
                Err(Box::new(LocalReply::new(status, "rejecting_because_detection_failed")))
            }
        }
    }
}
