//! From text or Any to a typed message that has been checked, in one call, with every error placed.
//! It must not know what the message is for.

use prost::{Message, Name};

use crate::{
    Decoded, FieldError, FieldPath, Format, SourceMap, UnknownFields, any, decode,
    pb::google::protobuf::Any,
    validate,
    validate::{Broken, broken},
};

/// A typed message that fulfils the schema's rules, and where it came from.
#[derive(Debug)]
pub struct Loaded<M> {
    pub message: M,
    /// The message on the wire.
    pub bytes: Vec<u8>,
    /// What [`UnknownFields::Collect`] left out.
    pub unknown: Vec<FieldError>,
    /// Gives errors that are found later their place.
    pub source: SourceMap,
}

/// Decodes a text and checks it.
///
/// # Errors
/// All that is wrong with the text or, if it can be read, with the values in it.
pub fn load<M: Message + Name + Default>(
    text: &[u8],
    format: Format,
    unknown_fields: UnknownFields,
) -> Result<Loaded<M>, Vec<FieldError>> {
    let Decoded { bytes, unknown, source, .. } = decode(&M::full_name(), text, format, unknown_fields)?;
    let message = load_bytes(&bytes).map_err(|mut errors| {
        source.place(&mut errors);
        errors
    })?;
    Ok(Loaded { message, bytes, unknown, source })
}

/// Checks and decodes what an Any holds, such as a resource from a control plane.
///
/// # Errors
/// Another type, bytes that are no message of it, or all rules that its values break.
pub fn load_any<M: Message + Name + Default>(any: &Any) -> Result<M, Vec<FieldError>> {
    if any::type_name(&any.type_url) != Some(&M::full_name()) {
        let reason = format!("expected a {}, found {:?}", M::full_name(), any.type_url);
        return Err(vec![FieldError::new(FieldPath::root(), reason)]);
    }
    load_bytes(&any.value)
}

/// The same for a resource of a response, whose faults differ: a message that breaks no rule by itself comes with the rules that
/// what its Anys hold breaks.
///
/// # Errors
/// As [`load_any`], but for those.
pub fn load_resource<M: Message + Name + Default>(any: &Any) -> Result<(M, Vec<FieldError>), Vec<FieldError>> {
    if any::type_name(&any.type_url) != Some(&M::full_name()) {
        return load_any(any).map(|message| (message, Vec::new()));
    }
    let Broken { own, packed } = broken(&M::full_name(), &any.value);
    if !own.is_empty() {
        return Err(own);
    }
    any::decode(&any.value, &FieldPath::root()).map(|message| (message, packed)).map_err(|error| vec![error])
}

/// Checks and decodes a message's bytes, such as those of two that were merged.
///
/// # Errors
/// Bytes that are no message of this type, or all rules that its values break.
pub fn load_bytes<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, Vec<FieldError>> {
    validate(&M::full_name(), bytes)?;
    any::decode(bytes, &FieldPath::root()).map_err(|error| vec![error])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;

    #[test]
    fn broken_rules_are_found_with_their_place() {
        let text = b"name: ''\nconnect_timeout: 0s\n";
        let errors = load::<Cluster>(text, Format::Yaml, UnknownFields::Reject).unwrap_err();
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "name: must not be empty (line 1, column 1)",
                "connect_timeout: 0s must be more than 0s (line 2, column 1)",
            ]
        );
    }

    #[test]
    fn a_resource_is_checked_before_it_is_typed() {
        let good = any::pack(&Cluster { name: "a".to_owned(), ..Cluster::default() });
        assert_eq!(load_any::<Cluster>(&good).unwrap().name, "a");
        assert!(load_any::<Cluster>(&any::pack(&Cluster::default())).is_err());
        assert!(load_any::<Cluster>(&Any { value: vec![1], ..good }).is_err());
        assert!(load_any::<Cluster>(&Any::default()).is_err());
        let bare = || Cluster { name: "a".to_owned(), ..Cluster::default() };
        let socket = |config: Any| crate::pb::envoy::config::core::v3::TransportSocket {
            name: "s".to_owned(),
            config_type: Some(crate::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(config)),
        };
        let within = Cluster { transport_socket: Some(socket(any::pack(&Cluster::default()))), ..bare() };
        let (message, packed) = load_resource::<Cluster>(&any::pack(&within)).unwrap();
        assert_eq!((message.name.as_str(), packed.len()), ("a", 1));
        assert!(packed[0].path.to_string().starts_with("transport_socket.typed_config"), "{}", packed[0].path);
        assert!(load_any::<Cluster>(&any::pack(&within)).is_err());
        let both = Cluster { name: String::new(), ..within };
        assert_eq!(load_resource::<Cluster>(&any::pack(&both)).unwrap_err().len(), 1);
    }
}
