//! `[pools.NAME]`: backends, health, failover, discovery.

use std::path::Path;

use ldap3_proto::parse_ldap_filter_str;
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use crate::config::diagnostic::Source;
use crate::config::kind::{
    Choice, File, Flag, Kind, Pairs, Text, Written, count, duration, duration_or_off, list, number, string, text,
};
use crate::config::reading::Reading;
use crate::config::settings::{
    BackendAddress, BackendProtocol, BackendSource, Balance, Discovery, Failover, FailoverMode, Health, Pool, Probe,
    ProbeKind,
};
use crate::config::table::Table;
use crate::config::value::{self, Refusal};

pub(super) fn pool(pool_name: &str, t: &mut Table<'_, '_, '_>) -> Option<Pool> {
    let default = Pool::new(pool_name, Vec::new());
    let protocol = t.key("protocol", "How to speak to the backends.").default(Choice(PROTOCOLS), default.protocol);
    let default_port = if protocol == BackendProtocol::Ldaps { 636 } else { 389 };
    let backends = t
        .key("backends", "Addresses, host names, \"srv:NAME\", or tables.")
        .required(list(Backend { default_port }).of_distinct());
    let balance = t.key("balance", "How a backend is chosen for a session.").default(Choice(BALANCES), default.balance);
    let connect_timeout =
        t.key("connect_timeout", "One attempt to connect.").default(duration(), default.connect_timeout);
    let connect_budget =
        t.key("connect_budget", "All attempts for one request.").default(duration(), default.connect_budget);
    let ca_file =
        t.key("ca_file", "PEM: who signs the backends' certificates; the system's roots if left out.").optional(File);
    let server_name = t
        .key("server_name", "The name the backends' certificates carry, if not that of `backends`.")
        .optional(string("a host name", value::server_name));
    let send_proxy_protocol = t
        .key("send_proxy_protocol", "Tell the backends the client's address; Samba can't take it.")
        .default(Flag, default.send_proxy_protocol);
    let warm = t.key("warm", "Unused connections kept open to each backend.").default(number(0..=1000), default.warm);
    let queue = t
        .key("queue", "Requests that may wait while every backend is at its `max_sessions`.")
        .default(count(), default.queue);
    let queue_timeout = t.key("queue_timeout", "How long they may wait.").default(duration(), default.queue_timeout);
    let rebalance =
        t.key("rebalance", "Move idle sessions to a backend that has come back.").default(Flag, default.rebalance);
    let health = t.table("health", "How backends are asked whether they are well.", health);
    let failover = t.table("failover", "What happens to a session whose backend is lost.", failover);
    let discovery = t.table("discovery", "How names in `backends` are resolved.", discovery);

    if let Err(Refusal { message, help }) = pool_name_rule(pool_name) {
        let path = t.path().to_owned();
        t.report_at(&path, crate::config::Severity::Error, message, help.unwrap_or_default());
    }
    if connect_timeout > connect_budget {
        t.warn("connect_timeout", "longer than `connect_budget`, which ends it", "");
    }
    if protocol == BackendProtocol::Ldap {
        t.no_effect("ca_file", "protocol = \"ldaps\" or \"starttls\"");
        t.no_effect("server_name", "protocol = \"ldaps\" or \"starttls\"");
    }
    Some(Pool {
        backends: backends?,
        balance,
        connect_timeout,
        connect_budget,
        protocol,
        ca_file,
        server_name,
        send_proxy_protocol,
        warm,
        queue,
        queue_timeout,
        rebalance,
        health,
        failover,
        discovery,
        ..default
    })
}

/// The name of a pool, a label of metrics and a part of `pool/host:port`.
pub(super) fn name() -> Text<String> {
    string("the name of a pool", pool_name_rule)
}

fn pool_name_rule(text: &str) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !text.is_empty() && text.bytes().all(allowed) {
        return Ok(text.into());
    }
    let help = Some("letters, digits, hyphens and underscores".into());
    Err(Refusal { message: "not the name of a pool".into(), help })
}

/// An element of `backends`: an address, or a table with one.
struct Backend {
    default_port: u16,
}

impl Kind for Backend {
    type Value = BackendSource;

