//! `least-connections`: the backend with the fewest sessions for its weight.

use super::{Candidate, Draw, Policy};

#[derive(Debug)]
pub(super) struct LeastConnections;

impl Policy for LeastConnections {
    /// Ties go round by chance, so that clients who come and go one at a time don't all meet the first backend.
    fn choose(&self, candidates: &[Candidate], draw: Draw) -> usize {
        let first = draw.random as usize % candidates.len();
        (1..candidates.len()).map(|step| (first + step) % candidates.len()).fold(first, |best, index| {
            if candidates[index].is_less_busy_than(&candidates[best]) { index } else { best }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nth, shares, weighted};
    use super::*;

    #[test]
    fn the_least_busy_for_its_weight() {
        let mut candidates = weighted(&[1, 2, 1]);
        for (sessions, expected) in [([3, 5, 4], 1), ([1, 3, 0], 2), ([0, 1, 1], 0), ([10, 19, 10], 1)] {
            for (candidate, sessions) in candidates.iter_mut().zip(sessions) {
                candidate.sessions = sessions;
            }
            for n in 0..10 {
                assert_eq!(LeastConnections.choose(&candidates, nth(n)), expected, "{sessions:?}");
            }
        }
    }

    #[test]
    fn idle_backends_share_clients_that_come_and_go() {
        let candidates = weighted(&[1, 1]);
        let first = (0..1000).filter(|&n| LeastConnections.choose(&candidates, nth(n)) == 0).count();
        assert!((400..600).contains(&first), "{first} of 1000");
    }

    #[test]
    fn equal_backends_fill_equally() {
        assert_eq!(shares(&LeastConnections, &mut weighted(&[1, 1, 1]), 300), [100, 100, 100]);
    }
}
