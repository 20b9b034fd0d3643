//! How many may be inside at once: connections in all, handshakes under way.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::turns::{self, Turns};
use crate::config::Limits;
use crate::failure::Limit;
use crate::metrics::{Metrics, Share};
use crate::trust::client_network;

/// The process-wide counts that every listener asks before it lets a connection in.
#[derive(Debug)]
pub struct Admission {
    metrics: Arc<Metrics>,
    most_connections: AtomicUsize,
    connections: AtomicUsize,
    handshakes: Arc<Turns>,
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
    _turn: turns::Turn,
    _shown: Share,
}

impl Admission {
    /// Counts for these limits.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let admission = Arc::new(Self {
            metrics,
            most_connections: AtomicUsize::default(),
            connections: AtomicUsize::default(),
            handshakes: Turns::new(0),
        });
        admission.change(limits);
        admission
    }

    /// Takes other limits; those inside stay.
    pub fn change(&self, limits: &Limits) {
        self.metrics.limit(Limit::Connections, limits.max_connections);
        self.metrics.limit(Limit::Handshakes, limits.handshakes);
        self.most_connections.store(limits.max_connections, Ordering::Relaxed);
        self.handshakes.resize(limits.handshakes);
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

    /// Waits for a turn to make a handshake, of which `client`'s address gets its share and no more (IPv6: its /64);
    /// `None` if none comes within `patience`.
    pub async fn handshake(&self, client: IpAddr, patience: Duration) -> Option<Turn> {
        let turn = timeout(patience, self.handshakes.take(client_network(client))).await.ok()?;
        let mut shown = self.metrics.limit_used(Limit::Handshakes);
        shown.set(1);
        Some(Turn { _turn: turn, _shown: shown })
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

        let turn = handshake(&admission, "10.0.0.1").await.expect("a turn");
        assert!(handshake(&admission, "10.0.0.2").await.is_none());
        drop(turn);
        assert!(handshake(&admission, "10.0.0.2").await.is_some());
    }

    async fn handshake(admission: &Admission, client: &str) -> Option<Turn> {
        admission.handshake(client.parse().unwrap(), Duration::from_secs(1)).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_leaves_handshakes_to_others_and_an_ipv6_one_is_its_64() {
        let admission = Admission::new(&Limits { handshakes: 4, ..Limits::default() }, Metrics::new());
        let _first = handshake(&admission, "2001:db8::1").await.expect("a turn");
        let _second = handshake(&admission, "2001:db8::2").await.expect("a turn");
        assert!(handshake(&admission, "2001:db8::3").await.is_none(), "half of all is what one gets");
        assert!(handshake(&admission, "2001:db8:0:1::3").await.is_some());
        assert!(handshake(&admission, "10.0.0.1").await.is_some());
    }

    #[test]
    fn a_smaller_cap_holds_for_newcomers() {
        let admission = Admission::new(&Limits { max_connections: 3, ..Limits::default() }, Metrics::new());
        let _inside = [admission.enter(), admission.enter()].map(|place| place.expect("a place"));
        admission.change(&Limits { max_connections: 2, ..Limits::default() });
        assert!(admission.enter().is_none());
    }
}
