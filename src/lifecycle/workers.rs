//! Whether every worker thread of the runtime still gets on: one that hangs takes the sessions it serves with it, while
//! the others let the process look alive.

use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};

/// The worker threads, and how far each had come at the last look.
pub(super) struct Workers {
    metrics: RuntimeMetrics,
    seen: Vec<Progress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Grows when a worker goes to sleep and when it wakes, so it is even while the worker is awake.
    sleeps_and_wakes: u64,
    /// Grows while a worker runs tasks, every few dozen of them.
    busy: Duration,
}

impl Workers {
    /// The workers of the runtime this is called in.
    pub(super) fn new() -> Self {
        Self { metrics: Handle::current().metrics(), seen: Vec::new() }
    }

    /// How many have been within one and the same task since the last call.
    pub(super) fn stuck(&mut self) -> usize {
        let now: Vec<_> = (0..self.metrics.num_workers()).map(|worker| self.progress(worker)).collect();
        let before = std::mem::replace(&mut self.seen, now);
        before.iter().zip(&self.seen).filter(|(before, now)| now.is_stuck_since(**before)).count()
    }

    fn progress(&self, worker: usize) -> Progress {
        Progress {
            sleeps_and_wakes: self.metrics.worker_park_unpark_count(worker),
            busy: self.metrics.worker_total_busy_duration(worker),
        }
    }
}

impl Progress {
    fn is_stuck_since(self, before: Self) -> bool {
        let awake = self.sleeps_and_wakes.is_multiple_of(2);
        awake && self == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(sleeps_and_wakes: u64, busy: u64) -> Progress {
        Progress { sleeps_and_wakes, busy: Duration::from_millis(busy) }
    }

    #[test]
    fn only_who_is_awake_and_gets_nowhere_is_stuck() {
        assert!(progress(4, 10).is_stuck_since(progress(4, 10)));
        assert!(!progress(5, 10).is_stuck_since(progress(5, 10)), "asleep");
        assert!(!progress(4, 11).is_stuck_since(progress(4, 10)), "busy with many tasks");
        assert!(!progress(6, 10).is_stuck_since(progress(4, 10)), "slept meanwhile");
    }

    /// A regression test: a listening socket that had become blocking stopped one of two workers in accept for good.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_worker_that_blocks_is_found_and_forgiven() {
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let mut workers = Workers::new();
        let task = tokio::spawn(async move { blocked.recv() });
        look_until(&mut workers, |stuck| stuck == 1).await;
        release.send(()).expect("it still waits");
        task.await.expect("it ends").expect("it was released");
        look_until(&mut workers, |stuck| stuck == 0).await;
    }

    async fn look_until(workers: &mut Workers, enough: impl Fn(usize) -> bool) {
        let looks = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if enough(workers.stuck()) {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), looks).await.expect("it is seen within 20 s");
    }
}
