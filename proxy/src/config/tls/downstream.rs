//! `DownstreamTlsContext` -> [`ServerTls`]. It must not know listeners.

use std::sync::{Arc, Weak};

use tidegate_filters::context::CompileContext;
use tidegate_stats::Scope;
use tidegate_tls::server::Stapling;
use tidegate_tls::tickets::TicketKeys;
use tidegate_tls::{ServerContext, ServerSettings};
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket;
use tidegate_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::{
    OcspStaplePolicy, SessionTicketKeysType,
};
use tidegate_xds::{FieldError, any};

use super::recipe::{Found, Recipe, other_kind, secret};
use super::secrets::{Act, Given, Place, Secret};
use super::values::Side;
use super::{Around, certificate, typed_config};
use crate::config::values::{duration, wrapped_bool};
use crate::tls::{ServerTls, SocketFactoryStats, TlsStats};

/// What a context is made of.
struct Plan {
    recipe: Recipe,
    tickets: Tickets,
    require_client_certificate: bool,
    require_server_name: bool,
    prefer_client_ciphers: bool,
    full_scan: bool,
    stapling: Stapling,
    stateful_sessions: bool,
    session_timeout: Option<u32>,
}

enum Tickets {
    None,
    Given(TicketKeys),
    Named(String),
}

/// A plan, and who serves with what is made of it.
struct Served {
    plan: Plan,
    tls: Weak<ServerTls>,
}

/// The transport socket of a filter chain; none is plain.
///
/// # Errors
/// What Envoy refuses, and what is not supported yet.
pub(in crate::config) fn downstream(
    socket: &TransportSocket,
    listener: &Scope,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Option<Arc<ServerTls>>, FieldError> {
    let config = typed_config(socket, context)?;
    context.within("typed_config", |context| match any::type_name(&config.type_url) {
        Some(name) if name == <RawBuffer as prost::Name>::full_name() => Ok(None),
        Some(name) if name == <DownstreamTlsContext as prost::Name>::full_name() => {
            let proto: DownstreamTlsContext = any::unpack(config, &context.path)?;
            let plan = Plan::compile(&proto, around, context)?;
            let factory = SocketFactoryStats::new(&listener.scope("server_ssl_socket_factory."));
            let tls = Arc::new(ServerTls::new(None, TlsStats::new(listener), factory));
            let served = Arc::new(Served { plan, tls: Arc::downgrade(&tls) });
            around.secrets.place(served).map_err(|reason| context.error(reason))?;
            Ok(Some(tls))
        }
        _ => Err(context.error(format!("not supported yet: {}", config.type_url))),
    })
}

impl Plan {
    fn compile(
        proto: &DownstreamTlsContext,
        around: &Around,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let none = Default::default();
        let common = proto.common_tls_context.as_ref().unwrap_or(&none);
        if common.tls_certificates.is_empty() && common.tls_certificate_sds_secret_configs.is_empty() {
            return Err(context.error("No TLS certificates found for server context"));
        }
        let recipe =
            context.within("common_tls_context", |context| Recipe::compile(common, Side::Server, around, context))?;
        let timeout = proto.session_timeout.as_ref().map(|timeout| duration(timeout).as_secs());
        Ok(Self {
            recipe,
            tickets: tickets(proto, around, context)?,
            require_client_certificate: wrapped_bool(proto.require_client_certificate.as_ref(), false),
            require_server_name: wrapped_bool(proto.require_sni.as_ref(), false),
            prefer_client_ciphers: proto.prefer_client_ciphers,
            full_scan: wrapped_bool(proto.full_scan_certs_on_sni_mismatch.as_ref(), false),
            stapling: match proto.ocsp_staple_policy() {
                OcspStaplePolicy::LenientStapling => Stapling::Lenient,
                OcspStaplePolicy::StrictStapling => Stapling::Strict,
                OcspStaplePolicy::MustStaple => Stapling::Must,
            },
            stateful_sessions: !proto.disable_stateful_session_resumption,
            session_timeout: timeout.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
        })
    }

    fn make(&self, secrets: &Given<'_>) -> Result<Option<ServerContext>, String> {
        let Some(made) = self.recipe.make(secrets)? else { return Ok(None) };
        let tickets = match &self.tickets {
            Tickets::None => None,
            Tickets::Given(keys) => Some(keys.clone()),
            Tickets::Named(name) => match secrets.tickets(name)? {
                Some(keys) => Some(keys),
                None => return Ok(None),
            },
        };
        let settings = ServerSettings {
            parameters: self.recipe.parameters.clone(),
            identities: made.identities,
            validation: made.validation.validation,
            require_client_certificate: self.require_client_certificate,
            require_server_name: self.require_server_name,
            alpn: self.recipe.alpn.clone(),
            prefer_client_ciphers: self.prefer_client_ciphers,
            full_scan: self.full_scan,
            stapling: self.stapling,
            tickets,
            stateful_sessions: self.stateful_sessions,
            session_timeout: self.session_timeout,
            digest: made.digest,
        };
        ServerContext::build(settings).map(Some).map_err(|refused| refused.0)
    }
}

fn tickets(
    proto: &DownstreamTlsContext,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Tickets, FieldError> {
    match &proto.session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => {
            Ok(Tickets::Given(TicketKeys::Random))
        }
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Ok(Tickets::None),
        Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
            context.within("session_ticket_keys", |context| certificate::ticket_keys(keys, context)).map(Tickets::Given)
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => {
            let found = context.within("session_ticket_keys_sds_secret_config", |context| {
                secret(config, "session_ticket_keys", around, context)
            })?;
            Ok(match found {
                Found::Fixed(Secret::Tickets(keys)) => Tickets::Given(keys),
                Found::Fixed(_) => return Err(other_kind("session_ticket_keys_sds_secret_config", context)),
                Found::Named(name) => Tickets::Named(name),
            })
        }
    }
}

impl Place for Served {
    fn is_live(&self) -> bool {
        self.tls.strong_count() > 0
    }

    fn names(&self, secret: &str) -> bool {
        self.plan.recipe.names(secret) || matches!(&self.plan.tickets, Tickets::Named(name) if name == secret)
    }

    fn prepare(&self, secrets: &Given<'_>) -> Result<Option<Act>, String> {
        let Some(context) = self.plan.make(secrets)? else { return Ok(None) };
        let tls = Weak::clone(&self.tls);
        Ok(Some(Box::new(move |came| {
            if let Some(tls) = tls.upgrade() {
                tls.replace(context, came);
            }
        })))
    }
}
