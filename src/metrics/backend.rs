//! What a pool and its backends count.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::families::{
    DURATION_BUCKETS, Held, Share, add, counter_of, counters, forget, gauge_of, gauges, histogram_of, histograms,
    observe, observe_each, samples,
};
use super::names;
use super::operations::has_response;
use crate::failure::{RecentFailures, Trouble};
use crate::ldap::OperationKind;

const POOL: &str = "pool";

/// The handles of one backend; cheap enough to clone, meant to be shared.
#[derive(Debug, Clone)]
pub struct BackendMetrics {
    up: IntGauge,
    drained: IntGauge,
    sessions: IntGauge,
    in_flight: IntGauge,
    /// By [`OperationKind`]; `None` for those without a response.
    durations: [Option<Histogram>; OperationKind::ALL.len()],
    connect_duration: Histogram,
    connect_failures: IntCounter,
    losses: IntCounter,
    probe_duration: Histogram,
    probe_failures: IntCounter,
    ejections: IntCounter,
    received: IntCounter,
    sent: IntCounter,
}

impl BackendMetrics {
    /// Says whether the health checks find the backend usable.
    pub fn up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// Says whether an operator has drained or disabled the backend.
    pub fn drained(&self, drained: bool) {
        self.drained.set(drained.into());
    }

    /// One holder's part of the sessions on this backend, 0 at first.
    pub fn sessions(&self) -> Share {
        Share::new(&self.sessions)
    }

    /// One upstream's part of the operations in flight, 0 at first.
    pub fn operations_in_flight(&self) -> Share {
        Share::new(&self.in_flight)
    }

    /// Operations in flight now, over all upstreams.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.in_flight.get()).unwrap_or(0)
    }

    /// Records how long each of some operations took, from its request's last byte to its final response's last byte.
    pub fn answered(&self, kind: OperationKind, duration: Duration, count: usize) {
        if let Some(histogram) = &self.durations[kind as usize] {
            observe_each(histogram, duration, count);
        }
    }

    /// Records how long opening an upstream took.
    pub fn connected(&self, duration: Duration) {
        observe(&self.connect_duration, duration);
    }

    /// Counts an upstream that could not be opened.
    pub fn connect_failed(&self) {
        add(&self.connect_failures, 1);
    }

    /// Counts an upstream lost under a session.
    pub fn lost(&self) {
        add(&self.losses, 1);
    }

    /// Records a passed probe.
    pub fn probe_passed(&self, duration: Duration) {
        observe(&self.probe_duration, duration);
    }

    /// Counts a failed probe.
    pub fn probe_failed(&self) {
        add(&self.probe_failures, 1);
    }

    /// Counts an ejection.
    pub fn ejected(&self) {
        add(&self.ejections, 1);
    }

    /// Counts bytes from the backend.
    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes as u64);
    }

    /// Counts bytes to the backend.
    pub fn sent(&self, bytes: usize) {
        add(&self.sent, bytes as u64);
    }
}

/// The handles of one pool.
#[derive(Debug, Clone)]
pub struct PoolMetrics {
    backends: IntGauge,
    waiting: IntGauge,
    queue_duration: Histogram,
    discovery_failures: IntCounter,
    probe_account_refused: IntGauge,
    name: Arc<str>,
    failures: Arc<RecentFailures>,
}

