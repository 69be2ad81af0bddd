//! What a matcher tree's predicates ask of an input: a string matcher, or a custom one by its type URL.
//! They must not know which input it is.

use std::net::IpAddr;

use prost::Name;
use tidegate_stats::OwnedCounter;
use tidegate_xds::pb::envoy::extensions::matching::input_matchers as pb;
use tidegate_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::protos::matcher::CelMatcher;
use tidegate_xds::{Coverage, FieldError, any};
use xxhash_rust::xxh64::xxh64;

use super::cel::{Expression, Functions};
use super::input::Found;
use super::{CidrList, StringMatcher, ValueMatcher};
use crate::context::CompileContext;
use crate::runtime::{Fraction, Runtime};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.matching.input_matchers.ip.v3.Ip",
        enforced: &["cidr_ranges", "stat_prefix"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
        enforced: &["value", "invert"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction",
        enforced: &["runtime_fraction", "seed"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing",
        enforced: &["threshold", "modulo", "seed"],
        listed: &[],
    },
    Coverage {
        message: "xds.type.matcher.v3.CelMatcher",
        enforced: &["expr_match"],
        listed: &[("description", "it says what the expression is for")],
    },
    Coverage {
        message: "xds.type.v3.CelExpression",
        enforced: &["parsed_expr", "checked_expr", "cel_expr_parsed", "cel_expr_checked"],
        listed: &[(
            "cel_expr_string",
            "a parsed or checked expression is required, and the text not looked at, as in Envoy",
        )],
    },
    Coverage {
        message: "envoy.config.core.v3.RuntimeFractionalPercent",
        enforced: &["default_value", "runtime_key"],
        listed: &[],
    },
];

/// A compiled `value_match` or `custom_match`.
#[derive(Clone)]
pub(super) enum Test {
    String(StringMatcher),
    Ip { ranges: CidrList, parsing_failed: OwnedCounter },
    Metadata { value: ValueMatcher, invert: bool },
    RuntimeFraction { fraction: Fraction, seed: u64 },
    ConsistentHashing { threshold: u64, modulo: u64, seed: u64 },
    Cel(Expression),
}

impl Test {
    /// Compiles the custom matcher of this type URL.
    pub(super) fn compile(config: &Any, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let Some(name) = any::type_name(&config.type_url) else {
            return Err(context.error(format!("not a type URL: {:?}", config.type_url)));
        };
        if name == pb::ip::v3::Ip::full_name() {
            let matcher: pb::ip::v3::Ip = any::unpack(config, &context.path)?;
            let scope = context.stats.root().scope(&matcher.stat_prefix);
            let ranges = CidrList::compile(&matcher.cidr_ranges, "cidr_ranges", context)?;
            return Ok(Self::Ip { ranges, parsing_failed: scope.counter("ip_parsing_failed") });
        }
        if name == pb::metadata::v3::Metadata::full_name() {
            let matcher: pb::metadata::v3::Metadata = any::unpack(config, &context.path)?;
            let value = matcher.value.unwrap_or_default();
            let value = context.within("value", |context| ValueMatcher::compile(&value, context))?;
            return Ok(Self::Metadata { value, invert: matcher.invert });
        }
        if name == pb::runtime_fraction::v3::RuntimeFraction::full_name() {
            let matcher: pb::runtime_fraction::v3::RuntimeFraction = any::unpack(config, &context.path)?;
            let share = matcher.runtime_fraction.unwrap_or_default();
            let default = share.default_value.unwrap_or_default();
            let fraction = Fraction {
                key: (!share.runtime_key.is_empty()).then(|| share.runtime_key.into()),
                numerator: default.numerator.into(),
                denominator: match default.denominator() {
                    DenominatorType::Hundred => 100,
                    DenominatorType::TenThousand => 10_000,
                    DenominatorType::Million => 1_000_000,
                },
            };
            return Ok(Self::RuntimeFraction { fraction, seed: matcher.seed });
        }
        if name == pb::consistent_hashing::v3::ConsistentHashing::full_name() {
            let matcher: pb::consistent_hashing::v3::ConsistentHashing = any::unpack(config, &context.path)?;
            if matcher.threshold > matcher.modulo {
                return Err(context.error_at("threshold", "threshold cannot be greater than modulo"));
            }
            let (threshold, modulo) = (matcher.threshold.into(), u64::from(matcher.modulo).max(1));
            return Ok(Self::ConsistentHashing { threshold, modulo, seed: matcher.seed });
        }
        if name == CelMatcher::full_name() {
            let matcher: CelMatcher = any::unpack(config, &context.path)?;
            let held = matcher.expr_match.unwrap_or_default();
            let compiled = Expression::compile_held(&held, Functions::default());
            let failed = |error| context.error_at("expr_match", format!("failed to create an expression: {error}"));
            return compiled.map(Self::Cel).map_err(failed);
        }
        Err(context.error(format!("not supported yet: {}", config.type_url)))
    }

    /// Whether it asks the attributes of CEL, which nothing else takes.
    pub(super) fn takes_attributes(&self) -> bool {
        matches!(self, Self::Cel(_))
    }

    /// What is not there satisfies only an inverted metadata matcher.
    pub(super) fn holds(&self, found: Found<'_>, runtime: &dyn Runtime) -> bool {
        match (self, found) {
            (Self::Metadata { value, invert }, Found::Json(json)) => value.matches(json) != *invert,
            (Self::Metadata { .. }, _) => false,
            (Self::Cel(expression), Found::Attributes(facts)) => expression.holds(&facts),
            (Self::Cel(_), _) => false,
            (Self::Ip { ranges, .. }, Found::Ip(ip)) => ranges.contains(ip),
            (Self::Ip { ranges, parsing_failed }, found) => {
                let Some(text) = found.into_text() else { return false };
                let ip = parse_ip(&text);
                if ip.is_none() {
                    parsing_failed.inc();
                }
                ip.is_some_and(|ip| ranges.contains(ip))
            }
            (Self::String(matcher), found) => found.into_text().is_some_and(|text| matcher.matches(&text)),
            (Self::RuntimeFraction { fraction, seed }, found) => {
                found.into_text().is_some_and(|text| fraction.holds(runtime, xxh64(&text, *seed)))
            }
            (Self::ConsistentHashing { threshold, modulo, seed }, found) => {
                found.into_text().is_some_and(|text| xxh64(&text, *seed) % modulo >= *threshold)
            }
        }
    }
}

/// An address without port, as text.
pub(super) fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::matching::testing::{error, ok};
    use crate::runtime::NoRuntime;

    fn holding(test: &Test) -> String {
        let found = |n: u32| Found::Text(Cow::Owned(n.to_string().into_bytes()));
        (0..20).map(|n| if test.holds(found(n), &NoRuntime) { '1' } else { '0' }).collect()
    }

    /// Measured on Envoy 1.40, for the values 0 to 19.
    #[test]
    fn hashes_are_envoys() {
        for (seed, expected) in [(0, "10011101001010110101"), (7, "11101100100100011010")] {
            let test = Test::ConsistentHashing { threshold: 5, modulo: 10, seed };
            assert_eq!(holding(&test), expected, "{seed}");
            assert!(!test.holds(Found::Absent, &NoRuntime));
        }
        let fraction = Fraction { key: None, numerator: 50, denominator: 100 };
        for (seed, expected) in [(0, "11000010001101111001"), (7, "11110111011010111001")] {
            assert_eq!(holding(&Test::RuntimeFraction { fraction: fraction.clone(), seed }), expected, "{seed}");
        }
    }

    #[test]
    fn addresses_in_text_are_parsed_and_failures_counted() {
        let range = tidegate_xds::pb::envoy::config::core::v3::CidrRange {
            address_prefix: "10.0.0.0".to_owned(),
            prefix_len: Some(tidegate_xds::pb::google::protobuf::UInt32Value { value: 8 }),
        };
        let config = pb::ip::v3::Ip { cidr_ranges: vec![range], stat_prefix: "pp".to_owned() };
        let test = ok(|c| Test::compile(&any::pack(&config), c));
        let holds = |text: &'static str| test.holds(Found::Text(Cow::Borrowed(text.as_bytes())), &NoRuntime);
        assert!(holds("10.1.1.1") && !holds("11.1.1.1") && !holds("zz"));
        assert!(test.holds(Found::Ip([10, 0, 0, 1].into()), &NoRuntime) && !test.holds(Found::Absent, &NoRuntime));
        let Test::Ip { parsing_failed, .. } = &test else { unreachable!() };
        assert_eq!(parsing_failed.value(), 1);
    }

    #[test]
    fn an_unknown_matcher_is_refused() {
        let config =
            Any { type_url: "type.googleapis.com/xds.type.matcher.v3.HttpAttributes".to_owned(), value: vec![] };
        let expected = ": not supported yet: type.googleapis.com/xds.type.matcher.v3.HttpAttributes";
        assert_eq!(error(|c| Test::compile(&config, c)), expected);
    }
}
