//! How many may be inside at once: connections in all, handshakes under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::Limits;
use crate::failure::Limit;
use crate::metrics::{Metrics, Share};

/// The process-wide counts that every listener asks before it lets a connection in.
#[derive(Debug)]
pub struct Admission {
    metrics: Arc<Metrics>,
    most_connections: AtomicUsize,
    connections: AtomicUsize,
    handshakes: Arc<Semaphore>,
}

/// One connection's place; leaving is dropping it.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    _shown: Share,
}

/// One handshake's turn.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
    _shown: Share,
}

impl Admission {
    /// Counts for these limits.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.limit(Limit::Connections, limits.max_connections);
        metrics.limit(Limit::Handshakes, limits.handshakes);
        Arc::new(Self {
            metrics,
            most_connections: AtomicUsize::new(limits.max_connections),
            connections: AtomicUsize::new(0),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
        })
    }

    /// Takes another `limits.max_connections`; those inside stay.
    pub fn resize(&self, most_connections: usize) {
        self.metrics.limit(Limit::Connections, most_connections);
        self.most_connections.store(most_connections, Ordering::Relaxed);
    }

    /// A place for one more connection, if there is one.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let most = self.most_connections.load(Ordering::Relaxed);
        let one_more = |inside: usize| (inside < most).then_some(inside + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let mut shown = self.metrics.limit_used(Limit::Connections);
        shown.set(1);
        Some(Place { admission: Arc::clone(self), _shown: shown })
    }

    /// Waits for a turn to make a handshake; `None` if none comes within `patience`.
    pub async fn handshake(&self, patience: Duration) -> Option<Turn> {
        let permit = timeout(patience, Arc::clone(&self.handshakes).acquire_owned()).await.ok()?.ok()?;
        let mut shown = self.metrics.limit_used(Limit::Handshakes);
        shown.set(1);
        Some(Turn { _permit: permit, _shown: shown })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_than_allowed_and_places_come_free() {
        let limits = Limits { max_connections: 2, handshakes: 1, ..Limits::default() };
        let admission = Admission::new(&limits, Metrics::new());
        let first = admission.enter().expect("a place");
        let _second = admission.enter().expect("a place");
        assert!(admission.enter().is_none());
        drop(first);
        let _third = admission.enter().expect("the place that came free");

        let turn = admission.handshake(Duration::from_secs(1)).await.expect("a turn");
        assert!(admission.handshake(Duration::from_secs(1)).await.is_none());
        drop(turn);
        assert!(admission.handshake(Duration::from_secs(1)).await.is_some());
    }

    #[test]
    fn a_smaller_cap_holds_for_newcomers() {
        let admission = Admission::new(&Limits { max_connections: 3, ..Limits::default() }, Metrics::new());
        let _inside = [admission.enter(), admission.enter()].map(|place| place.expect("a place"));
        admission.resize(2);
        assert!(admission.enter().is_none());
    }
}