    fn read(&self, path: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<BackendSource> {
        match written.get_ref() {
            DeValue::Table(entries) => {
                // The list is one setting; what its tables say is part of it.
                let settings = std::mem::take(&mut reading.settings);
                let backend = Table::element(reading, path, Some(entries), |t| self.table(t)).0;
                reading.settings = settings;
                backend
            }
            DeValue::String(_) => {
                let address = self.address().read(path, written, reading)?;
                Some(BackendSource { address, weight: 1, tier: 0, max_sessions: 0 })
            }
            _ => reading.mismatch(written, "an address such as \"10.0.1.10:389\", or a table with one"),
        }
    }

    fn schema(&self) -> Json {
        let nothing = Source { file: Default::default(), text: String::new() };
        let mut reading = Reading::new(&nothing, Path::new(""), None);
        let (_, table) = Table::element(&mut reading, "", None, |t| self.table(t));
        json!({ "anyOf": [self.address().schema(), table] })
    }

    fn show(&self, backend: &BackendSource) -> Json {
        let BackendSource { address, weight, tier, max_sessions } = backend;
        let address = value::show_backend_address(address);
        match (weight, tier, max_sessions) {
            (1, 0, 0) => json!(address),
            _ => json!({ "address": address, "weight": weight, "tier": tier, "max_sessions": max_sessions }),
        }
    }

    fn identity(&self, backend: &BackendSource) -> Json {
        json!(value::show_backend_address(&backend.address))
    }
}

impl Backend {
    fn table(&self, t: &mut Table<'_, '_, '_>) -> Option<BackendSource> {
        let address = t.key("address", "Where it is.").required(self.address());
        let weight = t.key("weight", "Its share beside the others.").default(number(1..=1000), 1);
        let tier = t.key("tier", "Only the lowest tier with a usable backend serves.").default(number(0..=1000), 0);
        let max_sessions = t.key("max_sessions", "The most sessions it takes; 0 is no bound.").default(count(), 0);
        Some(BackendSource { address: address?, weight, tier, max_sessions })
    }

