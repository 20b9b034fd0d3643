//! What is counted, and how it is shown to Prometheus.
//!
//! [`names`] lists every metric. [`Metrics`] owns them; the parts of the proxy take handles from it when they are built,
//! so that counting on the data path is an atomic add with no lookup of labels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::build_info;
use crate::failure::{
    ClosedList as _, EndReason, FailoverKind, Limit, RecentFailures, Refusal, ReloadOutcome, SubCode,
};

use families::{counter, counter_of, counters, gauge, gauge_of, gauges, histogram_of, histograms, observe};

mod backend;
mod families;
mod listener;
pub mod names;
mod operations;
mod process;

pub use backend::{BackendMetrics, PoolMetrics};
pub use families::{Counters, Held, Share};
pub use listener::ListenerMetrics;
pub use operations::{Operations, has_response, is_server_trouble};

/// All metrics of one proxy, and the handles that belong to no single listener or backend.
#[derive(Debug)]
pub struct Metrics {
    /// `ldaps_proxy_operations_total`
    pub operations: Operations,
    /// `ldaps_proxy_failovers_total`
    pub failovers: Counters<FailoverKind>,
    /// `ldaps_proxy_refusals_total`
    pub refusals: Counters<Refusal>,
    /// `ldaps_proxy_sessions_ended_total`
    pub sessions_ended: Counters<EndReason>,
    /// `ldaps_proxy_bind_failures_total`
    pub bind_failures: Counters<SubCode>,
    /// `ldaps_proxy_tunnels_total`
    pub tunnels: IntCounter,
    /// `ldaps_proxy_undecoded_requests_total`
    pub undecoded_requests: IntCounter,
    /// `ldaps_proxy_access_log_records_total`
    pub access_log_records: IntCounter,
    /// `ldaps_proxy_access_log_dropped_total`
    pub access_log_dropped: IntCounter,
    /// What went wrong lately, in words: no metric, but met in the same places.
    pub failures: Arc<RecentFailures>,
    registry: Registry,
    sessions_active: IntGauge,
    certificate_expiry: IntGaugeVec,
    token_sign_duration: HistogramVec,
    token_sign_failures: IntCounterVec,
    reloads: Counters<ReloadOutcome>,
    last_reload_successful: IntGauge,
    limits: Box<[LimitGauges]>,
    listeners: listener::ListenerFamilies,
    pools: backend::PoolFamilies,
    process: process::ProcessMetrics,
}

