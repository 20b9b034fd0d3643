//! What the whole process has once: limits, logs, admin, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[limits]`; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections`
    pub max_connections: usize,
    /// `connections_per_address`, 0 = off. IPv6 counts by /64.
    pub connections_per_address: usize,
    /// `connection_rate_per_address`: new connections a second, 0 = off.
    pub connection_rate_per_address: u32,
    /// `handshakes` being computed at once, of which each address gets its share. One that waits for its client is none of
    /// them.
    pub handshakes: usize,
    /// `handshake_timeout`
    pub handshake_timeout: Duration,
    /// `first_request_timeout`
    pub first_request_timeout: Duration,
    /// `request_timeout`: from a PDU's first byte to its last.
    pub request_timeout: Duration,
    /// `idle_timeout`: no operation in flight and no byte from the client.
    pub idle_timeout: Duration,
    /// `write_timeout`: a peer that takes no byte we have for it.
    pub write_timeout: Duration,
    /// `request_size_anonymous`
    pub request_size_anonymous: usize,
    /// `search_size`
    pub search_size: usize,
    /// `request_size`
    pub request_size: usize,
    /// `filter_depth`
    pub filter_depth: usize,
    /// `operations_in_flight` per session.
    pub operations_in_flight: usize,
    /// `operation_timeout`; `None` is off ("0s").
    pub operation_timeout: Option<Duration>,
    /// `buffer_memory`: bytes that all sessions' request and response buffers may hold together.
    pub buffer_memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 9000,
            connections_per_address: 0,
            connection_rate_per_address: 0,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(10),
            first_request_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
            write_timeout: Duration::from_secs(30),
            request_size_anonymous: 250 * 1024,
            search_size: 250 * 1024,
            request_size: 16 * 1024 * 1024,
            filter_depth: 100,
            operations_in_flight: 256,
            operation_timeout: None,
            buffer_memory: 512 * 1024 * 1024,
        }
    }
}

/// `[login_throttle]`; `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginThrottle {
    /// `failures_per_name` within a window.
    pub failures_per_name: Option<u32>,
    /// `failures_per_address` within a window.
    pub failures_per_address: Option<u32>,
    /// `window`
    pub window: Duration,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self { failures_per_name: None, failures_per_address: None, window: Duration::from_secs(600) }
    }
}

/// `[access_log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `output`, with `path` for a file.
    pub output: AccessLogOutput,
    /// `format`
    pub format: LogFormat,
    /// `detail`
    pub detail: AccessLogDetail,
    /// `redact_filters`
    pub redact_filters: bool,
    /// `sample`: of operations that neither failed nor were slow, one in this many is told; 0 = none.
    pub sample: u32,
    /// `slower_than`: operations that take longer are slow; `None` is off ("0s").
    pub slower_than: Option<Duration>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            output: AccessLogOutput::Off,
            format: LogFormat::Json,
            detail: AccessLogDetail::Operations,
            redact_filters: true,
            sample: 1,
            slower_than: None,
        }
    }
}

/// `output` of the access log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogOutput {
    /// None.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// `path`; SIGUSR1 reopens it.
    File(PathBuf),
    /// The systemd journal.
    Journald,
}

/// `detail` of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLogDetail {
    /// A line per operation and per session.
    #[default]
    Operations,
    /// A line per session.
    Sessions,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `level`: a tracing filter, such as "info" or "info,ldaps_proxy::health=debug".
    pub level: String,
    /// `format`
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// `format` of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admin {
    /// `address`
    pub address: Option<SocketAddr>,
    /// `socket`
    pub socket: Option<PathBuf>,
    /// `token_file`: with it, TCP may change state.
    pub token_file: Option<PathBuf>,
}

/// `[shutdown]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// `delay`: from the moment `/readyz` turns to the one the listeners close.
    pub delay: Duration,
    /// `drain_timeout`
    pub drain_timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::ZERO, drain_timeout: Duration::from_secs(30) }
    }
}