    fn address(&self) -> Text<BackendAddress> {
        let default_port = self.default_port;
        let parse = move |text: &str| value::backend_address(text, default_port);
        text("an address such as \"10.0.1.10:389\"", parse, value::show_backend_address)
    }
}

fn health(t: &mut Table<'_, '_, '_>) -> Health {
    let default = Health::default();
    Health {
        cheap: probe(t, default.cheap),
        deep: t.optional_table("deep", "A second, thorough and rarer probe.", |t| probe(t, Probe::deep())),
        panic_mode: t.key("panic_mode", "When no backend is well, use them all.").default(Flag, default.panic_mode),
    }
}

fn probe(t: &mut Table<'_, '_, '_>, default: Probe) -> Probe {
    let probe = Probe {
        kind: t
            .key("probe", "tcp: connect; rootdse: read it; bind: the account's login; search: for entries.")
            .default(Choice(PROBES), default.kind),
        interval: t.key("interval", "From one probe to the next.").default(duration(), default.interval),
        timeout: t.key("timeout", "How long an answer may take.").default(duration(), default.timeout),
        rise: t.key("rise", "Passes in a row that bring a backend up.").default(number(1..=100), default.rise),
        fall: t.key("fall", "Failures in a row that take it down.").default(number(1..=100), default.fall),
        expect: t
            .key("expect", "Attributes of the rootDSE and the value each must have.")
            .default(Pairs, default.expect),
        bind_name: t.key("bind_name", "The account to bind as.").optional(crate::config::kind::name()),
        password_file: t.key("password_file", "A file with its password.").optional(File),
        base: t
            .key("base", "Where to search.")
            .default(string("a distinguished name", value::distinguished_name), default.base),
        filter: t.key("filter", "What to search for.").default(string("a filter", value::filter), default.filter),
        min_entries: t
            .key("min_entries", "The fewest entries a search must find.")
            .default(count(), default.min_entries),
        max_latency: t.key("max_latency", "A slower pass counts as degraded.").optional(duration()),
    };
    let account = [("bind_name", "password_file"), ("password_file", "bind_name")];
    for (one, other) in account {
        if t.has(one) && !t.has(other) {
            t.missing(other, &format!("`{one}` is of no use without it"));
        }
    }
    if probe.kind == ProbeKind::Bind && !t.has("bind_name") && !t.has("password_file") {
        t.missing("bind_name", "probe \"bind\" needs bind_name and password_file");
    }
    if probe.kind == ProbeKind::Search && !t.has("base") {
        t.missing("base", "probe \"search\" needs a place to search, such as \"DC=corp,DC=example,DC=com\"");
    }
    if probe.kind == ProbeKind::Search && parse_ldap_filter_str(&probe.filter).is_err() {
        let help = "(ATTRIBUTE=VALUE), with plain names of attributes, alone or within (&…), (|…) and (!…)";
        t.warn("filter", "this filter can't be read, so the search is never asked", help);
    }
    if matches!(probe.kind, ProbeKind::RootDse | ProbeKind::Tcp) {
        t.no_effect("bind_name", "probe = \"bind\" or \"search\"");
    }
    if probe.kind != ProbeKind::RootDse && !probe.expect.is_empty() {
        t.no_effect("expect", "probe = \"rootdse\"");
    }
    if probe.max_latency.is_some_and(|latency| latency >= probe.timeout) {
        t.warn("max_latency", "not shorter than `timeout`: a probe that slow has failed", "");
    }
    probe
}

fn failover(t: &mut Table<'_, '_, '_>) -> Failover {
    let default = Failover::default();
    Failover {
        mode: t
            .key("mode", "session: it goes on elsewhere; connect: only connecting tries several; none: one try.")
            .default(Choice(FAILOVER_MODES), default.mode),
        replay_bind: t
            .key("replay_bind", "Bind again on the next backend with the client's own password.")
            .default(Flag, default.replay_bind),
        replay_max_age: t
            .key("replay_max_age", "How long that password is remembered.")
            .default(duration(), default.replay_max_age),
        write_affinity: t
            .key("write_affinity", "How long after a write a session won't change its backend; \"0s\" is off.")
            .default(duration_or_off(), default.write_affinity),
    }
}

fn discovery(t: &mut Table<'_, '_, '_>) -> Discovery {
    let default = Discovery::default();
    let name_servers = t.key("name_servers", "DNS servers to ask; the system's if empty.").default(
        list(text("the address of a DNS server", value::name_server, ToString::to_string)),
        default.name_servers,
    );
    let min_ttl = t.key("min_ttl", "Answers are kept at least so long.").default(duration(), default.min_ttl);
    let max_ttl = t.key("max_ttl", "Answers are kept at most so long.").default(duration(), default.max_ttl);
    if min_ttl > max_ttl {
        let [min, max] = [min_ttl, max_ttl].map(|ttl| value::show_duration(&ttl));
        let key = if t.has("min_ttl") { "min_ttl" } else { "max_ttl" };
        t.error(key, format!("min_ttl ({min}) is longer than max_ttl ({max})"), "");
    }
    Discovery { name_servers, min_ttl, max_ttl }
}

const PROTOCOLS: &[(&str, BackendProtocol)] =
    &[("ldap", BackendProtocol::Ldap), ("ldaps", BackendProtocol::Ldaps), ("starttls", BackendProtocol::StartTls)];

const BALANCES: &[(&str, Balance)] = &[
    ("least-connections", Balance::LeastConnections),
    ("round-robin", Balance::RoundRobin),
    ("first-available", Balance::FirstAvailable),
    ("source-hash", Balance::SourceHash),
    ("power-of-two", Balance::PowerOfTwo),
];

const PROBES: &[(&str, ProbeKind)] = &[
    (ProbeKind::RootDse.as_str(), ProbeKind::RootDse),
    (ProbeKind::Tcp.as_str(), ProbeKind::Tcp),
    (ProbeKind::Bind.as_str(), ProbeKind::Bind),
    (ProbeKind::Search.as_str(), ProbeKind::Search),
];

const FAILOVER_MODES: &[(&str, FailoverMode)] =
    &[("session", FailoverMode::Session), ("connect", FailoverMode::Connect), ("none", FailoverMode::None)];
