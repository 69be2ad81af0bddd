//! What a histogram holds, and what is computed from it: the arithmetic is libcircllhist's, so that quantiles, sums and
//! bucket counts read as Envoy's. It must not know how values are recorded.

use std::sync::{Arc, LazyLock};

use crate::histogram::Unit;

pub(crate) const BINS_A_DECADE: usize = 90;
/// A `u64` has up to 20 digits.
pub(crate) const DECADES: usize = 20;

/// The quantiles that are shown.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.90, 0.95, 0.99, 0.995, 0.999, 1.0];

/// Upper bounds of the buckets that are shown where `histogram_bucket_settings` does not say otherwise.
pub const DEFAULT_BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

const POWERS_OF_TEN: [u64; DECADES] = {
    let mut powers = [1; DECADES];
    let mut exponent = 1;
    while exponent < DECADES {
        powers[exponent] = powers[exponent - 1] * 10;
        exponent += 1;
    }
    powers
};

/// Bins that hold something, from the smallest value up.
#[derive(Debug, Clone, PartialEq)]
pub struct Bins {
    unit: Unit,
    /// 0 for zeros, else 1 + [`bin_index`]; and how many values fell there.
    counts: Box<[(u16, u64)]>,
}

/// One bin: `count` values from `lower` up to less than `lower + width`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    pub lower: f64,
    pub width: f64,
    pub count: u64,
}

impl Default for Bins {
    fn default() -> Self {
        Self { unit: Unit::Unspecified, counts: Box::default() }
    }
}

impl Bins {
    /// From counts by bin, smallest first; bins that hold nothing may be among them.
    pub(crate) fn from_counts(unit: Unit, mut counts: Vec<(u16, u64)>) -> Self {
        counts.retain(|(_, count)| *count != 0);
        Self { unit, counts: counts.into() }
    }

    /// What this one holds more than an earlier one.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.counts.iter().peekable();
        let mut counts = Vec::new();
        for (bin, count) in &*self.counts {
            while before.next_if(|(other, _)| other < bin).is_some() {}
            let known = before.next_if(|(other, _)| other == bin).map_or(0, |(_, count)| *count);
            if *count > known {
                counts.push((*bin, count - known));
            }
        }
        Self { unit: self.unit, counts: counts.into() }
    }

    /// Adds another histogram's values, of the same unit.
    pub(crate) fn merge(&self, other: &Self) -> Self {
        let mut counts: Vec<(u16, u64)> = self.counts.iter().chain(&other.counts).copied().collect();
        counts.sort_unstable();
        counts.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        Self::from_counts(self.unit, counts)
    }

    /// Nothing: shared, since most intervals hold it.
    pub(crate) fn none(unit: Unit) -> Arc<Self> {
        static NONE: LazyLock<[Arc<Bins>; 5]> =
            LazyLock::new(|| Unit::ALL.map(|unit| Arc::new(Bins { unit, counts: Box::default() })));
        Arc::clone(&NONE[unit as usize])
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// The sum, as far as bins know it.
    pub fn sum(&self) -> f64 {
        // From plus zero on: the sum of nothing is `-0` otherwise.
        let raw = self.raw().fold(0.0, |sum, bin| sum + bin.midpoint() * bin.count as f64);
        raw * self.unit.scale()
    }

    /// The values at [`QUANTILES`]; all NaN if nothing was recorded.
    pub fn quantiles(&self) -> [f64; QUANTILES.len()] {
        let total = self.count() as f64;
        let mut values = [f64::NAN; QUANTILES.len()];
        let mut bins = self.raw().peekable();
        let Some(mut bin) = bins.next() else { return values };
        let mut below = 0.0;
        for (value, quantile) in values.iter_mut().zip(QUANTILES) {
            let rank = total * quantile;
            while below + (bin.count as f64) < rank {
                let Some(next) = bins.next() else { break };
                below += bin.count as f64;
                bin = next;
            }
            *value = bin.at_rank((rank - below).ceil()) * self.unit.scale();
        }
        values
    }

    /// How many values lie in the bins up to and with the one of `bound`.
    pub fn count_to(&self, bound: f64) -> u64 {
        let bound = order_of(bound / self.unit.scale());
        self.counts.iter().take_while(|(bin, _)| order(*bin) <= bound).map(|(_, count)| count).sum()
    }

    /// The bins in the histogram's unit.
    pub fn iter(&self) -> impl Iterator<Item = Bin> {
        let scale = self.unit.scale();
        self.raw().map(move |bin| Bin { lower: bin.lower * scale, width: bin.width * scale, count: bin.count })
    }

    fn raw(&self) -> impl Iterator<Item = Bin> {
        self.counts.iter().map(|(bin, count)| {
            let Some(index) = usize::from(*bin).checked_sub(1) else {
                return Bin { lower: 0.0, width: 0.0, count: *count };
            };
            let power = POWERS_OF_TEN[index / BINS_A_DECADE] as f64;
            let digits = (index % BINS_A_DECADE + 10) as f64;
            Bin { lower: digits / 10.0 * power, width: power / 10.0, count: *count }
        })
    }
}

