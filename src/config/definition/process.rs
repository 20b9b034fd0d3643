//! The tables about the process as a whole: limits, logs, admin, lifetime.

use std::net::SocketAddr;

use crate::config::kind::{Choice, File, Flag, Size, address, count, duration, duration_or_off, number, string};
use crate::config::settings::{
    AccessLog, AccessLogDetail, AccessLogOutput, Admin, Limits, Log, LogFormat, LoginThrottle, Shutdown,
};
use crate::config::table::Table;
use crate::config::value;

pub(super) fn limits(t: &mut Table<'_, '_, '_>) -> (Limits, LoginThrottle) {
    let limits = t.table("limits", "What one client, and all of them together, may use.", limits_table);
    let login_throttle =
        t.table("login_throttle", "When failed logins are answered here, before they lock an account.", |t| {
            let throttle = LoginThrottle {
                failures_per_name: t
                    .key(
                        "failures_per_name",
                        "Failed binds of one name, not of one account, within the window; off if left out.",
                    )
                    .optional(number(1..=1_000_000)),
                failures_per_address: t
                    .key("failures_per_address", "Failed binds from one address within the window; off if left out.")
                    .optional(number(1..=1_000_000)),
                window: t
                    .key("window", "How long a failure counts.")
                    .default(duration(), LoginThrottle::default().window),
            };
            if throttle.failures_per_name.is_none() && throttle.failures_per_address.is_none() && t.has("window") {
                // Written at its default it is documentation, as in config/full.toml.
                if throttle.window != LoginThrottle::default().window {
                    t.no_effect("window", "`failures_per_name` or `failures_per_address`");
                }
            }
            throttle
        });
    (limits, login_throttle)
}

fn limits_table(t: &mut Table<'_, '_, '_>) -> Limits {
    let default = Limits::default();
    let off = |duration: std::time::Duration| (!duration.is_zero()).then_some(duration);
    let mut limits = Limits {
        max_connections: t
            .key("max_connections", "Clients at once.")
            .default(number(1..=1_000_000), default.max_connections),
        connections_per_address: t
            .key("connections_per_address", "Clients at once from one address (IPv6: /64); 0 is off.")
            .default(count(), default.connections_per_address),
        connection_rate_per_address: t
            .key("connection_rate_per_address", "New clients a second from one address; 0 is off.")
            .default(count(), default.connection_rate_per_address),
        handshakes: t
            .key("handshakes", "TLS handshakes being computed at once; others wait.")
            .default(number(1..=1_000_000), default.handshakes),
        handshake_timeout: t
            .key("handshake_timeout", "From the first byte to the end of the handshake.")
            .default(duration(), default.handshake_timeout),
        first_request_timeout: t
            .key("first_request_timeout", "From there to the first request.")
            .default(duration(), default.first_request_timeout),
        request_timeout: t
            .key("request_timeout", "From a request's first byte to its last.")
            .default(duration(), default.request_timeout),
        idle_timeout: t
            .key("idle_timeout", "A client that says nothing, with nothing in flight or its side closed.")
            .default(duration(), default.idle_timeout),
        write_timeout: t
            .key("write_timeout", "A peer that takes nothing we have for it.")
            .default(duration(), default.write_timeout),
        request_size_anonymous: t
            .key("request_size_anonymous", "A request before the bind.")
            .default(Size(1024), default.request_size_anonymous),
        search_size: t.key("search_size", "A search request.").default(Size(1024), default.search_size),
        request_size: t.key("request_size", "Any other request.").default(Size(1024), default.request_size),
        filter_depth: t
            .key("filter_depth", "Nesting of a search filter.")
            .default(number(1..=10_000), default.filter_depth),
        operations_in_flight: t
            .key("operations_in_flight", "Unanswered requests of one client.")
            .default(number(1..=100_000), default.operations_in_flight),
        operation_timeout: off(t
            .key("operation_timeout", "A request without a final answer; \"0s\" is off.")
            .default(duration_or_off(), default.operation_timeout.unwrap_or_default())),
        buffer_memory: t
            .key("buffer_memory", "What all buffers together may hold.")
            .default(Size(1 << 20), default.buffer_memory),
    };
    for (name, size) in
        [("request_size_anonymous", &mut limits.request_size_anonymous), ("search_size", &mut limits.search_size)]
    {
        if t.has(name) && *size > limits.request_size {
            t.error(name, format!("more than `request_size` ({})", value::show_size(limits.request_size as u64)), "");
        }
        *size = (*size).min(limits.request_size);
    }
    if limits.request_size > limits.buffer_memory {
        let key = if t.has("request_size") { "request_size" } else { "buffer_memory" };
        t.error(key, "`request_size` is more than `buffer_memory`: such a request could never be read", "");
    }
    limits
}

