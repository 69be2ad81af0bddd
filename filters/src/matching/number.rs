//! Ranges of numbers: `Int64Range`, `DoubleMatcher`, and lists of port ranges. All are half open.
//! It must not know what the numbers count.

use tidegate_xds::Coverage;
use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.type.v3.Int64Range", enforced: &["start", "end"], listed: &[] },
    Coverage { message: "envoy.type.v3.Int32Range", enforced: &["start", "end"], listed: &[] },
    Coverage { message: "envoy.type.v3.DoubleRange", enforced: &["start", "end"], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.DoubleMatcher", enforced: &["range", "exact"], listed: &[] },
];

/// `[start, end)`; empty where `end` is not above `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntRange {
    pub start: i64,
    pub end: i64,
}

impl IntRange {
    pub fn contains(self, number: i64) -> bool {
        (self.start..self.end).contains(&number)
    }
}

/// A compiled `DoubleMatcher`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DoubleMatcher {
    Range { start: f64, end: f64 },
    Exact(f64),
}

impl DoubleMatcher {
    /// An unset pattern, which validation refuses, matches 0.
    pub fn compile(matcher: &pb::DoubleMatcher) -> Self {
        use pb::double_matcher::MatchPattern;
        match &matcher.match_pattern {
            Some(MatchPattern::Range(range)) => Self::Range { start: range.start, end: range.end },
            Some(MatchPattern::Exact(value)) => Self::Exact(*value),
            None => Self::Exact(0.0),
        }
    }

    pub fn matches(self, number: f64) -> bool {
        match self {
            Self::Range { start, end } => (start..end).contains(&number),
            Self::Exact(expected) => expected == number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open() {
        let range = IntRange { start: -5, end: 5 };
        assert!(range.contains(-5) && range.contains(4) && !range.contains(5));
        assert!(!IntRange { start: 5, end: -5 }.contains(0));
        let range = DoubleMatcher::Range { start: 1.0, end: 2.0 };
        assert!(range.matches(1.0) && !range.matches(2.0) && DoubleMatcher::Exact(1.5).matches(1.5));
    }
}
