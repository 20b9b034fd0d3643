//! `round-robin`: each backend in turn, by weight.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidate, Draw, Policy};

#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    turn: AtomicU64,
}

impl Policy for RoundRobin {
    /// Passes through the weights in rounds: in each, every backend whose weight isn't used up takes one turn, so that
    /// heavy backends don't get all their turns in a row.
    fn choose(&self, candidates: &[Candidate], _: Draw) -> usize {
        let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        let mut turn = self.turn.fetch_add(1, Ordering::Relaxed) % total;
        let mut round = 0;
        loop {
            let due = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.weight > round);
            let width = due().count() as u64;
            if turn < width {
                break due().nth(turn as usize).map_or(0, |(index, _)| index);
            }
            turn -= width;
            round += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nth, weighted};
    use super::*;

    #[test]
    fn in_turn_and_interleaved() {
        let policy = RoundRobin::default();
        let candidates = weighted(&[3, 1, 2]);
        let order: Vec<_> = (0..12).map(|n| policy.choose(&candidates, nth(n))).collect();
        assert_eq!(order, [0, 1, 2, 0, 2, 0, 0, 1, 2, 0, 2, 0]);
    }
}
