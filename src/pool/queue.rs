//! Waiting for a seat when every usable backend is at its `max_sessions`: first come, first served, bounded in number and
//! time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::Shortage;
use super::backend::Bells;
use crate::metrics::PoolMetrics;

pub(super) struct Queue {
    /// One permit for each request that may wait.
    places: Semaphore,
    capacity: usize,
    timeout: Duration,
    /// Whoever holds it is next; tokio's mutex is fair.
    turn: Mutex<()>,
    bells: Arc<Bells>,
    metrics: PoolMetrics,
}

impl Queue {
    pub(super) fn new(capacity: usize, timeout: Duration, bells: Arc<Bells>, metrics: PoolMetrics) -> Self {
        let capacity = capacity.min(Semaphore::MAX_PERMITS);
        Self { places: Semaphore::new(capacity), capacity, timeout, turn: Mutex::default(), bells, metrics }
    }

    /// Whether a newcomer overtakes nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.places.available_permits() == self.capacity
    }

    /// Waits until `ask` gives something.
    pub(super) async fn wait<T>(&self, ask: impl FnMut() -> Option<T>) -> Result<T, Shortage> {
        let Ok(_place) = self.places.try_acquire() else { return Err(Shortage::QueueFull) };
        let _waiting = self.metrics.waiting();
        let started = Instant::now();
        let outcome = timeout(self.timeout, self.wait_turn(ask)).await;
        self.metrics.waited(started.elapsed());
        outcome.map_err(|_| Shortage::QueueTimeout)
    }

    async fn wait_turn<T>(&self, mut ask: impl FnMut() -> Option<T>) -> T {
        let _turn = self.turn.lock().await;
        loop {
            if let Some(given) = ask() {
                return given;
            }
            // A bell that has rung since `ask` has left a permit, so none is missed.
            self.bells.seats.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::metrics::Metrics;

    fn queue(capacity: usize) -> Arc<Queue> {
        Arc::new(Queue::new(capacity, Duration::from_secs(2), Arc::default(), Metrics::new().pool("p")))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_come_is_the_first_served() {
        let queue = queue(10);
        let seats = Arc::new(AtomicUsize::new(0));
        let served = Arc::new(std::sync::Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..5)
            .map(|number| {
                let (queue, seats, served) = (Arc::clone(&queue), Arc::clone(&seats), Arc::clone(&served));
                async move {
                    let take = || seats.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).ok();
                    queue.wait(take).await.expect("in time");
                    served.lock().unwrap().push(number);
                }
            })
            .map(tokio::spawn)
            .collect();
        tokio::task::yield_now().await;
        assert!(!queue.is_empty());
        for _ in 0..5 {
            seats.fetch_add(1, Ordering::SeqCst);
            queue.bells.seats.notify_one();
            tokio::task::yield_now().await;
        }
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn bounded_in_time_and_number() {
        let queue = queue(2);
        let started = Instant::now();
        let wait = || queue.wait(|| None::<()>);
        let outcomes = tokio::join!(wait(), wait(), wait());
        assert_eq!(outcomes, (Err(Shortage::QueueTimeout), Err(Shortage::QueueTimeout), Err(Shortage::QueueFull)));
        assert_eq!(started.elapsed(), Duration::from_secs(2));
        assert!(queue.is_empty());
    }
}
