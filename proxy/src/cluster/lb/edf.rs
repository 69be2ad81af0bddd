//! Earliest deadline first: a worker's queue of hosts, each due again after one over its weight. Used where weights change
//! with every pick; it must not know where weights come from.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// A worker's queues for one cluster.
#[derive(Default)]
pub struct Scheduler {
    generation: u64,
    queues: HashMap<u32, Queue>,
}

struct Queue {
    now: f64,
    entries: BinaryHeap<Entry>,
    order: u64,
}

#[derive(PartialEq)]
struct Entry {
    deadline: f64,
    /// Ties go to who was added first.
    order: u64,
    index: usize,
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// Reversed: the earliest deadline is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl Scheduler {
    /// The next of `count` items in the queue `group`, which is made anew when the host set is another one. `weight` is
    /// asked for the picked item; `offset` makes workers start at different places.
    pub(super) fn pick(
        &mut self,
        generation: u64,
        group: u32,
        count: usize,
        offset: u64,
        weight: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        if self.generation != generation {
            self.queues.clear();
            self.generation = generation;
        }
        let queue = self.queues.entry(group).or_insert_with(|| Queue::new(count, offset, &weight));
        queue.pick(&weight)
    }
}

impl Queue {
    /// Each item enters at a random place of its first period, which is where it stands after picks that one did not see.
    fn new(count: usize, offset: u64, weight: &impl Fn(usize) -> f64) -> Self {
        let mut draws = super::Draws(offset);
        let entries = (0..count).map(|index| {
            let part = draws.next() as f64 / u64::MAX as f64;
            Entry { deadline: part / positive(weight(index)), order: index as u64, index }
        });
        Self { now: 0.0, entries: entries.collect(), order: count as u64 }
    }

    fn pick(&mut self, weight: &impl Fn(usize) -> f64) -> Option<usize> {
        let mut first = self.entries.peek_mut()?;
        let index = first.index;
        self.now = first.deadline;
        self.order += 1;
        first.deadline = self.now + 1.0 / positive(weight(index));
        first.order = self.order;
        drop(first);
        Some(index)
    }
}

fn positive(weight: f64) -> f64 {
    weight.max(f64::MIN_POSITIVE.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_as_often_as_their_weight_says() {
        let weights = [1.0, 3.0, 6.0];
        let mut scheduler = Scheduler::default();
        let mut counts = [0; 3];
        for _ in 0..1000 {
            counts[scheduler.pick(1, 0, 3, 7, |index| weights[index]).unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            assert!((f64::from(*count) - weight * 100.0).abs() <= 1.0, "{counts:?}");
        }
    }

    #[test]
    fn a_new_host_set_starts_anew() {
        let mut scheduler = Scheduler::default();
        assert_eq!(scheduler.pick(1, 0, 1, 0, |_| 1.0), Some(0));
        assert_eq!(scheduler.pick(2, 0, 0, 0, |_| 1.0), None);
    }
}
