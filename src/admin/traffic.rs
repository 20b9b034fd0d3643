//! Rates and latency over the last minute, from totals taken now and then. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::model::Traffic;
use crate::metrics::Totals;

/// How often totals are meant to be taken.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
const SAMPLES: usize = 31;

/// The totals of the last minute.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<(Duration, Totals)>);

impl Window {
    /// Takes the totals at a time since any fixed start.
    pub(super) fn push(&mut self, at: Duration, totals: Totals) {
        self.0.truncate(SAMPLES - 1);
        self.0.push_front((at, totals));
    }

    /// What happened between the oldest and the newest totals.
    pub(super) fn traffic(&self) -> Traffic {
        let (Some((until, new)), Some((since, old))) = (self.0.front(), self.0.back()) else {
            return Traffic::default();
        };
        let seconds = until.saturating_sub(*since).as_secs_f64();
        if seconds == 0.0 {
            return Traffic::default();
        }
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let latency: Vec<(f64, u64)> = new
            .latency
            .iter()
            .enumerate()
            .map(|(index, (bound, count))| {
                (*bound, count.saturating_sub(old.latency.get(index).map_or(0, |(_, count)| *count)))
            })
            .collect();
        Traffic {
            seconds,
            operations: rate(new.operations, old.operations),
            connections: rate(new.connections, old.connections),
            errors: rate(new.errors, old.errors),
            p50_milliseconds: quantile(&latency, 0.50).map(|seconds| seconds * 1e3),
            p99_milliseconds: quantile(&latency, 0.99).map(|seconds| seconds * 1e3),
        }
    }
}

/// A quantile of samples counted in cumulative buckets (upper bound, count), the last of which has them all: linear
/// within a bucket, as Prometheus does it. A sample beyond the last finite bound counts as that bound.
fn quantile(buckets: &[(f64, u64)], quantile: f64) -> Option<f64> {
    let total = buckets.last()?.1;
    if total == 0 {
        return None;
    }
    let rank = quantile * total as f64;
    let (mut lower, mut below) = (0.0, 0);
    for &(bound, count) in buckets {
        if count as f64 >= rank {
            if bound.is_infinite() {
                return Some(lower);
            }
            return Some(lower + (bound - lower) * (rank - below as f64) / (count - below).max(1) as f64);
        }
        (lower, below) = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(operations: u64, latency: &[(f64, u64)]) -> Totals {
        Totals { operations, latency: latency.to_vec(), ..Totals::default() }
    }

    #[test]
    fn nothing_is_known_before_two_samples() {
        let mut window = Window::default();
        assert_eq!(window.traffic(), Traffic::default());
        window.push(Duration::from_secs(1), totals(5, &[]));
        assert_eq!(window.traffic(), Traffic::default());
    }

    #[test]
    fn rates_are_differences_over_the_window() {
        let mut window = Window::default();
        window.push(Duration::from_secs(10), totals(100, &[(0.001, 50), (0.002, 100), (f64::INFINITY, 100)]));
        window.push(Duration::from_secs(14), totals(300, &[(0.001, 150), (0.002, 300), (f64::INFINITY, 300)]));
        let traffic = window.traffic();
        assert_eq!(traffic.seconds, 4.0);
        assert_eq!(traffic.operations, 50.0);
        assert_eq!(traffic.p50_milliseconds, Some(1.0));
        assert_eq!(traffic.p99_milliseconds, Some(1.98));
    }

    #[test]
    fn the_window_forgets_what_is_older_than_a_minute() {
        let mut window = Window::default();
        for second in 0..200_u32 {
            window.push(INTERVAL * second, totals(u64::from(second), &[]));
        }
        assert_eq!(window.traffic().seconds, 60.0);
        assert_eq!(window.0.len(), SAMPLES);
    }

    #[test]
    fn quantiles_stay_within_their_bucket() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0), (f64::INFINITY, 0)], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0), (2.0, 10), (f64::INFINITY, 10)], 0.5), Some(1.5));
        assert_eq!(quantile(&[(1.0, 0), (2.0, 0), (f64::INFINITY, 10)], 0.99), Some(2.0));
    }
}
