//! Which client is served which set: groups of nodes by what they say of themselves. It must not know what the sets hold.

use std::sync::Arc;

use tidegate_xds::pb::envoy::config::core::v3::{Locality, Node};
use tidegate_xds::pb::google::protobuf::value::Kind as ValueKind;
use tidegate_xds::pb::google::protobuf::{Struct, Value};

use super::resource_set::ResourceSet;

/// The sets of all groups at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sets {
    /// Who is in none of the groups gets this.
    pub rest: Arc<ResourceSet>,
    pub groups: Vec<Group>,
}

/// Some nodes, and what they are served.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: Arc<str>,
    /// What a node of this group has: each of `id`, `cluster`, `metadata` and `locality` that is set must be equal, or, where
    /// a text ends with `*`, begin so. Of metadata and of locality what is named here counts.
    pub pattern: Node,
    pub set: Arc<ResourceSet>,
}

/// The name of those that are in no group.
pub const REST: &str = "default";

impl Sets {
    /// The first group that a node is in, and what it is served.
    pub fn of(&self, node: &Node) -> (&str, &Arc<ResourceSet>) {
        let group = self.groups.iter().find(|group| matches(&group.pattern, node));
        group.map_or((REST, &self.rest), |group| (&*group.name, &group.set))
    }

    /// All sets with their names, the rest first.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Arc<ResourceSet>)> {
        let groups = self.groups.iter().map(|group| (&*group.name, &group.set));
        std::iter::once((REST, &self.rest)).chain(groups)
    }
}

fn matches(pattern: &Node, node: &Node) -> bool {
    let place = |locality: &Locality| {
        let has = node.locality.clone().unwrap_or_default();
        text(&locality.region, &has.region)
            && text(&locality.zone, &has.zone)
            && text(&locality.sub_zone, &has.sub_zone)
    };
    text(&pattern.id, &node.id)
        && text(&pattern.cluster, &node.cluster)
        && pattern.locality.as_ref().is_none_or(place)
        && pattern.metadata.as_ref().is_none_or(|wanted| holds(wanted, &node.metadata.clone().unwrap_or_default()))
}

fn text(pattern: &str, found: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => found.starts_with(prefix),
        None => pattern.is_empty() || pattern == found,
    }
}

fn holds(wanted: &Struct, found: &Struct) -> bool {
    wanted.fields.iter().all(|(key, wanted)| found.fields.get(key).is_some_and(|found| value(wanted, found)))
}

fn value(wanted: &Value, found: &Value) -> bool {
    match (&wanted.kind, &found.kind) {
        (Some(ValueKind::StructValue(wanted)), Some(ValueKind::StructValue(found))) => holds(wanted, found),
        // An empty text in metadata is a value like any other.
        (Some(ValueKind::StringValue(wanted)), Some(ValueKind::StringValue(found))) => {
            wanted == found || (!wanted.is_empty() && text(wanted, found))
        }
        (wanted, found) => wanted == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_xds::{Format, UnknownFields, load};

    fn node(text: &str) -> Node {
        load::<Node>(text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap().message
    }

    #[test]
    fn a_node_is_told_by_what_it_says_of_itself() {
        let here =
            node("{id: edge-7, cluster: edge, locality: {region: r, zone: z}, metadata: {app: {tier: one, x: 1}}}");
        for pattern in [
            "{}",
            "{id: edge-7}",
            "{id: 'edge-*', cluster: edge}",
            "{locality: {zone: z}}",
            "{metadata: {app: {tier: one}}}",
            "{metadata: {app: {tier: 'o*', x: 1}}}",
        ] {
            assert!(matches(&node(pattern), &here), "{pattern}");
        }
        for pattern in [
            "{id: edge}",
            "{id: 'edge-*', cluster: other}",
            "{locality: {zone: z, sub_zone: s}}",
            "{metadata: {app: {tier: two}}}",
            "{metadata: {app: {tier: ''}}}",
            "{metadata: {app: one}}",
            "{metadata: {other: {}}}",
        ] {
            assert!(!matches(&node(pattern), &here), "{pattern}");
        }
        assert!(!matches(&node("{locality: {zone: z}}"), &Node::default()));
    }

    #[test]
    fn the_first_group_counts() {
        let group =
            |name: &str, pattern: &str| Group { name: name.into(), pattern: node(pattern), set: Arc::default() };
        let sets = Sets { rest: Arc::default(), groups: vec![group("a", "{id: a}"), group("b", "{id: '*'}")] };
        assert_eq!(sets.of(&node("{id: a}")).0, "a");
        assert_eq!(sets.of(&node("{id: x}")).0, "b");
        assert_eq!(Sets::default().of(&node("{id: x}")).0, REST);
        assert_eq!(sets.all().map(|(name, _)| name).collect::<Vec<_>>(), [REST, "a", "b"]);
    }
}
