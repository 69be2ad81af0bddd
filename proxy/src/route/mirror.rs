//! Requests that are also sent elsewhere (`request_mirror_policies`): to which cluster, how many, and with which head.
//! It must not know how the copy is sent; nobody waits for its answer.

use std::sync::Arc;

use http::{HeaderValue, Method};
use tidegate_filters::http::header_mutations::HeaderEdits;
use tidegate_filters::http::{Headers, RequestHead};
use tidegate_filters::runtime::{Fraction, Runtime};
use tidegate_filters::stream_info::StreamInfo;

use super::forward::ClusterName;

/// One `RequestMirrorPolicy`.
pub struct MirrorPolicy {
    pub cluster: ClusterName,
    pub fraction: Fraction,
    /// `-shadow` behind the host's name, unless `disable_shadow_host_suffix_append`.
    pub host_suffix: bool,
    pub host_rewrite: Option<HeaderValue>,
    pub edits: HeaderEdits,
}

impl std::fmt::Debug for MirrorPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorPolicy").field("fraction", &self.fraction).finish_non_exhaustive()
    }
}

impl MirrorPolicy {
    /// The cluster that gets a copy of this request, if any does. `random` is the stream's, so that all policies with one
    /// key draw alike. CONNECT is never copied.
    pub fn cluster(&self, head: &RequestHead, runtime: &dyn Runtime, random: u64) -> Option<Arc<str>> {
        if head.method == Method::CONNECT || !self.fraction.holds(runtime, random) {
            return None;
        }
        match &self.cluster {
            ClusterName::Fixed(name) => Some(Arc::clone(name)),
            ClusterName::Header(header) => {
                let name = head.first(header).filter(|name| !name.is_empty())?;
                Some(Arc::from(String::from_utf8_lossy(name)))
            }
        }
    }

    /// Turns a copy of the finalized head into the mirror's.
    pub fn finalize(&self, head: &mut RequestHead, info: &StreamInfo) {
        self.edits.apply_request(head, info);
        if let Some(host) = &self.host_rewrite {
            head.authority = host.clone();
        } else if self.host_suffix
            && let Ok(host) = HeaderValue::from_bytes(&shadow_host(head.authority.as_bytes()))
        {
            head.authority = host;
        }
    }
}

/// `host-shadow:port`, or `-shadow` at the end where colons do not divide it in two, as with IPv6 addresses.
fn shadow_host(host: &[u8]) -> Vec<u8> {
    let mut parts = host.split(|byte| *byte == b':').filter(|part| !part.is_empty());
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(port), None) => [name, b"-shadow:", port].concat(),
        _ => [host, b"-shadow"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::{get, info};
    use tidegate_filters::runtime::NoRuntime;

    fn policy() -> MirrorPolicy {
        MirrorPolicy {
            cluster: ClusterName::Header(tidegate_filters::http::HeaderKey::new("x-m")),
            fraction: Fraction::ALWAYS,
            host_suffix: true,
            host_rewrite: None,
            edits: HeaderEdits::default(),
        }
    }

    #[test]
    fn the_copys_host_says_that_it_is_one() {
        for (host, expected) in
            [("mh.com", "mh.com-shadow"), ("mh.com:8080", "mh.com-shadow:8080"), ("[::1]:80", "[::1]:80-shadow")]
        {
            let mut head = get(host, "/");
            policy().finalize(&mut head, &info());
            assert_eq!(head.authority, expected);
        }
        let mut head = get("mh.com", "/");
        MirrorPolicy { host_suffix: false, ..policy() }.finalize(&mut head, &info());
        assert_eq!(head.authority, "mh.com");
    }

    #[test]
    fn a_header_may_name_the_cluster() {
        let mut head = get("h", "/");
        assert_eq!(policy().cluster(&head, &NoRuntime, 0), None);
        head.headers.insert("x-m", HeaderValue::from_static("m"));
        assert_eq!(policy().cluster(&head, &NoRuntime, 0).as_deref(), Some("m"));
        assert_eq!(MirrorPolicy { fraction: Fraction::NEVER, ..policy() }.cluster(&head, &NoRuntime, 0), None);
        head.method = Method::CONNECT;
        assert_eq!(policy().cluster(&head, &NoRuntime, 0), None);
    }
}
