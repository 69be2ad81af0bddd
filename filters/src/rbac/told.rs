//! What the application log is told of decisions, in Envoy's words. It must not know who decides.

use std::fmt::{self, Display, Formatter};

use tidegate_tls::certificate::SanKind;

use super::{Decision, Facts};
use crate::shown::{RequestHeaders, Tags};

/// Something is about to be decided by these facts.
pub(crate) fn checking(tags: Tags, facts: &Facts<'_>) {
    tracing::debug!("{tags} {}", Checked(facts));
}

/// It was decided; `kind` is `enforced` or `shadow`.
pub(crate) fn decided(tags: Tags, kind: &str, decision: &Decision<'_>) {
    let result = if decision.allowed { "allowed" } else { "denied" };
    tracing::debug!("{tags} {kind} {result}, matched policy {}", decision.policy.unwrap_or("none"));
}

/// What may be known of it: of dynamic metadata only whose it is, since tokens may be in there.
struct Checked<'f>(&'f Facts<'f>);

impl Display for Checked<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Facts { connection, remote, request, metadata, .. } = self.0;
        write!(
            f,
            "checking {}: requestedServerName: {}, sourceIP: {}, directRemoteIP: {}, remoteIP: {remote}, localAddress: {}, ssl: ",
            if request.is_some() { "request" } else { "connection" },
            connection.requested_server_name.as_deref().unwrap_or_default(),
            connection.remote,
            connection.direct_remote,
            connection.local,
        )?;
        match &connection.tls {
            None => f.write_str("none")?,
            Some(tls) => {
                let sans = |kind| tls.peer().map(|own| own.sans_of(&kind).collect::<Vec<_>>().join(","));
                write!(
                    f,
                    "uriSanPeerCertificate: {}, dnsSanPeerCertificate: {}, subjectPeerCertificate: {}",
                    sans(SanKind::Uri).unwrap_or_default(),
                    sans(SanKind::Dns).unwrap_or_default(),
                    tls.peer().map(|own| &*own.subject).unwrap_or_default()
                )?;
            }
        }
        if let Some(request) = request {
            write!(f, ", headers: {}", RequestHeaders(request))?;
        }
        f.write_str(", dynamicMetadata: ")?;
        metadata
            .iter()
            .enumerate()
            .try_for_each(|(index, (namespace, _))| write!(f, "{}{namespace}", if index == 0 { "" } else { "," }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::http::testing::{get, stream};

    #[test]
    fn facts_are_shown_without_secrets() {
        let mut stream = stream();
        let claims = json!({ "sub": "let-me-in" }).as_object().cloned().unwrap_or_else(Map::new);
        stream.info.dynamic_metadata.merge("jwt", claims);
        let request = get("/a", &[("authorization", "let-me-in"), ("x-a", "b")]);
        let facts = Facts {
            connection: &stream.info.connection,
            remote: &stream.info.downstream_remote,
            request: Some(&request.head),
            metadata: &stream.info.dynamic_metadata,
            filter_state: &stream.info.filter_state,
            route: None,
            stream: None,
        };
        let shown = Checked(&facts).to_string();
        let begin = "checking request: requestedServerName: , sourceIP: 10.0.0.1:";
        assert!(shown.starts_with(begin) && shown.contains(", ssl: none, headers: ':authority', '"), "{shown}");
        assert!(shown.ends_with("'authorization', '[hidden]'\n'x-a', 'b'\n, dynamicMetadata: jwt"), "{shown}");
        assert!(!shown.contains("let-me-in"), "{shown}");
        let shown = Checked(&Facts { request: None, ..facts }).to_string();
        assert!(shown.starts_with("checking connection: ") && !shown.contains("headers"), "{shown}");
    }
}
