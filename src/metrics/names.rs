//! Every metric: its name, type, labels and meaning, once.
//!
//! The names are part of the contract. `docs/metrics.md` and the `# HELP` lines are held to this list by a test.

/// Prometheus' type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Samples counted in buckets.
    Histogram,
}

/// One metric family.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name on the wire.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// The label names, in the order values are given.
    pub labels: &'static [&'static str],
    /// One sentence of what it counts, with the unit.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $constant:ident = $name:literal $kind:ident [$($label:literal),*];)+) => {
        $(
            $(#[doc = $help])+
            pub const $constant: Metric =
                Metric { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: concat!($($help),+) };
        )+

        /// Every metric, in the order of the reference.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    /// Sessions open now.
    SESSIONS_ACTIVE = "ldaps_proxy_sessions_active" Gauge [];
    /// Connections taken from the kernel, by what became of them; each counts once.
    CONNECTIONS = "ldaps_proxy_connections_total" Counter ["listener", "outcome"];
    /// Sessions ended, by why.
    SESSIONS_ENDED = "ldaps_proxy_sessions_ended_total" Counter ["reason"];
    /// Sessions that became opaque byte tunnels after a SASL security layer was negotiated.
    TUNNELS = "ldaps_proxy_tunnels_total" Counter [];
    /// TLS handshakes completed.
    HANDSHAKES = "ldaps_proxy_handshakes_total" Counter ["listener", "version", "suite", "resumed"];
    /// TLS handshakes failed, by why.
    HANDSHAKE_FAILURES = "ldaps_proxy_handshake_failures_total" Counter ["listener", "reason"];
    /// Seconds from accept to the end of a completed TLS handshake.
    HANDSHAKE_DURATION = "ldaps_proxy_handshake_duration_seconds" Histogram ["listener"];
    /// Plaintext bytes received from clients.
    LISTENER_RECEIVED = "ldaps_proxy_listener_received_bytes_total" Counter ["listener"];
    /// Plaintext bytes sent to clients.
    LISTENER_SENT = "ldaps_proxy_listener_sent_bytes_total" Counter ["listener"];
    /// 1 while a listener's list file could not be read and the last good list is in force.
    TRUST_LIST_STALE = "ldaps_proxy_trust_list_stale" Gauge ["listener"];
    /// Operations ended, by RFC 4511 result name or `other`; unbind and abandon have no result and count as success.
    OPERATIONS = "ldaps_proxy_operations_total" Counter ["operation", "result"];
    /// Seconds from a request's last byte in to its final response's last byte out of the backend.
    OPERATION_DURATION = "ldaps_proxy_operation_duration_seconds" Histogram ["operation", "backend"];
    /// Requests forwarded although they frame well but can't be decoded.
    UNDECODED_REQUESTS = "ldaps_proxy_undecoded_requests_total" Counter [];
    /// Failed binds (invalidCredentials) by the sub-code in the backend's diagnostic, `none` without one, or `other`.
    BIND_FAILURES = "ldaps_proxy_bind_failures_total" Counter ["sub_code"];
    /// Operations and sessions the proxy itself refused or gave up, by why.
    REFUSALS = "ldaps_proxy_refusals_total" Counter ["reason"];
    /// Failovers, by what was done.
    FAILOVERS = "ldaps_proxy_failovers_total" Counter ["kind"];
    /// 1 while the health checks say a backend is usable.
    BACKEND_UP = "ldaps_proxy_backend_up" Gauge ["pool", "backend"];
    /// 1 while a backend is drained or disabled by an operator.
    BACKEND_DRAINED = "ldaps_proxy_backend_drained" Gauge ["pool", "backend"];
    /// Sessions with an upstream to a backend.
    BACKEND_SESSIONS = "ldaps_proxy_backend_sessions" Gauge ["pool", "backend"];
    /// Operations sent to a backend and not finished.
    BACKEND_OPERATIONS_IN_FLIGHT = "ldaps_proxy_backend_operations_in_flight" Gauge ["pool", "backend"];
    /// Seconds to open an upstream: TCP, and TLS where the pool speaks it.
    BACKEND_CONNECT_DURATION = "ldaps_proxy_backend_connect_duration_seconds" Histogram ["pool", "backend"];
    /// Upstreams that could not be opened.
    BACKEND_CONNECT_FAILURES = "ldaps_proxy_backend_connect_failures_total" Counter ["pool", "backend"];
    /// Upstreams lost while a session used them.
    BACKEND_LOSSES = "ldaps_proxy_backend_losses_total" Counter ["pool", "backend"];
    /// Seconds of passed probes.
    BACKEND_PROBE_DURATION = "ldaps_proxy_backend_probe_duration_seconds" Histogram ["pool", "backend"];
    /// Failed probes.
    BACKEND_PROBE_FAILURES = "ldaps_proxy_backend_probe_failures_total" Counter ["pool", "backend"];
    /// Times a backend was ejected, for what real traffic met there or for coming and going.
    BACKEND_EJECTIONS = "ldaps_proxy_backend_ejections_total" Counter ["pool", "backend"];
    /// Bytes received from a backend.
    BACKEND_RECEIVED = "ldaps_proxy_backend_received_bytes_total" Counter ["pool", "backend"];
    /// Bytes sent to a backend.
    BACKEND_SENT = "ldaps_proxy_backend_sent_bytes_total" Counter ["pool", "backend"];
    /// Backends a pool has, discovered ones included.
    POOL_BACKENDS = "ldaps_proxy_pool_backends" Gauge ["pool"];
    /// Requests waiting for a backend below its `max_sessions`.
    QUEUE_WAITING = "ldaps_proxy_queue_waiting" Gauge ["pool"];
    /// Seconds requests waited for a backend.
    QUEUE_DURATION = "ldaps_proxy_queue_duration_seconds" Histogram ["pool"];
    /// Name lookups that failed; the last good answer stays in force.
    DISCOVERY_FAILURES = "ldaps_proxy_discovery_failures_total" Counter ["pool"];
    /// 1 while the account of a pool's probes is refused (invalidCredentials), or its password can't be read, and its probe stands still.
    PROBE_ACCOUNT_REFUSED = "ldaps_proxy_probe_account_refused" Gauge ["pool"];
    /// When a certificate expires, in Unix seconds.
    CERTIFICATE_EXPIRY = "ldaps_proxy_certificate_expiry_timestamp_seconds" Gauge ["certificate"];
    /// Seconds a PKCS#11 token took for a signature, by the certificate it was for.
    TOKEN_SIGN_DURATION = "ldaps_proxy_token_sign_duration_seconds" Histogram ["certificate"];
    /// Signatures a PKCS#11 token did not make, each a failed handshake.
    TOKEN_SIGN_FAILURES = "ldaps_proxy_token_sign_failures_total" Counter ["certificate"];
    /// Reloads of configuration and certificates, by what became of them.
    RELOADS = "ldaps_proxy_reloads_total" Counter ["result"];
    /// 0 after a reload was rejected, of the configuration or of certificates, until one of the same is applied; else 1.
    LAST_RELOAD_SUCCESSFUL = "ldaps_proxy_last_reload_successful" Gauge [];
    /// What a process-wide limit allows.
    LIMIT = "ldaps_proxy_limit" Gauge ["limit"];
    /// What is used of a process-wide limit now.
    LIMIT_USED = "ldaps_proxy_limit_used" Gauge ["limit"];
    /// Access log records written.
    ACCESS_LOG_RECORDS = "ldaps_proxy_access_log_records_total" Counter [];
    /// Access log records lost because the output was slower than the load, or failed.
    ACCESS_LOG_DROPPED = "ldaps_proxy_access_log_dropped_total" Counter [];
    /// Always 1; the labels say which build this is.
    BUILD_INFO = "ldaps_proxy_build_info" Gauge ["version", "crypto"];
    /// Resident memory, in bytes.
    PROCESS_RESIDENT_MEMORY = "process_resident_memory_bytes" Gauge [];
    /// Open file descriptors.
    PROCESS_OPEN_FDS = "process_open_fds" Gauge [];
    /// Most file descriptors this process may open.
    PROCESS_MAX_FDS = "process_max_fds" Gauge [];
    /// CPU seconds used, user and system.
    PROCESS_CPU = "process_cpu_seconds_total" Counter [];
    /// When the process started, in Unix seconds.
    PROCESS_START_TIME = "process_start_time_seconds" Gauge [];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{
        ClosedList, EndReason, FailoverKind, HandshakeFailureReason, Limit, Outcome, Refusal, ReloadOutcome, SubCode,
    };

    fn metric_rows() -> Vec<String> {
        let row = |metric: &Metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join(" "), metric.help.trim())
        };
        ALL.iter().map(row).collect()
    }

    fn value_rows<L: ClosedList>() -> Vec<String> {
        L::ALL.iter().map(|value| format!("| `{}` | {} |", value.as_str(), value.meaning())).collect()
    }

    /// The reference is written by hand around its tables; the tables are this list and the closed lists, in order.
    #[test]
    fn the_reference_has_every_metric_and_every_label_value_and_nothing_else() {
        let reference = include_str!("../../docs/metrics.md");
        let written: Vec<_> = reference.lines().filter(|line| line.starts_with("| `")).collect();
        let expected = [
            metric_rows(),
            value_rows::<Outcome>(),
            value_rows::<HandshakeFailureReason>(),
            value_rows::<SubCode>(),
            value_rows::<FailoverKind>(),
            value_rows::<Refusal>(),
            value_rows::<EndReason>(),
            value_rows::<ReloadOutcome>(),
            value_rows::<Limit>(),
        ]
        .concat();
        let missing: Vec<_> = expected.iter().filter(|row| !written.contains(&row.as_str())).collect();
        let strange: Vec<_> = written.iter().filter(|row| !expected.iter().any(|known| known == *row)).collect();
        assert!(
            missing.is_empty() && strange.is_empty(),
            "docs/metrics.md lacks:\n{missing:#?}\nand holds what the code doesn't know:\n{strange:#?}"
        );
        assert_eq!(written, expected, "the rows of docs/metrics.md stand in another order than the code's");
    }
}