impl Bin {
    /// Where the error of taking all values for one is smallest.
    fn midpoint(&self) -> f64 {
        if self.lower == 0.0 {
            return 0.0;
        }
        let top = self.lower + self.width;
        self.lower + self.width * (self.lower / (self.lower + top))
    }

    /// The expected place of the bin's value of this rank, from 1, if they are spread evenly.
    fn at_rank(&self, rank: f64) -> f64 {
        self.lower + rank.max(1.0) / (self.count as f64 + 1.0) * self.width
    }
}

/// Which bin a value falls into, counted from 1.0 up; `None` for 0.
#[inline]
pub(crate) fn bin_index(value: u64) -> Option<usize> {
    let decade = value.checked_ilog10()? as usize;
    let digits = match decade.checked_sub(1) {
        None => value * 10,
        Some(scale) => value / POWERS_OF_TEN[scale],
    };
    Some(decade * BINS_A_DECADE + digits as usize - 10)
}

/// A bin's place on the line that [`order_of`] puts any number on.
fn order(bin: u16) -> i32 {
    if bin == 0 { i32::MIN } else { i32::from(bin) - 1 }
}

/// The place of the bin that would hold this bound, 0 being that of 1.0.
fn order_of(bound: f64) -> i32 {
    if bound <= 0.0 {
        return i32::MIN;
    }
    let exponent = bound.log10().floor();
    // Division may end just below the digit that it should reach.
    let digits = (bound / 10f64.powf(exponent) * 10.0 + 1e-13).floor() as i32;
    exponent as i32 * BINS_A_DECADE as i32 + digits - 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(values: &[u64]) -> Bins {
        let bin = |value: &u64| (bin_index(*value).map_or(0, |index| index as u16 + 1), 1);
        let one_by_one = values.iter().map(|value| Bins::from_counts(Unit::Milliseconds, vec![bin(value)]));
        one_by_one.reduce(|sum, bins| sum.merge(&bins)).unwrap_or_default()
    }

    #[test]
    fn quantiles_are_those_that_envoy_prints() {
        let ones = bins(&[1, 1, 1]).quantiles();
        let expected = [1.025, 1.025, 1.05, 1.075, 1.075, 1.075, 1.075, 1.075, 1.075, 1.075];
        assert!(ones.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{ones:?}");
        let mixed = bins(&[0, 1, 3]).quantiles();
        let expected = [0.0, 0.0, 1.05, 3.05, 3.05, 3.05, 3.05, 3.05, 3.05, 3.05];
        assert!(mixed.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{mixed:?}");
        assert_eq!(bins(&[26]).quantiles(), [26.5; 10]);
        assert!(bins(&[]).quantiles().iter().all(|value| value.is_nan()));
    }

    #[test]
    fn a_bound_takes_its_whole_bin() {
        let bins = bins(&[0, 1, 5, 10, 11, 25, 26, 1009, 3_600_001]);
        let counts: Vec<_> = DEFAULT_BUCKETS.iter().map(|bound| bins.count_to(*bound)).collect();
        assert_eq!(counts, [1, 2, 3, 4, 6, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 9]);
        assert_eq!(bins.count_to(f64::MAX), 9);
    }

    #[test]
    fn a_sum_weighs_bins_by_their_midpoint() {
        let sum = bins(&[26]).sum();
        assert!((sum - (26.0 + 26.0 / 53.0)).abs() < 1e-9, "{sum}");
        assert_eq!(bins(&[0, 0]).sum(), 0.0);
    }

    #[test]
    fn percents_read_in_hundredths() {
        let tenth = Bins::from_counts(Unit::Percent, vec![(1 + 5 * BINS_A_DECADE as u16, 1)]);
        assert!((tenth.quantiles()[0] - 0.105).abs() < 1e-9);
        assert_eq!((tenth.count_to(0.09), tenth.count_to(0.1)), (0, 1));
    }

    #[test]
    fn merging_adds_and_since_takes_away() {
        let (a, b) = (bins(&[0, 5]), bins(&[5, 70]));
        let both = a.merge(&b);
        assert_eq!(both, bins(&[0, 5, 5, 70]));
        assert_eq!(both.since(&a), bins(&[5, 70]));
    }
}