impl Metrics {
    /// Every fixed series, at 0. Those of listeners and backends appear with [`Metrics::listener`] and
    /// [`Metrics::backend`].
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        gauge_of(&gauges(&registry, names::BUILD_INFO), &[env!("CARGO_PKG_VERSION"), &build_info::crypto_module()])
            .set(1);
        let last_reload_successful = gauge(&registry, names::LAST_RELOAD_SUCCESSFUL);
        last_reload_successful.set(1);
        let (allowed, used) = (gauges(&registry, names::LIMIT), gauges(&registry, names::LIMIT_USED));
        let limit_gauges = |limit: &Limit| LimitGauges {
            allowed: gauge_of(&allowed, &[limit.as_str()]),
            used: gauge_of(&used, &[limit.as_str()]),
        };
        let failures = Arc::<RecentFailures>::default();
        Arc::new(Self {
            operations: Operations::new(&counters(&registry, names::OPERATIONS)),
            failovers: Counters::new(&counters(&registry, names::FAILOVERS), &[]),
            refusals: Counters::new(&counters(&registry, names::REFUSALS), &[]),
            sessions_ended: Counters::new(&counters(&registry, names::SESSIONS_ENDED), &[]),
            tunnels: counter(&registry, names::TUNNELS),
            undecoded_requests: counter(&registry, names::UNDECODED_REQUESTS),
            access_log_records: counter(&registry, names::ACCESS_LOG_RECORDS),
            access_log_dropped: counter(&registry, names::ACCESS_LOG_DROPPED),
            sessions_active: gauge(&registry, names::SESSIONS_ACTIVE),
            bind_failures: Counters::new(&counters(&registry, names::BIND_FAILURES), &[]),
            certificate_expiry: gauges(&registry, names::CERTIFICATE_EXPIRY),
            token_sign_duration: histograms(&registry, names::TOKEN_SIGN_DURATION),
            token_sign_failures: counters(&registry, names::TOKEN_SIGN_FAILURES),
            reloads: Counters::new(&counters(&registry, names::RELOADS), &[]),
            last_reload_successful,
            limits: Limit::ALL.iter().map(limit_gauges).collect(),
            listeners: listener::ListenerFamilies::new(&registry),
            pools: backend::PoolFamilies::new(&registry, Arc::clone(&failures)),
            failures,
            process: process::ProcessMetrics::new(&registry),
            registry,
        })
    }

    /// The text Prometheus scrapes, in its format 0.0.4 ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        self.process.read();
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("gathered families have a name and samples, the only things the encoder asks for")
    }

    /// Sums over all labels, for rates.
    pub fn totals(&self) -> Totals {
        Totals {
            operations: self.operations.sum(|_| true),
            errors: self.operations.sum(is_server_trouble),
            connections: self.listeners.connections(),
            latency: self.pools.latency(),
        }
    }

    /// Handshakes by TLS version.
    pub fn tls_versions(&self) -> BTreeMap<String, u64> {
        self.listeners.tls_versions()
    }

    /// The handles of the listener of this name.
    pub fn listener(&self, name: &str) -> ListenerMetrics {
        self.listeners.of(name)
    }

    /// The handles of the pool of this name.
    pub fn pool(&self, pool: &str) -> PoolMetrics {
        self.pools.pool(pool)
    }

    /// The handles of a backend, named as in status and `drain`.
    pub fn backend(&self, pool: &str, backend: &str) -> BackendMetrics {
        self.pools.backend(pool, backend)
    }

    /// Removes the series of a backend that has left for good, so that changing names don't pile up.
    pub fn forget_backend(&self, pool: &str, backend: &str) {
        self.pools.forget_backend(pool, backend);
    }

    /// Removes the series of a pool that a reload has taken away; those of its backends are forgotten one by one.
    pub fn forget_pool(&self, pool: &str) {
        self.pools.forget_pool(pool);
    }

    /// Removes the series of a listener that a reload has taken away.
    pub fn forget_listener(&self, name: &str) {
        self.listeners.forget(name);
    }

    /// Counts a session while the guard lives.
    pub fn session(&self) -> Held {
        Held::new(&self.sessions_active)
    }

    /// Replaces the certificates shown by these: label and expiry in Unix seconds.
    pub fn certificates<'a>(&self, certificates: impl IntoIterator<Item = (&'a str, i64)>) {
        self.certificate_expiry.reset();
        for (label, expiry) in certificates {
            gauge_of(&self.certificate_expiry, &[label]).set(expiry);
        }
    }

    /// Counts what a PKCS#11 token made of a signature for a certificate, and the time it took.
    pub fn token_signed(&self, certificate: &str, took: Duration, made: bool) {
        let failures = counter_of(&self.token_sign_failures, &[certificate]);
        if made {
            observe(&histogram_of(&self.token_sign_duration, &[certificate]), took);
        } else {
            failures.inc();
        }
    }

    /// Counts a reload, and says whether all that was to be reloaded by now is in force.
    pub fn reloaded(&self, outcome: ReloadOutcome, all_in_force: bool) {
        self.reloads.count(outcome);
        self.last_reload_successful.set(all_in_force.into());
    }

    /// Says what a limit allows.
    pub fn limit(&self, limit: Limit, allowed: usize) {
        self.limits[limit.index()].allowed.set(i64::try_from(allowed).unwrap_or(i64::MAX));
    }

    /// One holder's part of what is used of a limit, 0 at first.
    pub fn limit_used(&self, limit: Limit) -> Share {
        Share::new(&self.limits[limit.index()].used)
    }
}

