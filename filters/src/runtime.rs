//! Runtime: values that operators may change while traffic flows (Envoy's runtime layers), and the fractions drawn by them.
//! The layers live in the proxy; whoever compiles a configuration keeps key and default here and asks when it matters.

use std::sync::Arc;

use tidegate_xds::Coverage;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::r#type::v3 as types;

/// The fields that act in the messages compiled here.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.RuntimeFeatureFlag",
        enforced: &["default_value", "runtime_key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.RuntimeFractionalPercent",
        enforced: &["default_value", "runtime_key"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.FractionalPercent", enforced: &["numerator", "denominator"], listed: &[] },
];

/// The merged runtime layers as of now.
pub trait Runtime: Send + Sync {
    /// An integer, if the key is set to one.
    fn integer(&self, key: &str) -> Option<u64>;
    fn double(&self, key: &str) -> Option<f64>;
    fn boolean(&self, key: &str) -> Option<bool>;
    fn string(&self, key: &str) -> Option<String>;
    /// A `FractionalPercent` set as a struct, as (numerator, denominator).
    fn fraction(&self, key: &str) -> Option<(u64, u64)>;
}

/// No layers: every default acts.
pub struct NoRuntime;

impl Runtime for NoRuntime {
    fn integer(&self, _: &str) -> Option<u64> {
        None
    }
    fn double(&self, _: &str) -> Option<f64> {
        None
    }
    fn boolean(&self, _: &str) -> Option<bool> {
        None
    }
    fn string(&self, _: &str) -> Option<String> {
        None
    }
    fn fraction(&self, _: &str) -> Option<(u64, u64)> {
        None
    }
}

/// `RuntimeFractionalPercent`: a share of streams, by default `numerator / denominator`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fraction {
    pub key: Option<Arc<str>>,
    pub numerator: u64,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u64,
}

impl Fraction {
    pub const ALWAYS: Self = Self { key: None, numerator: 100, denominator: 100 };
    pub const NEVER: Self = Self { key: None, numerator: 0, denominator: 100 };

    /// Without a default, which validation refuses, none.
    pub fn compile(fraction: &core::RuntimeFractionalPercent) -> Self {
        let default = fraction.default_value.as_ref().map_or(Self::NEVER, Self::compile_percent);
        Self { key: key(&fraction.runtime_key), ..default }
    }

    pub fn compile_percent(percent: &types::FractionalPercent) -> Self {
        use types::fractional_percent::DenominatorType;
        let denominator = match DenominatorType::try_from(percent.denominator) {
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            _ => 100,
        };
        Self { key: None, numerator: u64::from(percent.numerator), denominator }
    }

    /// Whether a stream with this random value is in: Envoy's `random % denominator < numerator`. An integer in the
    /// runtime is a percentage of 100.
    pub fn holds(&self, runtime: &dyn Runtime, random: u64) -> bool {
        let set = self
            .key
            .as_deref()
            .and_then(|key| runtime.fraction(key).or_else(|| runtime.integer(key).map(|numerator| (numerator, 100))));
        let (numerator, denominator) = set.unwrap_or((self.numerator, self.denominator));
        numerator >= denominator || random % denominator.max(1) < numerator
    }
}

/// A `RuntimeFeatureFlag`, `RuntimeUInt32`, `RuntimeDouble` or `RuntimePercent`: a key and its default.
#[derive(Debug, Clone, PartialEq)]
pub struct Keyed<T> {
    pub key: Option<Arc<str>>,
    pub default: T,
}

/// A runtime key; an empty one is none.
pub fn key(name: &str) -> Option<Arc<str>> {
    (!name.is_empty()).then(|| name.into())
}

impl Keyed<bool> {
    pub fn compile(flag: &core::RuntimeFeatureFlag) -> Self {
        Self { key: key(&flag.runtime_key), default: flag.default_value.as_ref().is_some_and(|value| value.value) }
    }

    pub fn get(&self, runtime: &dyn Runtime) -> bool {
        self.key.as_deref().and_then(|key| runtime.boolean(key)).unwrap_or(self.default)
    }
}

impl Keyed<u64> {
    pub fn get(&self, runtime: &dyn Runtime) -> u64 {
        self.key.as_deref().and_then(|key| runtime.integer(key)).unwrap_or(self.default)
    }
}

impl Keyed<f64> {
    pub fn get(&self, runtime: &dyn Runtime) -> f64 {
        self.key.as_deref().and_then(|key| runtime.double(key)).unwrap_or(self.default)
    }
}
