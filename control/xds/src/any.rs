//! `google.protobuf.Any`: type URLs and typed contents. It must not know which types there are.

use prost::{Message, Name};

use crate::{FieldError, FieldPath, pb::google::protobuf::Any};

/// The full name in a type URL: what follows its last `/`, before which there must be something.
pub fn type_name(url: &str) -> Option<&str> {
    url.rsplit_once('/').filter(|(host, _)| !host.is_empty()).map(|(_, name)| name)
}

/// The contents of an Any as the one type that may stand at `path`.
///
/// # Errors
/// Another type, or bytes that are not a message of it.
pub fn unpack<M: Message + Name + Default>(any: &Any, path: &FieldPath) -> Result<M, FieldError> {
    let expected = M::full_name();
    if type_name(&any.type_url) != Some(&expected) {
        let reason = format!("expected a {expected}, found {:?}", any.type_url);
        return Err(FieldError::new(path.clone(), reason));
    }
    decode(&any.value, path)
}

/// A typed message from its bytes.
///
/// # Errors
/// Bytes that are not a message of this type.
pub fn decode<M: Message + Name + Default>(bytes: &[u8], path: &FieldPath) -> Result<M, FieldError> {
    M::decode(bytes).map_err(|error| FieldError::new(path.clone(), format!("not a {}: {error}", M::full_name())))
}

/// An Any that holds `message`, with the usual host in its type URL.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;

    #[test]
    fn a_type_url_needs_a_slash() {
        assert_eq!(type_name("type.googleapis.com/a.B"), Some("a.B"));
        assert_eq!(type_name("x/y/a.B"), Some("a.B"));
        assert_eq!(type_name("/a.B"), None);
        assert_eq!(type_name("a.B"), None);
    }

    #[test]
    fn only_the_expected_type_is_unpacked() {
        let any = pack(&Cluster { name: "c".to_owned(), ..Cluster::default() });
        let path = FieldPath::root().field("typed_config");
        assert_eq!(unpack::<Cluster>(&any, &path).unwrap().name, "c");
        let other = unpack::<crate::pb::google::rpc::Status>(&any, &path).unwrap_err();
        assert!(other.to_string().starts_with("typed_config: expected a google.rpc.Status"), "{other}");
        let broken = Any { value: vec![0xff], ..any };
        assert!(unpack::<Cluster>(&broken, &path).is_err());
    }
}