impl PoolMetrics {
    /// Says how many backends the pool has.
    pub fn backends(&self, count: usize) {
        self.backends.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a request in the queue while the guard lives.
    pub fn waiting(&self) -> Held {
        Held::new(&self.waiting)
    }

    /// Records how long a request waited for a backend.
    pub fn waited(&self, duration: Duration) {
        observe(&self.queue_duration, duration);
    }

    /// Counts a failed name lookup: of what, and why.
    pub fn discovery_failed(&self, what: impl Display) {
        add(&self.discovery_failures, 1);
        self.failures.record(SystemTime::now(), Trouble::LookupFailed, &self.name, what);
    }

    /// Says whether the account of the pool's probes is refused.
    pub fn probe_account_refused(&self, refused: bool) {
        self.probe_account_refused.set(refused.into());
        if refused {
            let detail =
                "the account of the probes is refused (invalidCredentials): correct bind_name or password_file";
            self.failures.record(SystemTime::now(), Trouble::ProbeAccountRefused, &self.name, detail);
        }
    }

    /// Says that the password of that account can't be read: its probe stands still as if it were refused. `news` is why, where
    /// that hasn't been told yet.
    pub fn probe_account_unreadable(&self, news: Option<&str>) {
        self.probe_account_refused.set(1);
        if let Some(why) = news {
            self.failures.record(SystemTime::now(), Trouble::ProbeAccountRefused, &self.name, why);
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct PoolFamilies {
    up: IntGaugeVec,
    drained: IntGaugeVec,
    sessions: IntGaugeVec,
    in_flight: IntGaugeVec,
    operation_duration: HistogramVec,
    connect_duration: HistogramVec,
    connect_failures: IntCounterVec,
    losses: IntCounterVec,
    probe_duration: HistogramVec,
    probe_failures: IntCounterVec,
    ejections: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    backends: IntGaugeVec,
    waiting: IntGaugeVec,
    queue_duration: HistogramVec,
    discovery_failures: IntCounterVec,
    probe_account_refused: IntGaugeVec,
    failures: Arc<RecentFailures>,
}

impl PoolFamilies {
    pub(super) fn new(registry: &Registry, failures: Arc<RecentFailures>) -> Self {
        Self {
            up: gauges(registry, names::BACKEND_UP),
            drained: gauges(registry, names::BACKEND_DRAINED),
            sessions: gauges(registry, names::BACKEND_SESSIONS),
            in_flight: gauges(registry, names::BACKEND_OPERATIONS_IN_FLIGHT),
            operation_duration: histograms(registry, names::OPERATION_DURATION),
            connect_duration: histograms(registry, names::BACKEND_CONNECT_DURATION),
            connect_failures: counters(registry, names::BACKEND_CONNECT_FAILURES),
            losses: counters(registry, names::BACKEND_LOSSES),
            probe_duration: histograms(registry, names::BACKEND_PROBE_DURATION),
            probe_failures: counters(registry, names::BACKEND_PROBE_FAILURES),
            ejections: counters(registry, names::BACKEND_EJECTIONS),
            received: counters(registry, names::BACKEND_RECEIVED),
            sent: counters(registry, names::BACKEND_SENT),
            backends: gauges(registry, names::POOL_BACKENDS),
            waiting: gauges(registry, names::QUEUE_WAITING),
            queue_duration: histograms(registry, names::QUEUE_DURATION),
            discovery_failures: counters(registry, names::DISCOVERY_FAILURES),
            probe_account_refused: gauges(registry, names::PROBE_ACCOUNT_REFUSED),
            failures,
        }
    }

    /// Operations of all kinds and backends by duration, cumulative, the last bound infinite.
    pub(super) fn latency(&self) -> Vec<(f64, u64)> {
        let mut latency: Vec<(f64, u64)> =
            DURATION_BUCKETS.iter().chain([&f64::INFINITY]).map(|bound| (*bound, 0)).collect();
        for sample in samples(&self.operation_duration) {
            let histogram = sample.get_histogram();
            let counts = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
            for (sum, count) in latency.iter_mut().zip(counts.chain([histogram.get_sample_count()])) {
                sum.1 += count;
            }
        }
        latency
    }

    pub(super) fn pool(&self, pool: &str) -> PoolMetrics {
        PoolMetrics {
            backends: gauge_of(&self.backends, &[pool]),
            waiting: gauge_of(&self.waiting, &[pool]),
            queue_duration: histogram_of(&self.queue_duration, &[pool]),
            discovery_failures: counter_of(&self.discovery_failures, &[pool]),
            probe_account_refused: gauge_of(&self.probe_account_refused, &[pool]),
            name: pool.into(),
            failures: Arc::clone(&self.failures),
        }
    }

    pub(super) fn backend(&self, pool: &str, backend: &str) -> BackendMetrics {
        let labels = &[pool, backend];
        BackendMetrics {
            up: gauge_of(&self.up, labels),
            drained: gauge_of(&self.drained, labels),
            sessions: gauge_of(&self.sessions, labels),
            in_flight: gauge_of(&self.in_flight, labels),
            durations: OperationKind::ALL.map(|kind| {
                has_response(kind).then(|| histogram_of(&self.operation_duration, &[kind.as_str(), backend]))
            }),
            connect_duration: histogram_of(&self.connect_duration, labels),
            connect_failures: counter_of(&self.connect_failures, labels),
            losses: counter_of(&self.losses, labels),
            probe_duration: histogram_of(&self.probe_duration, labels),
            probe_failures: counter_of(&self.probe_failures, labels),
            ejections: counter_of(&self.ejections, labels),
            received: counter_of(&self.received, labels),
            sent: counter_of(&self.sent, labels),
        }
    }

    pub(super) fn forget_pool(&self, pool: &str) {
        for gauges in [&self.backends, &self.waiting, &self.probe_account_refused] {
            forget(gauges, POOL, pool);
        }
        forget(&self.queue_duration, POOL, pool);
        forget(&self.discovery_failures, POOL, pool);
    }

    /// Removing a series that isn't there is no error worth telling: a backend may leave twice.
    pub(super) fn forget_backend(&self, pool: &str, backend: &str) {
        let labels = &[pool, backend];
        for gauges in [&self.up, &self.drained, &self.sessions, &self.in_flight] {
            let _ = gauges.remove_label_values(labels);
        }
        for counters in
            [&self.connect_failures, &self.losses, &self.probe_failures, &self.ejections, &self.received, &self.sent]
        {
            let _ = counters.remove_label_values(labels);
        }
        for histograms in [&self.connect_duration, &self.probe_duration] {
            let _ = histograms.remove_label_values(labels);
        }
        for kind in OperationKind::ALL {
            let _ = self.operation_duration.remove_label_values(&[kind.as_str(), backend]);
        }
    }
}
