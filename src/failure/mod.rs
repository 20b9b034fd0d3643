//! The closed lists: everything that can become of a connection, a handshake, a session, an operation or a reload.
//!
//! Each value is a label of a metric, a word in the access log and a heading of the runbook, so the texts are part of
//! the contract: add, never rename.

use std::fmt;

pub use recent::{RecentFailure, RecentFailures};
pub use sub_code::SubCode;

/// A closed list whose values are metric labels.
pub trait ClosedList: Copy + 'static {
    /// Every value, in the order of [`ClosedList::index`].
    const ALL: &'static [Self];

    /// The position in [`ClosedList::ALL`].
    fn index(self) -> usize;

    /// The label's text.
    fn as_str(self) -> &'static str;

    /// One sentence for the reference.
    fn meaning(self) -> &'static str;
}

macro_rules! closed_list {
    ($(#[$about:meta])* $list:ident { $($(#[doc = $meaning:literal])+ $value:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $list { $($(#[doc = $meaning])+ $value,)+ }

        impl $list {
            /// The text in labels and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }

        impl ClosedList for $list {
            const ALL: &'static [Self] = &[$(Self::$value,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                self.as_str()
            }

            fn meaning(self) -> &'static str {
                match self { $(Self::$value => concat!($($meaning),+).trim_ascii(),)+ }
            }
        }

        impl fmt::Display for $list {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $list {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

mod recent;
mod sub_code;

closed_list! {
    /// What became of a connection a listener accepted from the kernel; each is counted exactly once.
    Outcome {
        /// A session began: trusted, within the limits, TLS up where the listener speaks it.
        Accepted = "accepted",
        /// The address is in no trusted network, or in a denied one.
        Untrusted = "untrusted",
        /// `limits.max_connections` is reached.
        Limit = "limit",
        /// `limits.connections_per_address` is reached.
        AddressLimit = "address_limit",
        /// `limits.connection_rate_per_address` is passed.
        RateLimited = "rate_limited",
        /// No turn among `limits.handshakes` came in time.
        HandshakeLimit = "handshake_limit",
        /// The TLS handshake failed; `ldaps_proxy_handshake_failures_total` says why.
        HandshakeFailed = "handshake_failed",
        /// The TLS handshake took longer than `limits.handshake_timeout`.
        HandshakeTimeout = "handshake_timeout",
        /// The PROXY header was missing, malformed or late.
        ProxyHeader = "proxy_header",
        /// The peer closed before it sent anything: a port scan or a TCP health check.
        Closed = "closed",
        /// The proxy is draining.
        Draining = "draining",
        /// The kernel could not hand the connection over: no descriptors or memory left. It waits and is tried again.
        AcceptFailed = "accept_failed",
    }
}

closed_list! {
    /// Why a TLS handshake with a client failed; [`crate::tls::HandshakeFailure`] tells them apart.
    HandshakeFailureReason {
        /// The client and `tls.min_version` have no TLS version in common.
        NoSharedVersion = "no_shared_version",
        /// No cipher suite, key exchange group or signature scheme in common.
        NoSharedCipher = "no_shared_cipher",
        /// The client refused our certificate.
        ClientDistrustsUs = "client_distrusts_us",
        /// The client's certificate is missing or bad.
        ClientCertificate = "client_certificate",
        /// What the client sent isn't TLS.
        NotTls = "not_tls",
        /// The client left.
        Closed = "closed",
        /// The handshake took too long.
        Timeout = "timeout",
        /// Anything else.
        Other = "other",
    }
}

closed_list! {
    /// Why the proxy itself answered an operation, or ended a session, instead of a backend.
    Refusal {
        /// No backend is usable.
        NoBackend = "no_backend",
        /// A backend was lost and the operation could not be sent again.
        BackendLost = "backend_lost",
        /// A search's backend was lost after some entries had been delivered.
        LostMidResult = "lost_mid_result",
        /// A write's backend was lost before it answered: nobody knows whether it happened.
        OutcomeUnknown = "outcome_unknown",
        /// The session's state lives in the backend that was lost.
        Pinned = "pinned",
        /// Another backend refused the replayed bind.
        ReplayRefused = "replay_refused",
        /// The request is not allowed at this moment (RFC 4511 §4.2.1); what is malformed ends the session.
        ProtocolError = "protocol_error",
        /// The request passes `limits.request_size`, `search_size` or `request_size_anonymous`.
        RequestSize = "request_size",
        /// The filter is nested deeper than `limits.filter_depth`.
        FilterDepth = "filter_depth",
        /// The session has `limits.operations_in_flight` already.
        OperationsInFlight = "operations_in_flight",
        /// `limits.buffer_memory` is used up.
        BufferMemory = "buffer_memory",
        /// Every usable backend is at its `max_sessions` and the pool's queue is full or off.
        QueueFull = "queue_full",
        /// No backend came free within `queue_timeout`.
        QueueTimeout = "queue_timeout",
        /// The operation took longer than `limits.operation_timeout`.
        OperationTimeout = "operation_timeout",
        /// A bind on a cleartext listener (RFC 4511 §4.2: confidentialityRequired).
        ConfidentialityRequired = "confidentiality_required",
        /// `policy.read_only`
        ReadOnly = "read_only",
        /// `policy.allow_anonymous` is false.
        Anonymous = "anonymous",
        /// A name with an empty password (RFC 4513 §5.1.2), and `policy.allow_unauthenticated` is false.
        Unauthenticated = "unauthenticated",
        /// `policy.operations`
        Operation = "operation",
        /// `policy.extended_operations`
        ExtendedOperation = "extended_operation",
        /// `policy.sasl_mechanisms`
        SaslMechanism = "sasl_mechanism",
        /// `policy.sasl_layer` is "refuse".
        SaslLayer = "sasl_layer",
        /// `policy.base_dns`
        BaseDn = "base_dn",
        /// `policy.denied_controls`
        Control = "control",
        /// `policy.max_size_limit`
        SizeLimit = "size_limit",
        /// `policy.bind_names` or `policy.denied_bind_names`
        BindName = "bind_name",
        /// The request can't be decoded and a policy has to see inside it.
        Undecodable = "undecodable",
        /// `login_throttle.failures_per_name`
        ThrottledName = "throttled_name",
        /// `login_throttle.failures_per_address`
        ThrottledAddress = "throttled_address",
        /// StartTLS where it is not offered or not possible now (RFC 4511 §4.14.2, RFC 4513 §3.1.1).
        StartTls = "start_tls",
        /// The proxy is draining.
        Draining = "draining",
    }
}

closed_list! {
    /// What failover did about one lost or unreachable backend, as seen by one operation or session.
    FailoverKind {
        /// Connecting failed and the next candidate was tried.
        Connect = "connect",
        /// An anonymous session went on with another upstream; its own was lost.
        Idle = "idle",
        /// The session's bind was replayed on another backend.
        BindReplay = "bind_replay",
        /// A search without a response yet was sent again.
        RetrySearch = "retry_search",
        /// A compare was sent again.
        RetryCompare = "retry_compare",
        /// A simple bind in flight was sent again.
        RetryBind = "retry_bind",
        /// A drained backend's idle session was moved to another one.
        Drain = "drain",
        /// A session was moved to a backend that returned.
        Rebalance = "rebalance",
        /// Answered `unavailable`: some entries were delivered already.
        LostMidResult = "lost_mid_result",
        /// Answered `unavailable`: a write's outcome is unknown.
        OutcomeUnknown = "outcome_unknown",
        /// The session ended: its state lived in the lost backend.
        Pinned = "pinned",
        /// The session ended: the replayed bind was refused.
        ReplayRefused = "replay_refused",
        /// Answered `unavailable`: no other backend was usable, or the retry was lost as well.
        Exhausted = "exhausted",
    }
}

closed_list! {
    /// Why a session ended.
    EndReason {
        /// The client sent an unbind (RFC 4511 §4.3).
        Unbind = "unbind",
        /// The client closed without an unbind.
        ClientClosed = "client_closed",
        /// The client's connection broke.
        ClientLost = "client_lost",
        /// The client sent something malformed.
        ProtocolError = "protocol_error",
        /// The client passed a size limit.
        RequestSize = "request_size",
        /// `limits.buffer_memory` is used up, and this session held much of it.
        BufferMemory = "buffer_memory",
        /// `limits.first_request_timeout`
        FirstRequestTimeout = "first_request_timeout",
        /// `limits.request_timeout`
        RequestTimeout = "request_timeout",
        /// `limits.idle_timeout`
        IdleTimeout = "idle_timeout",
        /// `limits.write_timeout`: the client took nothing we had for it.
        WriteTimeout = "write_timeout",
        /// The backend sent a notice of disconnection, which was forwarded.
        BackendNotice = "backend_notice",
        /// The upstream was lost and failover is off, or the session was a tunnel.
        BackendLost = "backend_lost",
        /// The upstream was lost and with it the session's state.
        Pinned = "pinned",
        /// Another backend refused the replayed bind.
        ReplayRefused = "replay_refused",
        /// A policy ended it.
        Policy = "policy",
        /// The handshake after StartTLS failed.
        HandshakeFailed = "handshake_failed",
        /// A reload, or a change of its list, took the client's network out of the trusted ones.
        Untrusted = "untrusted",
        /// An operator ended it.
        Killed = "killed",
        /// The proxy is shutting down.
        Shutdown = "shutdown",
    }
}

closed_list! {
    /// What else went wrong, beside refusals and connections: a word of the list of recent failures.
    Trouble {
        /// A backend fails its probes, or was ejected for what real traffic met there.
        BackendDown = "backend_down",
        /// A backend answers, but its deep probe fails or is too slow.
        BackendDegraded = "backend_degraded",
        /// An upstream was lost while operations were in flight on it.
        UpstreamLost = "upstream_lost",
        /// A backend answered a client's bind with invalidCredentials; the sub-code says why.
        BindRefused = "bind_refused",
        /// A name could not be resolved; the last good answer stays in force.
        LookupFailed = "lookup_failed",
        /// The account of a pool's probes is refused, or its password can't be read, and its probe stands still.
        ProbeAccountRefused = "probe_account_refused",
        /// A listener's list of trusted networks could not be read; the last good one stays in force.
        TrustListStale = "trust_list_stale",
        /// A reload found an error and changed nothing.
        ReloadRejected = "reload_rejected",
    }
}

closed_list! {
    /// What became of a reload of configuration and certificates.
    ReloadOutcome {
        /// Everything was taken over.
        Applied = "applied",
        /// An error was found and nothing was changed.
        Rejected = "rejected",
    }
}

closed_list! {
    /// The process-wide limits whose use is shown.
    Limit {
        /// `limits.max_connections`
        Connections = "connections",
        /// `limits.handshakes`
        Handshakes = "handshakes",
        /// `limits.buffer_memory`, in bytes
        BufferMemory = "buffer_memory",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn check<L: ClosedList + fmt::Debug + PartialEq>() {
        let texts: HashSet<_> = L::ALL.iter().map(|value| value.as_str()).collect();
        assert_eq!(texts.len(), L::ALL.len(), "two values share a text");
        for (index, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), index);
            let text = value.as_str();
            assert!(
                !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_runbook_has_every_trouble() {
        let runbook = include_str!("../../docs/runbook.md");
        let section = runbook.split("\n## ").find(|section| section.starts_with("Recent failures\n"));
        let rows: Vec<_> = section.expect("a section").lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), Trouble::ALL.len());
        for (row, trouble) in rows.iter().zip(Trouble::ALL) {
            let begin = format!("| `{trouble}` | {} | ", trouble.meaning());
            assert!(row.starts_with(&begin), "{row} doesn't start with {begin}");
        }
    }

    #[test]
    fn every_list_is_indexed_by_position_and_its_texts_are_labels() {
        check::<Outcome>();
        check::<HandshakeFailureReason>();
        check::<Refusal>();
        check::<FailoverKind>();
        check::<EndReason>();
        check::<ReloadOutcome>();
        check::<SubCode>();
        check::<Trouble>();
        check::<Limit>();
    }
}
