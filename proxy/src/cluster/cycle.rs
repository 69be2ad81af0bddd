//! The order in which round robin visits weighted items: over each full cycle every item comes exactly as often as its
//! weight says, spread evenly. It is a pure function of a sequence number, so it needs no scheduler and can be replayed.

/// A weighted cyclic order of items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle {
    /// Running sums of the weights.
    bounds: Box<[u64]>,
    /// Coprime to the last bound and near its golden section: successive positions fall far apart.
    stride: u64,
}

impl Cycle {
    /// The cycle of these weights; `None` when all are 0.
    pub fn new(weights: impl IntoIterator<Item = u64>) -> Option<Self> {
        let weights: Vec<u64> = weights.into_iter().collect();
        let divisor = weights.iter().copied().fold(0, greatest_common_divisor);
        if divisor == 0 {
            return None;
        }
        let mut total = 0u64;
        let bounds: Box<[u64]> = weights
            .iter()
            .map(|weight| {
                total = total.saturating_add(weight / divisor);
                total
            })
            .collect();
        Some(Self { bounds, stride: stride_of(total) })
    }

    /// The cycle of fractional weights, each kept to 2⁻³² of their sum.
    pub fn of_fractions(weights: &[f64]) -> Option<Self> {
        let sum: f64 = weights.iter().sum();
        if sum <= 0.0 {
            return None;
        }
        let scale = (1u64 << 32) as f64 / sum;
        // A tiny share stays a share.
        Self::new(weights.iter().map(|&weight| if weight > 0.0 { ((weight * scale).round() as u64).max(1) } else { 0 }))
    }

    /// The item that the `sequence`th visit goes to.
    #[inline]
    pub fn index(&self, sequence: u64) -> usize {
        let total = self.total();
        let position = (u128::from(sequence % total) * u128::from(self.stride) % u128::from(total)) as u64;
        self.bounds.partition_point(|&bound| bound <= position)
    }

    /// The length of a full cycle.
    pub fn total(&self) -> u64 {
        self.bounds.last().copied().unwrap_or(1)
    }

    /// The share of visits that an item gets.
    pub fn share(&self, index: usize) -> f64 {
        let before = if index == 0 { 0 } else { self.bounds[index - 1] };
        (self.bounds[index] - before) as f64 / self.total() as f64
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn stride_of(total: u64) -> u64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let near = ((total as f64 * GOLDEN) as u64).clamp(1, total.max(1));
    (near..=total).chain(1..near).find(|&stride| greatest_common_divisor(stride, total) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_come_out_exactly_and_spread() {
        let cycle = Cycle::new([3, 1]).unwrap();
        let order: Vec<_> = (0..8).map(|sequence| cycle.index(sequence)).collect();
        assert_eq!(order.iter().filter(|&&item| item == 1).count(), 2);
        assert_eq!(order[..4], order[4..]);
        assert_eq!(Cycle::new([6, 2]), Some(cycle));
        assert_eq!(Cycle::new([0, 0]), None);
    }

    #[test]
    fn an_item_without_weight_is_never_visited() {
        let cycle = Cycle::of_fractions(&[0.5, 0.0, 1.0]).unwrap();
        assert!((0..10_000).all(|sequence| cycle.index(sequence) != 1));
        assert!((cycle.share(2) - 2.0 / 3.0).abs() < 1e-5);
    }

    proptest! {
        #[test]
        fn a_full_cycle_visits_each_item_as_often_as_its_weight(weights in prop::collection::vec(0u64..20, 1..12), start: u64) {
            let Some(cycle) = Cycle::new(weights.iter().copied()) else { return Ok(()) };
            let start = start % (u64::MAX / 2);
            let mut visits = vec![0u64; weights.len()];
            for sequence in start..start + cycle.total() {
                visits[cycle.index(sequence)] += 1;
            }
            let divisor = weights.iter().sum::<u64>() / cycle.total();
            prop_assert_eq!(visits, weights.iter().map(|weight| weight / divisor).collect::<Vec<_>>());
        }
    }
}
