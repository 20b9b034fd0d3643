//! What a listener counts.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::families::{
    Counters, add, counter_of, counters, forget, gauge_of, gauges, histogram_of, histograms, observe, samples,
};
use super::names;
use crate::failure::Outcome;

const LISTENER: &str = "listener";

/// The handles of one listener; cheap to clone.
#[derive(Debug, Clone)]
pub struct ListenerMetrics {
    name: String,
    families: ListenerFamilies,
    connections: Counters<Outcome>,
    handshake_duration: Histogram,
    received: IntCounter,
    sent: IntCounter,
    trust_list_stale: IntGauge,
}

impl ListenerMetrics {
    /// Counts what became of one connection.
    pub fn connection(&self, outcome: Outcome) {
        self.connections.count(outcome);
    }

    /// Counts a completed handshake. The labels come from closed lists of the TLS library.
    pub fn handshake(&self, version: &'static str, suite: &'static str, resumed: bool, duration: Duration) {
        let resumed = if resumed { "true" } else { "false" };
        add(&counter_of(&self.families.handshakes, &[&self.name, version, suite, resumed]), 1);
        observe(&self.handshake_duration, duration);
    }

    /// Counts a failed handshake. `reason` comes from the closed list in [`crate::tls`].
    pub fn handshake_failed(&self, reason: &'static str) {
        counter_of(&self.families.handshake_failures, &[&self.name, reason]).inc();
    }

    /// Counts plaintext bytes from clients.
    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes as u64);
    }

    /// Counts plaintext bytes to clients.
    pub fn sent(&self, bytes: usize) {
        add(&self.sent, bytes as u64);
    }

    /// Says whether the listener's list file could not be read.
    pub fn trust_list_stale(&self, stale: bool) {
        self.trust_list_stale.set(stale.into());
    }
}

#[derive(Debug, Clone)]
pub(super) struct ListenerFamilies {
    connections: IntCounterVec,
    handshakes: IntCounterVec,
    handshake_failures: IntCounterVec,
    handshake_duration: HistogramVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    trust_list_stale: IntGaugeVec,
}

impl ListenerFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            connections: counters(registry, names::CONNECTIONS),
            handshakes: counters(registry, names::HANDSHAKES),
            handshake_failures: counters(registry, names::HANDSHAKE_FAILURES),
            handshake_duration: histograms(registry, names::HANDSHAKE_DURATION),
            received: counters(registry, names::LISTENER_RECEIVED),
            sent: counters(registry, names::LISTENER_SENT),
            trust_list_stale: gauges(registry, names::TRUST_LIST_STALE),
        }
    }

    /// Connections of all listeners.
    pub(super) fn connections(&self) -> u64 {
        samples(&self.connections).iter().map(|sample| sample.get_counter().get_value() as u64).sum()
    }

    /// Handshakes of all listeners by TLS version.
    pub(super) fn tls_versions(&self) -> BTreeMap<String, u64> {
        let mut versions = BTreeMap::new();
        for sample in samples(&self.handshakes) {
            if let Some(version) = sample.get_label().iter().find(|label| label.name() == "version") {
                *versions.entry(version.value().to_owned()).or_default() += sample.get_counter().get_value() as u64;
            }
        }
        versions
    }

    pub(super) fn forget(&self, name: &str) {
        for counters in [&self.connections, &self.handshakes, &self.handshake_failures, &self.received, &self.sent] {
            forget(counters, LISTENER, name);
        }
        forget(&self.handshake_duration, LISTENER, name);
        forget(&self.trust_list_stale, LISTENER, name);
    }

    pub(super) fn of(&self, name: &str) -> ListenerMetrics {
        ListenerMetrics {
            connections: Counters::new(&self.connections, &[name]),
            handshake_duration: histogram_of(&self.handshake_duration, &[name]),
            received: counter_of(&self.received, &[name]),
            sent: counter_of(&self.sent, &[name]),
            trust_list_stale: gauge_of(&self.trust_list_stale, &[name]),
            families: self.clone(),
            name: name.to_owned(),
        }
    }
}
