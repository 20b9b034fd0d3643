//! `power-of-two`: the less busy of two backends drawn at random, by weight.

use super::{Candidate, Draw, Policy, mix};

#[derive(Debug)]
pub(super) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn choose(&self, candidates: &[Candidate], draw: Draw) -> usize {
        let first = draw.random as usize % candidates.len();
        let offset = mix(draw.random) as usize % candidates.len().max(2).saturating_sub(1);
        let second = (first + 1 + offset) % candidates.len();
        if candidates[second].is_less_busy_than(&candidates[first]) { second } else { first }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nth, shares, weighted};
    use super::*;

    #[test]
    fn the_busiest_is_never_chosen_and_load_stays_even() {
        let mut candidates = weighted(&[1, 1, 1]);
        candidates[1].sessions = 100;
        assert!((0..200).all(|n| PowerOfTwo.choose(&candidates, nth(n)) != 1));
        let even = shares(&PowerOfTwo, &mut weighted(&[1, 1, 1, 1]), 4000);
        assert!(even.iter().all(|share| (980..1020).contains(share)), "{even:?}");
    }

    #[test]
    fn one_backend() {
        assert_eq!(PowerOfTwo.choose(&weighted(&[1]), nth(7)), 0);
    }
}
