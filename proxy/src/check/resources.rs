//! What the data plane has against resources that a control plane would serve it. It must not know where they came from.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::{Message, Name};
use tidegate_control::server::{Resource, ResourceSet, ResourceType};
use tidegate_filters::context::Defaults;
use tidegate_stats::Store as StatsStore;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldError, FieldPath, load_any};

use crate::config::bootstrap::Bootstrap;
use crate::config::store::{Placed, Store};
use crate::runtime::Layers;
use crate::server::make_store;

/// Each fault with the place of its resource, its type and its name. Types that only some proxies are asked for are not judged.
pub(super) fn refused(set: &ResourceSet, defaults: Defaults) -> Vec<String> {
    // Nobody is asked: what matters is that the proxy has a control plane.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let bootstrap = match Bootstrap::asking(nobody, nobody) {
        Ok(bootstrap) => bootstrap,
        Err(errors) => return errors.iter().map(ToString::to_string).collect(),
    };
    let stats = StatsStore::new();
    let layers = Arc::new(Layers::new(bootstrap.runtime_layers.clone(), &stats));
    let (mut store, _) = make_store(&bootstrap, defaults, &stats, layers, None);
    store.started = true;
    let kinds = [ResourceType::CLUSTER, ResourceType::ENDPOINTS, ResourceType::LISTENER, ResourceType::ROUTES];
    let mut faults = Vec::new();
    for resource in kinds.into_iter().flat_map(|kind| set.kind(kind).iter()) {
        let (kind, name) = (resource.kind.short(), &resource.name);
        let place = match resource.place(None) {
            place if place.is_empty() => place,
            place => format!("{place}: "),
        };
        for error in judge(&mut store, resource) {
            let error = FieldError { resource: None, location: None, ..error };
            faults.push(format!("{place}{kind} '{name}': {error}"));
        }
    }
    faults
}

fn judge(store: &mut Store, resource: &Resource) -> Vec<FieldError> {
    match resource.kind {
        ResourceType::CLUSTER => taken::<Cluster>(resource, |one| store.update_clusters(one)),
        ResourceType::ENDPOINTS => taken::<ClusterLoadAssignment>(resource, |one| store.update_assignments(one)),
        ResourceType::LISTENER => taken::<Listener>(resource, |one| store.update_listeners(one)),
        _ => taken::<RouteConfiguration>(resource, |one| store.update_routes(one)),
    }
}

fn taken<M: Message + Name + Default>(
    resource: &Resource,
    take: impl FnOnce(Vec<Placed<M>>) -> Vec<FieldError>,
) -> Vec<FieldError> {
    match load_any::<M>(&resource.body) {
        Ok(message) => take(vec![Placed::encoded(message, FieldPath::root(), &"".into())]),
        Err(errors) => errors,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidegate_control::source;

    use super::*;

    /// Each text with one line left out, with one value changed: what somebody may come to write.
    fn variants(text: &str) -> Vec<String> {
        let lines: Vec<&str> = text.lines().collect();
        let mut variants = vec![text.to_owned()];
        for index in 0..lines.len() {
            let mut fewer = lines.clone();
            fewer.remove(index);
            variants.push(fewer.join("\n"));
        }
        for (from, to) in [
            ("1", "0"),
            ("2", "4000000"),
            ("3", "1000000000"),
            ("s }", "m }"),
            ("1s", "1ms"),
            ("5s", "0s"),
            ("1h", "365h"),
            ("a", "%"),
            ("/api", "/a.(b)[c]"),
            ("/v2", "/v2/"),
            ("true", "false"),
            ("{ exact:", "{ regex:"),
            ("example", "*"),
            ("[", "[]#"),
            ("none", "/dev/null"),
            ("MiB", "B"),
        ] {
            variants.extend(text.match_indices(from).map(|(at, _)| {
                let (before, after) = (&text[..at], &text[at + from.len()..]);
                format!("{before}{to}{after}")
            }));
        }
        variants
    }

    /// What the short form takes, the data plane takes.
    #[test]
    fn what_the_short_form_takes_is_taken() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/short");
        let scratch = std::env::temp_dir().join(format!("tidegate-variants-{}.yaml", std::process::id()));
        let (mut served, mut refused) = (0, 0);
        for example in ["every-field.yaml", "edge.yaml"] {
            let text = std::fs::read_to_string(configs.join(example)).unwrap();
            // Comments say nothing, and tables of hosts take long to make.
            let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            let text = text.replace("endpoints: [127.0.0.1:8081]", "endpoints: []");
            for variant in variants(&text) {
                std::fs::write(&scratch, &variant).unwrap();
                match source::load(&scratch) {
                    Ok(sets) => {
                        served += 1;
                        assert_eq!(super::refused(&sets.rest, Defaults::Safe), [""; 0], "{variant}");
                    }
                    Err(wrong) => {
                        refused += 1;
                        // It is refused as what somebody wrote, not as what it expands to.
                        assert!(!wrong.to_string().contains("resource '"), "{wrong}\n{variant}");
                    }
                }
            }
        }
        std::fs::remove_file(&scratch).unwrap();
        assert!(served > 100 && refused > 100, "{served} served, {refused} refused");
    }
}
