//! Clusters from text, as tests of this folder and of clusters need them.

use tidegate_filters::context::{CompileContext, Defaults, Needs};
use tidegate_stats::Store;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::{FieldError, FieldPath, Format, UnknownFields, any, audit, decode, validate};

use super::{ClusterDefaults, Compiled, compile};
use crate::config::registry::Registry;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

/// Runs all stages on a cluster in YAML; the first error is what is told.
pub(crate) fn try_cluster(text: &str) -> Result<Compiled, FieldError> {
    let bytes = decoded(text)?;
    match audit(CLUSTER, &bytes, Registry::built_in().coverage()).unsupported.into_iter().next() {
        Some(error) => Err(error),
        None => compile_text(text),
    }
}

/// Runs all stages but the audit.
pub(crate) fn compile_text(text: &str) -> Result<Compiled, FieldError> {
    let proto: Cluster = any::decode(&decoded(text)?, &FieldPath::root())?;
    let mut needs = Needs::default();
    let mut context = CompileContext {
        resource: &proto.name,
        path: FieldPath::root(),
        defaults: Defaults::Envoy,
        stats: Store::new().root(),
        needs: &mut needs,
    };
    compile(&proto, &ClusterDefaults::default(), &mut context)
}

pub(crate) fn cluster(text: &str) -> Compiled {
    try_cluster(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn decoded(text: &str) -> Result<Vec<u8>, FieldError> {
    let first = |errors: Vec<FieldError>| errors.into_iter().next().unwrap();
    let decoded = decode(CLUSTER, text.as_bytes(), Format::Yaml, UnknownFields::Reject).map_err(first)?;
    validate(CLUSTER, &decoded.bytes).map_err(first)?;
    Ok(decoded.bytes)
}
