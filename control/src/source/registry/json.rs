//! What registries say in JSON: only what is used of it is kept, and it may be long only within bounds. It must not know what the
//! fields mean.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// How many instances a service may have.
pub(super) const MOST_INSTANCES: usize = 10_000;

/// What stands in a field that is to be no list and no object. Registries are not strict: what is wrong in one instance is
/// no reason to lose the others.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Scalar {
    /// Null, or what is no scalar, or no field at all.
    #[default]
    Nothing,
    Bool(bool),
    Whole(u64),
    /// Negative ones, and fractions.
    Number(f64),
    Text(String),
}

impl Scalar {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A port that something can be reached at.
    pub(super) fn port(&self) -> Option<u16> {
        self.whole().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Nothing)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(u64::try_from(value).map_or(Scalar::Number(value as f64), Scalar::Whole))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Scalar, E> {
                Ok(Scalar::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Scalar, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nothing)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Scalar, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nothing)
            }
        }
        from.deserialize_any(Any)
    }
}

/// What tells an instance apart; only what is text.
pub(super) fn labels(said: Option<BTreeMap<String, Scalar>>) -> BTreeMap<String, String> {
    let text = |(key, value)| match value {
        Scalar::Text(text) => Some((key, text)),
        _ => None,
    };
    said.into_iter().flatten().filter_map(text).collect()
}

/// A service's instances, [`MOST_INSTANCES`] at most.
#[derive(Debug)]
pub(super) struct Instances<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Instances<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Instances<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of instances")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Instances<T>, A::Error> {
                let mut read = Vec::new();
                while let Some(item) = items.next_element()? {
                    if read.len() == MOST_INSTANCES {
                        return Err(A::Error::custom(format!("more than {MOST_INSTANCES} instances")));
                    }
                    read.push(item);
                }
                Ok(Instances(read))
            }
        }
        from.deserialize_seq(List(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_scalar_counts_as_nothing() {
        let read = |text: &str| serde_json::from_str::<Scalar>(text).unwrap();
        for text in ["null", "[[1], {}]", r#"{"a": [1]}"#] {
            assert_eq!(read(text), Scalar::Nothing, "{text}");
        }
        assert_eq!(
            (read("80").port(), read("0").port(), read("65536").port(), read("-1").port()),
            (Some(80), None, None, None)
        );
        assert_eq!((read("-1.5").number(), read("7").number(), read("true").number()), (Some(-1.5), Some(7.0), None));
        assert_eq!((read(r#""a\n""#).text(), read(r#""80""#).port()), (Some("a\n"), None));
    }

    #[test]
    fn there_may_be_so_many_instances() {
        let read = |count: usize| {
            serde_json::from_str::<Instances<Scalar>>(&format!("[{}0]", "[],".repeat(count - 1)))
                .map(|read| read.0.len())
        };
        assert_eq!(read(MOST_INSTANCES).unwrap(), MOST_INSTANCES);
        assert!(read(MOST_INSTANCES + 1).unwrap_err().to_string().starts_with("more than 10000 instances"));
        assert!(serde_json::from_str::<Instances<Scalar>>("{}").is_err());
    }
}
