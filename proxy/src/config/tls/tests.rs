//! Contexts of secrets that are discovered: they are made when the secrets come, and junk changes nothing.

use rcgen::{CertificateParams, KeyPair};
use tidegate_filters::context::{Defaults, Needs};
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;
use tidegate_xds::{FieldPath, Format, UnknownFields, any, decode};

use super::*;

const DOWNSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

fn read<M: prost::Message + prost::Name + Default>(text: &str) -> M {
    let decoded = decode(&M::full_name(), text.as_bytes(), Format::Yaml, UnknownFields::Reject);
    any::decode(&decoded.unwrap().bytes, &FieldPath::root()).unwrap()
}

fn with_context<T>(act: impl FnOnce(&mut CompileContext<'_>) -> T) -> (T, Needs) {
    let mut needs = Needs::default();
    let mut context = CompileContext {
        resource: "r",
        path: FieldPath::root(),
        defaults: Defaults::Safe,
        stats: tidegate_stats::Store::new().root(),
        needs: &mut needs,
    };
    let result = act(&mut context);
    (result, needs)
}

fn certificate(name: &str) -> Secret {
    let key = KeyPair::generate().unwrap();
    let chain = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let inline = |text: &str| format!("{{inline_string: {}}}", serde_json::to_string(text).unwrap());
    let proto: SecretProto = read(&format!(
        "{{name: s, tls_certificate: {{certificate_chain: {}, private_key: {}}}}}",
        inline(&chain),
        inline(&key.serialize_pem())
    ));
    with_context(|context| Secret::compile(&proto, context)).0.unwrap()
}

#[test]
fn a_context_is_made_when_its_secret_comes_and_again_with_the_next() {
    let known = Known { ads: true, node: true, ..Known::default() };
    let around = Around { secrets: Secrets::default(), known };
    let socket: TransportSocket = read(&format!(
        "{{name: tls, typed_config: {{'@type': {DOWNSTREAM}, common_tls_context: {{tls_certificate_sds_secret_configs: \
         [{{name: s, sds_config: {{ads: {{}}, resource_api_version: V3}}}}]}}}}}}"
    ));
    let scope = tidegate_stats::Store::new().root();
    let (compiled, needs) = with_context(|context| downstream(&socket, &scope, &around, context));
    let tls = compiled.unwrap().unwrap();
    assert_eq!(needs.secrets.keys().collect::<Vec<_>>(), ["s"]);
    assert!(tls.context().is_none());
    let name = || tls.context().map(|context| context.identities().next().unwrap().names());
    around.secrets.set("s", certificate("a.test")).unwrap();
    assert_eq!(name(), Some(vec!["a.test".to_owned()]));
    around.secrets.set("s", certificate("b.test")).unwrap();
    assert_eq!(name(), Some(vec!["b.test".to_owned()]));
    // What is of no use to it changes nothing, and is told.
    let refused = around.secrets.set("s", Secret::Generic).unwrap_err();
    assert_eq!(refused, "secret 's' is a generic_secret, but a tls_certificate is needed");
    assert_eq!(name(), Some(vec!["b.test".to_owned()]));
    // Nobody serves with it any more: anything may have the name.
    drop(tls);
    around.secrets.set("s", Secret::Generic).unwrap();
}

#[test]
fn a_static_secret_is_found_by_name_and_kind() {
    let secrets = Secrets::default();
    assert!(secrets.fix("s", certificate("a.test")) && !secrets.fix("s", certificate("a.test")));
    assert!(secrets.fix("s", Secret::Generic), "of another kind");
    assert!(secrets.fixed("s", "tls_certificate").is_some() && secrets.fixed("s", "validation_context").is_none());
}