pub(super) fn logs(t: &mut Table<'_, '_, '_>) -> (AccessLog, Log) {
    let access_log = t.table("access_log", "Who asked what, and what came of it.", |t| {
        let default = AccessLog::default();
        AccessLog {
            output: access_log_output(t),
            format: t.key("format", "For programs or for people.").default(Choice(FORMATS), default.format),
            detail: t
                .key("detail", "A line for each operation and session, or for each session only.")
                .default(Choice(DETAILS), default.detail),
            redact_filters: t
                .key("redact_filters", "Leave out the values in search filters.")
                .default(Flag, default.redact_filters),
            sample: t
                .key("sample", "Of operations that neither failed nor were slow, tell one in this many; 0 is none.")
                .default(number(0..=1_000_000), default.sample),
            slower_than: Some(
                t.key("slower_than", "Operations that take longer are slow, and always told; \"0s\" is off.")
                    .default(duration_or_off(), default.slower_than.unwrap_or_default()),
            )
            .filter(|slow| !slow.is_zero()),
        }
    });
    let log = t.table("log", "What the proxy says of itself, on standard error.", |t| {
        let default = Log::default();
        Log {
            level: t
                .key("level", "error, warn, info, debug or trace; also \"info,ldaps_proxy::health=debug\".")
                .default(string("a level such as \"info\"", value::log_level), default.level),
            format: t.key("format", "For people or for programs.").default(Choice(FORMATS), default.format),
        }
    });
    (access_log, log)
}

fn access_log_output(t: &mut Table<'_, '_, '_>) -> AccessLogOutput {
    /// The words of the key, before the path that goes with one of them is known.
    #[derive(Clone, Copy, PartialEq)]
    enum Output {
        Off,
        Stdout,
        File,
        Journald,
    }
    const OUTPUTS: &[(&str, Output)] =
        &[("off", Output::Off), ("stdout", Output::Stdout), ("file", Output::File), ("journald", Output::Journald)];

    let output = t.key("output", "Where it goes.").default(Choice(OUTPUTS), Output::Off);
    let path = t.key("path", "The file; SIGUSR1 opens it again.").optional(File);
    if output != Output::File {
        t.no_effect("path", "output = \"file\"");
    } else if !t.has("path") {
        t.missing("path", "output = \"file\" needs it");
    }
    match output {
        Output::Off => AccessLogOutput::Off,
        Output::Stdout => AccessLogOutput::Stdout,
        Output::Journald => AccessLogOutput::Journald,
        // Without a path the file is wrong already, and what stands here is never used.
        Output::File => path.map_or(AccessLogOutput::Off, AccessLogOutput::File),
    }
}

pub(super) fn admin(t: &mut Table<'_, '_, '_>) -> (Admin, Option<SocketAddr>) {
    let admin = t.table("admin", "Metrics, status page, control.", |t| {
        let admin = Admin {
            address: t.key("address", "IP address and port for HTTP; none if left out.").optional(address()),
            socket: t.key("socket", "Unix socket, which may change state; none if left out.").optional(File),
            token_file: t.key("token_file", "A bearer token with which TCP may change state too.").optional(File),
        };
        if admin.address.is_none() {
            t.no_effect("token_file", "`address`");
        }
        admin
    });
    let health_address = t.table("health", "Only /healthz and /readyz, for load balancers and kubelets.", |t| {
        t.key("address", "IP address and port; none if left out.").optional(address())
    });
    (admin, health_address)
}

/// `[shutdown]`, `[trust]` and `[runtime]`.
pub(super) fn lifetime(t: &mut Table<'_, '_, '_>) -> (Shutdown, bool, Option<usize>) {
    let shutdown = t.table("shutdown", "How it stops.", |t| Shutdown {
        delay: t
            .key("delay", "Newcomers are served this long once /readyz has turned, so that balancers notice.")
            .default(duration_or_off(), Shutdown::default().delay),
        drain_timeout: t
            .key("drain_timeout", "How long clients may finish what they began.")
            .default(duration_or_off(), Shutdown::default().drain_timeout),
    });
    let end_untrusted_sessions = t.table("trust", "What a reload does to clients that are here.", |t| {
        t.key("end_sessions", "End the sessions of those no longer trusted.").default(Flag, false)
    });
    let workers = t.table("runtime", "Threads.", |t| {
        t.key("workers", "How many serve clients; the number of cores if left out.").optional(number(1..=1024))
    });
    (shutdown, end_untrusted_sessions, workers)
}

const FORMATS: &[(&str, LogFormat)] = &[("json", LogFormat::Json), ("text", LogFormat::Text)];

const DETAILS: &[(&str, AccessLogDetail)] =
    &[("operations", AccessLogDetail::Operations), ("sessions", AccessLogDetail::Sessions)];
