//! `UpstreamTlsContext` -> [`ClientTls`]. It must not know clusters.

use std::sync::{Arc, Weak};

use tidegate_filters::context::CompileContext;
use tidegate_stats::Scope;
use tidegate_tls::client::check_server_name;
use tidegate_tls::{ClientContext, ClientSettings};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;

use super::Around;
use super::recipe::Recipe;
use super::secrets::{Act, Given, Place};
use super::values::Side;
use crate::config::values::wrapped_bool;
use crate::tls::{ClientTls, SocketFactoryStats, TlsStats};

/// The longest name that a host can be asked for by.
const LONGEST_NAME: usize = 255;

/// What a context is made of.
struct Plan {
    recipe: Recipe,
    expects_server_name: bool,
    enforces_rsa_key_usage: bool,
    kept_sessions: usize,
}

/// A plan, and who connects with what is made of it.
struct Served {
    plan: Plan,
    tls: Weak<ClientTls>,
}

/// TLS to hosts.
///
/// # Errors
/// What Envoy refuses, and what is not supported yet.
pub(in crate::config) fn upstream(
    proto: &UpstreamTlsContext,
    cluster: &Scope,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Arc<ClientTls>, FieldError> {
    if proto.sni.len() > LONGEST_NAME {
        return Err(context.error_at("sni", "SNI names longer than 255 characters are not allowed"));
    }
    if !proto.sni.is_empty() {
        check_server_name(&proto.sni).map_err(|failure| context.error_at("sni", failure.to_string()))?;
    }
    if proto.allow_renegotiation {
        let reason = "not supported: a host may not renegotiate (RFC 8446 forbids it, and rustls with it)";
        return Err(context.error_at("allow_renegotiation", reason));
    }
    let none = Default::default();
    let common = proto.common_tls_context.as_ref().unwrap_or(&none);
    if common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len() > 1 {
        return Err(
            context.error_at("common_tls_context", "Multiple TLS certificates are not supported for client contexts")
        );
    }
    let recipe =
        context.within("common_tls_context", |context| Recipe::compile(common, Side::Client, around, context))?;
    let plan = Plan {
        recipe,
        expects_server_name: proto.auto_sni_san_validation,
        enforces_rsa_key_usage: enforces_rsa_key_usage(proto),
        kept_sessions: proto.max_session_keys.map_or(1, |most| most.value as usize),
    };
    let factory = SocketFactoryStats::new(&cluster.scope("client_ssl_socket_factory."));
    let tls = Arc::new(ClientTls::new(None, &proto.sni, proto.auto_host_sni, TlsStats::new(cluster), factory));
    let served = Arc::new(Served { plan, tls: Arc::downgrade(&tls) });
    around.secrets.place(served).map_err(|reason| context.error(reason))?;
    Ok(tls)
}

#[expect(deprecated, reason = "Envoy 1.40 reads it")]
fn enforces_rsa_key_usage(proto: &UpstreamTlsContext) -> bool {
    wrapped_bool(proto.enforce_rsa_key_usage.as_ref(), true)
}

impl Place for Served {
    fn is_live(&self) -> bool {
        self.tls.strong_count() > 0
    }

    fn names(&self, secret: &str) -> bool {
        self.plan.recipe.names(secret)
    }

    fn prepare(&self, secrets: &Given<'_>) -> Result<Option<Act>, String> {
        let Some(made) = self.plan.recipe.make(secrets)? else { return Ok(None) };
        let settings = ClientSettings {
            parameters: self.plan.recipe.parameters.clone(),
            identity: made.identities.into_iter().next(),
            validation: made.validation.validation,
            expects_server_name: self.plan.expects_server_name,
            enforces_rsa_key_usage: self.plan.enforces_rsa_key_usage,
            alpn: self.plan.recipe.alpn.clone(),
            kept_sessions: self.plan.kept_sessions,
        };
        let context = ClientContext::build(settings).map_err(|refused| refused.0)?;
        let tls = Weak::clone(&self.tls);
        Ok(Some(Box::new(move |came| {
            if let Some(tls) = tls.upgrade() {
                tls.replace(context, came);
            }
        })))
    }
}
