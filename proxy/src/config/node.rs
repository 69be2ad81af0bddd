//! `envoy.config.core.v3.Node` and what the command line says of it -> who this is. It must not know whom it is told.

use prost::Message;
use serde_json::{Value, json};
use tidegate_xds::Coverage;
use tidegate_xds::pb::envoy::config::core::v3 as proto;
use tidegate_xds::pb::envoy::config::core::v3::node::UserAgentVersionType;
use tidegate_xds::pb::envoy::r#type::v3::SemanticVersion;

use super::Node;
use super::bootstrap::Overrides;

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.Node",
        enforced: &[
            "id",
            "cluster",
            "locality",
            "metadata",
            "client_features",
            "listening_addresses",
            "dynamic_parameters",
            "user_agent_name",
        ],
        listed: &[
            ("user_agent_version", "Envoy says its own, whatever is set"),
            ("user_agent_build_version", "Envoy says its own, whatever is set"),
            ("extensions", "Envoy says its own, whatever is set"),
        ],
    },
    Coverage { message: "xds.core.v3.ContextParams", enforced: &["params"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.Locality", enforced: &["region", "zone", "sub_zone"], listed: &[] },
];

/// The names of the node; an empty flag says nothing.
pub(super) fn compile(node: Option<&proto::Node>, overrides: &Overrides) -> Node {
    let node = node.cloned().unwrap_or_default();
    let locality = node.locality.unwrap_or_default();
    let or = |flag: &Option<String>, name| flag.clone().filter(|flag| !flag.is_empty()).unwrap_or(name);
    Node {
        id: or(&overrides.service_node, node.id),
        cluster: or(&overrides.service_cluster, node.cluster),
        zone: or(&overrides.service_zone, locality.zone),
        region: locality.region,
        sub_zone: locality.sub_zone,
    }
}

/// The node as it is told: what was configured with the names that act, and that it speaks as Envoy 1.40 does.
pub(super) fn message(configured: Option<&proto::Node>, names: &Node) -> proto::Node {
    let mut node = configured.cloned().unwrap_or_default();
    node.id.clone_from(&names.id);
    node.cluster.clone_from(&names.cluster);
    if node.locality.is_some() || !names.zone.is_empty() {
        node.locality.get_or_insert_default().zone.clone_from(&names.zone);
    }
    if node.user_agent_name.is_empty() {
        node.user_agent_name = "envoy".to_owned();
    }
    // What is set is not the proxy's own list, which it does not tell yet.
    node.extensions.clear();
    let version = SemanticVersion { major_number: 1, minor_number: 40, patch: 0 };
    let version = proto::BuildVersion { version: Some(version), metadata: None };
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(version));
    node
}

/// A node as Envoy prints it: what is empty is shown too.
pub(super) fn json(node: &proto::Node) -> Value {
    let mut shown = tidegate_xds::to_json("envoy.config.core.v3.Node", &node.encode_to_vec());
    let empty = [
        ("", json!({"id": "", "cluster": "", "client_features": [], "listening_addresses": [], "extensions": []})),
        ("", json!({"dynamic_parameters": {}})),
        ("/locality", json!({"region": "", "zone": "", "sub_zone": ""})),
        ("/user_agent_build_version/version", json!({"major_number": 0, "minor_number": 0, "patch": 0})),
    ];
    for (place, defaults) in empty {
        let (Some(Value::Object(object)), Value::Object(defaults)) = (shown.pointer_mut(place), defaults) else {
            continue;
        };
        for (name, value) in defaults {
            object.entry(name).or_insert(value);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(zone: &str) -> Node {
        Node { id: "i".into(), zone: zone.into(), ..Node::default() }
    }

    #[test]
    fn flags_win_unless_they_are_empty() {
        let configured = proto::Node { id: "file".into(), cluster: "file".into(), ..proto::Node::default() };
        let flags = Overrides {
            service_node: Some("flag".into()),
            service_cluster: Some(String::new()),
            service_zone: Some("z".into()),
            ..Overrides::default()
        };
        let node = compile(Some(&configured), &flags);
        assert_eq!((&*node.id, &*node.cluster, &*node.zone), ("flag", "file", "z"));
        assert_eq!(message(Some(&configured), &node).locality.unwrap().zone, "z");
        assert_eq!(message(None, &names("")).locality, None);
    }

    #[test]
    fn the_agents_name_may_be_set_and_its_version_not() {
        let configured = proto::Node {
            user_agent_name: "mine".into(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion("9".into())),
            ..proto::Node::default()
        };
        let shown = json(&message(Some(&configured), &names("")));
        assert_eq!(shown["user_agent_name"], "mine");
        assert_eq!(shown.get("user_agent_version"), None);
        assert_eq!(shown["user_agent_build_version"]["version"]["patch"], 0);
        assert_eq!(message(None, &names("")).user_agent_name, "envoy");
    }

    #[test]
    fn what_is_empty_is_shown() {
        let shown = json(&message(None, &Node::default()));
        assert_eq!((&shown["id"], &shown["cluster"], shown.get("locality")), (&json!(""), &json!(""), None));
        assert_eq!(json(&message(None, &names("z")))["locality"], json!({"region": "", "zone": "z", "sub_zone": ""}));
    }
}