/// Sums since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Operations ended.
    pub operations: u64,
    /// Operations ended for a reason that isn't the user's: a result of 1–3, 8, 51–54 or 80.
    pub errors: u64,
    /// Connections, whatever became of them.
    pub connections: u64,
    /// Operations by duration: upper bound in seconds, and how many took at most that long; the last bound is infinite.
    pub latency: Vec<(f64, u64)>,
}

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

#[derive(Debug)]
struct LimitGauges {
    allowed: IntGauge,
    used: IntGauge,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::failure::Outcome;
    use crate::ldap::OperationKind;

    /// The value of the series written exactly so.
    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn the_fixed_series_stand_at_zero_from_the_start() {
        let metrics = Metrics::new();
        metrics.listener("0.0.0.0:636");
        metrics.backend("simple-ad", "10.0.1.10:389");
        let text = metrics.render();
        for series in [
            r#"ldaps_proxy_sessions_active"#,
            r#"ldaps_proxy_connections_total{listener="0.0.0.0:636",outcome="accepted"}"#,
            r#"ldaps_proxy_connections_total{listener="0.0.0.0:636",outcome="untrusted"}"#,
            r#"ldaps_proxy_operations_total{operation="search",result="success"}"#,
            r#"ldaps_proxy_operations_total{operation="bind",result="invalidCredentials"}"#,
            r#"ldaps_proxy_operation_duration_seconds_count{backend="10.0.1.10:389",operation="search"}"#,
            r#"ldaps_proxy_backend_up{backend="10.0.1.10:389",pool="simple-ad"}"#,
            r#"ldaps_proxy_backend_sessions{backend="10.0.1.10:389",pool="simple-ad"}"#,
            r#"ldaps_proxy_backend_operations_in_flight{backend="10.0.1.10:389",pool="simple-ad"}"#,
            r#"ldaps_proxy_failovers_total{kind="bind_replay"}"#,
            r#"ldaps_proxy_bind_failures_total{sub_code="52e"}"#,
            r#"ldaps_proxy_refusals_total{reason="no_backend"}"#,
            r#"ldaps_proxy_reloads_total{result="rejected"}"#,
        ] {
            assert_eq!(value(&text, series), Some(0.0), "{series} in\n{text}");
        }
    }

