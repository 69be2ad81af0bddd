//! CSDS: the state of each connected client, resource by resource. It must not know how a stream is served.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tidegate_xds::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use tidegate_xds::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryService;
use tidegate_xds::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use tidegate_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tidegate_xds::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use tidegate_xds::pb::google::protobuf::Timestamp;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::server::clients::{Client, Clients};
use crate::server::resource_set::ResourceType;
use crate::server::status::{ResourceStatus, State};

/// The service.
#[derive(Debug)]
pub(super) struct ClientStatus(pub(super) Arc<Clients>);

#[tonic::async_trait]
impl ClientStatusDiscoveryService for ClientStatus {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let clients = self.0.clone();
        let answers = request.into_inner().map(move |request| respond(&clients, &request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        respond(&self.0, request.get_ref()).map(Response::new)
    }
}

/// The state of the clients that a request asks for, one entry a node; a node may have several streams.
///
/// # Errors
/// A way to choose nodes that is not built.
pub(super) fn respond(clients: &Clients, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
    let mut nodes: BTreeMap<String, ClientConfig> = BTreeMap::new();
    for client in clients.all() {
        if !wanted(&request.node_matchers, &client.node)? {
            continue;
        }
        let entry = nodes
            .entry(client.node.id.clone())
            .or_insert_with(|| ClientConfig { node: Some(client.node.clone()), ..ClientConfig::default() });
        entry.generic_xds_configs.extend(entries(&client, request.exclude_resource_contents));
    }
    Ok(ClientStatusResponse { config: nodes.into_values().collect() })
}

fn entries(client: &Client, without_contents: bool) -> Vec<GenericXdsConfig> {
    client.resources().into_iter().map(|status| entry(status, without_contents)).collect()
}

fn entry(status: ResourceStatus, without_contents: bool) -> GenericXdsConfig {
    let (config_status, client_status) = match status.state {
        State::Synced if status.resource.is_none() => (ConfigStatus::Synced, ClientResourceStatus::DoesNotExist),
        State::Synced => (ConfigStatus::Synced, ClientResourceStatus::Acked),
        State::NotSent => (ConfigStatus::NotSent, ClientResourceStatus::Requested),
        State::Unanswered => (ConfigStatus::Stale, ClientResourceStatus::Requested),
        State::Refused => (ConfigStatus::Error, ClientResourceStatus::Nacked),
    };
    // Keys are for those that asked for them.
    let shown = status.resource.as_ref().filter(|_| !without_contents && status.kind != ResourceType::SECRET);
    let body = shown.map(|resource| resource.body.clone());
    let failure = |refusal: crate::server::Refusal| UpdateFailureState {
        failed_configuration: body.clone(),
        last_update_attempt: Some(timestamp(refusal.at)),
        details: refusal.reason,
        version_info: refusal.version,
    };
    GenericXdsConfig {
        type_url: status.kind.url(),
        name: status.name.to_string(),
        version_info: status.resource.as_ref().map(|resource| resource.version.to_string()).unwrap_or_default(),
        config_status: config_status.into(),
        client_status: client_status.into(),
        error_state: status.refusal.map(failure),
        xds_config: body,
        ..GenericXdsConfig::default()
    }
}

fn timestamp(at: Instant) -> Timestamp {
    let then = SystemTime::now().checked_sub(at.elapsed()).unwrap_or(UNIX_EPOCH);
    let since = then.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// Whether one of the matchers wants a node; none of them wants all.
fn wanted(matchers: &[NodeMatcher], node: &Node) -> Result<bool, Status> {
    let mut any = matchers.is_empty();
    for (index, matcher) in matchers.iter().enumerate() {
        if !matcher.node_metadatas.is_empty() {
            let reason = format!("not supported yet: node_matchers[{index}].node_metadatas");
            return Err(Status::invalid_argument(reason));
        }
        any |= match &matcher.node_id {
            Some(wanted) => text(wanted, &node.id).ok_or_else(|| {
                Status::invalid_argument(format!("not supported yet: node_matchers[{index}].node_id"))
            })?,
            None => true,
        };
    }
    Ok(any)
}

/// None: a kind of matcher that is not built.
fn text(matcher: &StringMatcher, text: &str) -> Option<bool> {
    let cased = |text: &str| if matcher.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let text = cased(text);
    Some(match matcher.match_pattern.as_ref()? {
        MatchPattern::Exact(wanted) => text == cased(wanted),
        MatchPattern::Prefix(wanted) => text.starts_with(&cased(wanted)),
        MatchPattern::Suffix(wanted) => text.ends_with(&cased(wanted)),
        MatchPattern::Contains(wanted) => text.contains(&cased(wanted)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{CDS, cluster, set};
    use crate::server::{Dialect, Sotw};
    use parking_lot::Mutex;
    use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;
    use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;
    use tidegate_xds::pb::google::rpc;

    fn client(node: &str, refuses: bool) -> Client {
        let mut sotw = Sotw::new(set([cluster("a", "")]), true, ControlPlane::default(), Arc::default());
        let request = DiscoveryRequest { type_url: CDS.to_owned(), ..DiscoveryRequest::default() };
        sotw.receive(request.clone(), Instant::now());
        let response_nonce = sotw.next_response(Instant::now()).unwrap().nonce;
        let status = rpc::Status { code: 13, message: "no".to_owned(), details: Vec::new() };
        let error_detail = Some(status).filter(|_| refuses);
        sotw.receive(DiscoveryRequest { response_nonce, error_detail, ..request }, Instant::now());
        let node = Node { id: node.to_owned(), ..Node::default() };
        Client::new(node, None, "ads", Arc::new(Mutex::new(sotw)))
    }

    #[test]
    fn what_a_client_refused_is_told_with_its_reason() {
        let clients = Arc::new(Clients::default());
        let _good = clients.add(client("good", false));
        let gone = clients.add(client("gone", false));
        let _bad = clients.add(client("bad", true));
        drop(gone);
        let all = respond(&clients, &ClientStatusRequest::default()).unwrap();
        let nodes: Vec<_> = all.config.iter().map(|config| config.node.clone().unwrap().id).collect();
        assert_eq!(nodes, ["bad", "good"]);
        let bad = &all.config[0].generic_xds_configs[0];
        assert_eq!((bad.config_status(), bad.client_status()), (ConfigStatus::Error, ClientResourceStatus::Nacked));
        let failure = bad.error_state.as_ref().unwrap();
        assert_eq!((failure.details.as_str(), failure.version_info.len()), ("no", 16));
        assert_eq!(bad.xds_config, failure.failed_configuration);
        let good = &all.config[1].generic_xds_configs[0];
        assert_eq!((good.name.as_str(), good.config_status()), ("a", ConfigStatus::Synced));
    }

    #[test]
    fn nodes_can_be_chosen() {
        let clients = Arc::new(Clients::default());
        let _a = clients.add(client("edge-1", false));
        let _b = clients.add(client("other", false));
        let ask = |pattern: MatchPattern, ignore_case: bool| {
            let node_id = Some(StringMatcher { match_pattern: Some(pattern), ignore_case });
            let node_matchers = vec![NodeMatcher { node_id, node_metadatas: Vec::new() }];
            let request = ClientStatusRequest { node_matchers, exclude_resource_contents: true, node: None };
            respond(&clients, &request)
        };
        let edge = ask(MatchPattern::Prefix("EDGE".to_owned()), true).unwrap();
        assert_eq!(edge.config.len(), 1);
        assert!(edge.config[0].generic_xds_configs[0].xds_config.is_none());
        assert!(ask(MatchPattern::Exact("EDGE-1".to_owned()), false).unwrap().config.is_empty());
        let refused = ask(MatchPattern::SafeRegex(Default::default()), false).unwrap_err();
        assert_eq!(refused.message(), "not supported yet: node_matchers[0].node_id");
    }
}
