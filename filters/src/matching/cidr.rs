//! CIDR ranges and sets of them: `CidrRange`, `AddressMatcher`.
//! An IPv4 address inside IPv6 (`::ffff:a.b.c.d`) is the IPv4 address here, on both sides.

use std::net::IpAddr;

use tidegate_xds::pb::envoy::config::core::v3 as pb;
use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb_matcher;
use tidegate_xds::pb::xds::core::v3 as xds;
use tidegate_xds::{Coverage, FieldError};

use crate::context::CompileContext;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.config.core.v3.CidrRange", enforced: &["address_prefix", "prefix_len"], listed: &[] },
    Coverage { message: "xds.core.v3.CidrRange", enforced: &["address_prefix", "prefix_len"], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.AddressMatcher", enforced: &["ranges", "invert_match"], listed: &[] },
];

/// One range. Bits beyond the prefix are zero, so equal ranges are equal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// `length` beyond the address's width is the width, as in Envoy.
    pub fn new(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V6(v6) if length >= 96 && v6.to_ipv4_mapped().is_some() => {
                Self::new(address.to_canonical(), length.min(128) - 96)
            }
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Self { address: IpAddr::V4((v4.to_bits() & mask).into()), length }
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Self { address: IpAddr::V6((v6.to_bits() & mask).into()), length }
            }
        }
    }

    /// No `prefix_len` is 0: every address of the family, as in Envoy.
    pub fn compile(range: &pb::CidrRange, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        Self::parse(&range.address_prefix, range.prefix_len.map(|length| length.value), context)
    }

    /// The same of the `xds` package.
    pub fn compile_xds(range: &xds::CidrRange, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        Self::parse(&range.address_prefix, range.prefix_len.map(|length| length.value), context)
    }

    fn parse(address: &str, length: Option<u32>, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let malformed = |_| context.error_at("address_prefix", format!("malformed IP address: {address}"));
        let address: IpAddr = address.parse().map_err(malformed)?;
        Ok(Self::new(address, u8::try_from(length.unwrap_or(0)).unwrap_or(u8::MAX)))
    }

    /// The prefix's length in bits; a longer one is more specific.
    pub fn prefix_len(&self) -> u8 {
        self.length
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let (first, last) = self.bounds();
        number(address).is_some_and(|n| n.0 == first.0 && (first.1..=last.1).contains(&n.1))
    }

    /// First and last address, with the family in front.
    fn bounds(&self) -> (Numbered, Numbered) {
        let (family, first, width) = match self.address {
            IpAddr::V4(v4) => (Family::V4, u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (Family::V6, v6.to_bits(), 128),
        };
        let hosts = u128::MAX.checked_shr(128 - (width - u32::from(self.length))).unwrap_or(0);
        ((family, first), (family, first | hosts))
    }
}

/// `10.0.0.0/8`
impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

type Numbered = (Family, u128);

fn number(address: IpAddr) -> Option<Numbered> {
    Some(match address.to_canonical() {
        IpAddr::V4(v4) => (Family::V4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (Family::V6, v6.to_bits()),
    })
}

/// Many ranges, asked in logarithmic time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CidrList {
    /// Sorted; none touches another.
    ranges: Vec<(Numbered, Numbered)>,
}

impl FromIterator<Cidr> for CidrList {
    fn from_iter<T: IntoIterator<Item = Cidr>>(ranges: T) -> Self {
        let mut all: Vec<_> = ranges.into_iter().map(|range| range.bounds()).collect();
        all.sort_unstable();
        let mut ranges: Vec<(Numbered, Numbered)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some(before) if before.1.0 == first.0 && first.1 <= before.1.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges }
    }
}

impl CidrList {
    /// Compiles a repeated field of ranges.
    pub fn compile(
        ranges: &[pb::CidrRange],
        field: &str,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let compile = |(index, range)| context.within_item(field, index, |c| Cidr::compile(range, c));
        ranges.iter().enumerate().map(compile).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let Some(number) = number(address) else { return false };
        let after = self.ranges.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= self.ranges[after - 1].1
    }
}

/// A compiled `AddressMatcher`.
#[derive(Debug, Clone)]
pub struct AddressMatcher {
    ranges: CidrList,
    invert: bool,
}

impl AddressMatcher {
    pub fn compile(matcher: &pb_matcher::AddressMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let compile = |(index, range)| context.within_item("ranges", index, |c| Cidr::compile_xds(range, c));
        let ranges = matcher.ranges.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { ranges, invert: matcher.invert_match })
    }

    pub fn matches(&self, address: IpAddr) -> bool {
        self.ranges.contains(address) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::matching::testing::{error, ok};

    fn cidr(text: &str) -> Cidr {
        let (address, length) = text.split_once('/').unwrap();
        Cidr::new(address.parse().unwrap(), length.parse().unwrap())
    }

    #[test]
    fn ranges_hold_their_family_only() {
        for (range, address, expected) in [
            ("127.9.9.9/8", "127.0.0.1", true),
            ("10.0.0.0/0", "127.0.0.1", true),
            ("127.0.0.1/40", "127.0.0.1", true),
            ("127.0.0.1/40", "127.0.0.2", false),
            ("::/0", "127.0.0.1", false),
            ("::/0", "fe80::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "10.1.1.1", true),
            ("::1/128", "::1", true),
        ] {
            assert_eq!(cidr(range).contains(address.parse().unwrap()), expected, "{range} {address}");
        }
    }

    #[test]
    fn no_length_is_everything_and_no_address_is_refused() {
        let range = pb::CidrRange { address_prefix: "10.0.0.0".to_owned(), prefix_len: None };
        assert!(ok(|c| Cidr::compile(&range, c)).contains("1.1.1.1".parse().unwrap()));
        let range = pb::CidrRange { address_prefix: "10.0.0.0/8".to_owned(), prefix_len: None };
        assert_eq!(error(|c| Cidr::compile(&range, c)), "address_prefix: malformed IP address: 10.0.0.0/8");
    }

    proptest! {
        #[test]
        fn a_set_holds_what_one_of_its_ranges_holds(
            ranges in proptest::collection::vec((any::<[u8; 4]>(), 0..33u8), 0..12),
            others in proptest::collection::vec((any::<[u8; 16]>(), 0..129u8), 0..3),
            address in any::<[u8; 4]>(),
        ) {
            let mut all: Vec<Cidr> = ranges.iter().map(|(address, n)| Cidr::new((*address).into(), *n)).collect();
            all.extend(others.iter().map(|(address, n)| Cidr::new((*address).into(), *n)));
            let set: CidrList = all.iter().copied().collect();
            let probes = ranges.iter().map(|(probe, _)| *probe).chain([address]);
            for probe in probes.flat_map(|p| [p, [p[0], p[1], p[2], p[3].wrapping_add(1)], [p[0], p[1] ^ 1, 0, 0]]) {
                let probe = IpAddr::from(probe);
                prop_assert_eq!(set.contains(probe), all.iter().any(|range| range.contains(probe)));
            }
        }
    }
}