    #[test]
    fn every_metric_in_the_list_is_shown_once_it_has_a_sample() {
        let metrics = Metrics::new();
        let listener = metrics.listener("l");
        listener.handshake("1.3", "TLS_AES_256_GCM_SHA384", false, Duration::from_micros(350));
        listener.handshake_failed("not_tls");
        metrics.pool("p");
        metrics.backend("p", "b");
        metrics.certificates([("certs/certificate.pem", 1_800_000_000)]);
        metrics.token_signed("certs/certificate.pem", Duration::from_micros(900), true);
        let text = metrics.render();
        for metric in names::ALL {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            assert!(text.contains(&format!("# TYPE {} {kind}\n", metric.name)), "{}", metric.name);
            assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help.trim())), "{}", metric.name);
        }
        let shown = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(shown, names::ALL.len(), "a family is registered that names.rs does not list");
    }

    #[test]
    fn guards_move_gauges_and_give_back_what_they_took() {
        let metrics = Metrics::new();
        let backend = metrics.backend("p", "b");
        let in_flight = r#"ldaps_proxy_backend_operations_in_flight{backend="b",pool="p"}"#;
        let mut first = backend.operations_in_flight();
        let mut second = backend.operations_in_flight();
        first.set(3);
        second.set(2);
        second.set(1);
        let session = metrics.session();
        let text = metrics.render();
        assert_eq!(value(&text, in_flight), Some(4.0));
        assert_eq!(value(&text, "ldaps_proxy_sessions_active"), Some(1.0));
        drop((first, session));
        let text = metrics.render();
        assert_eq!(value(&text, in_flight), Some(1.0));
        assert_eq!(value(&text, "ldaps_proxy_sessions_active"), Some(0.0));
    }

    #[test]
    fn durations_fall_into_buckets_of_seconds() {
        let metrics = Metrics::new();
        let backend = metrics.backend("p", "b");
        backend.answered(OperationKind::Search, Duration::from_micros(80), 1);
        backend.answered(OperationKind::Search, Duration::from_millis(3), 1);
        backend.answered(OperationKind::Search, Duration::from_millis(40), 100);
        backend.answered(OperationKind::Unbind, Duration::from_millis(3), 1);
        let text = metrics.render();
        let bucket = |le: &str| {
            let series = "ldaps_proxy_operation_duration_seconds_bucket";
            value(&text, &format!(r#"{series}{{backend="b",operation="search",le="{le}"}}"#))
        };
        assert_eq!(bucket("0.00005"), Some(0.0));
        assert_eq!(bucket("0.0001"), Some(1.0));
        assert_eq!(bucket("0.005"), Some(2.0));
        assert_eq!(bucket("0.025"), Some(2.0));
        assert_eq!(bucket("30"), Some(102.0));
        let sum = value(&text, r#"ldaps_proxy_operation_duration_seconds_sum{backend="b",operation="search"}"#);
        assert!(sum.is_some_and(|sum| (sum - 4.00308).abs() < 1e-9), "{sum:?}");
        assert!(!text.contains(r#"operation="unbind",le"#));
    }

    #[test]
    fn what_left_leaves_no_series_behind() {
        let metrics = Metrics::new();
        for name in ["gone", "stays"] {
            metrics.backend("p", &format!("{name}-backend:389")).up(true);
            metrics.pool(&format!("{name}-pool")).backends(2);
            let listener = metrics.listener(&format!("{name}-listener"));
            listener.handshake("1.3", "TLS_AES_256_GCM_SHA384", false, Duration::from_micros(350));
            listener.handshake_failed("not_tls");
        }
        metrics.forget_backend("p", "gone-backend:389");
        metrics.forget_pool("gone-pool");
        metrics.forget_listener("gone-listener");
        let text = metrics.render();
        assert!(!text.contains("gone"), "{text}");
        let staying = |what: &str| text.matches(&format!("\"stays-{what}")).count();
        assert!(staying("backend") > 100 && staying("pool") > 4 && staying("listener") > 20);
    }

    #[test]
    fn certificates_are_replaced_as_a_whole() {
        let metrics = Metrics::new();
        metrics.certificates([("old", 1)]);
        metrics.certificates([("new", 2)]);
        let text = metrics.render();
        let series = |label| format!(r#"ldaps_proxy_certificate_expiry_timestamp_seconds{{certificate="{label}"}}"#);
        assert_eq!(value(&text, &series("old")), None);
        assert_eq!(value(&text, &series("new")), Some(2.0));
    }

    #[test]
    fn closed_lists_keep_unknown_words_out() {
        let metrics = Metrics::new();
        metrics.bind_failures.count(SubCode::WrongPassword);
        metrics.bind_failures.count(SubCode::of(b"anything a backend may say, data 4711"));
        metrics.reloaded(ReloadOutcome::Rejected, false);
        metrics.listener("l").connection(Outcome::Untrusted);
        let text = metrics.render();
        assert_eq!(value(&text, r#"ldaps_proxy_bind_failures_total{sub_code="52e"}"#), Some(1.0));
        assert_eq!(value(&text, r#"ldaps_proxy_bind_failures_total{sub_code="other"}"#), Some(1.0));
        assert_eq!(value(&text, "ldaps_proxy_last_reload_successful"), Some(0.0));
        assert_eq!(value(&text, r#"ldaps_proxy_connections_total{listener="l",outcome="untrusted"}"#), Some(1.0));
    }

    #[test]
    fn the_process_shows_what_it_uses() {
        let text = Metrics::new().render();
        for series in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
            assert!(value(&text, series).is_some_and(|figure| figure > 1.0), "{series}");
        }
        assert!(value(&text, "process_start_time_seconds").is_some_and(|start| start > 1.7e9));
    }
}
