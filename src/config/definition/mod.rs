//! What a configuration file may say: every key with its meaning, kind and default, and the rules between keys.
//!
//! The functions here are the one definition that the parser, the suggestions for unknown keys, the JSON Schema and
//! `config/full.toml` are made or checked from. One function a table, one line a key.

mod listener;
mod pool;
mod process;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use super::diagnostic::Severity;
use super::settings::{BackendAddress, Config, Listener, Pool};
use super::table::Table;
use listener::Surroundings;

/// The whole file; `None` once what is missing has been reported.
pub(super) fn config(t: &mut Table<'_, '_, '_>) -> Option<Config> {
    let tls = t.optional_table("tls", "The certificate and TLS settings of every listener without its own.", tls::tls);
    let pools = t.named_tables("pools", "Sets of equal backends.", pool::pool);
    let surroundings = Surroundings { tls: tls.map(|tls| tls.map(Arc::new)), pools: pools.keys().cloned().collect() };
    let listeners = t.tables("listener", "An address that takes clients.", |t| listener::listener(t, &surroundings));
    let (limits, login_throttle) = process::limits(t);
    let (access_log, log) = process::logs(t);
    let (admin, health_address) = process::admin(t);
    let (shutdown, end_untrusted_sessions, workers) = process::lifetime(t);

    t.demand("listener", "[[listener]] with address, trusted_networks and pool");
    t.demand("pools", "[pools.NAME] with backends");
    let config = Config {
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        pools: pools.into_iter().map(|(name, pool)| Some((name, Arc::new(pool?)))).collect::<Option<_>>()?,
        limits,
        login_throttle,
        access_log,
        log,
        admin,
        health_address,
        shutdown,
        end_untrusted_sessions,
        workers,
    };
    one_of_each_address(t, &config);
    one_of_each_name(t, &config.listeners);
    for pool in config.pools.values() {
        serves_a_listener(t, pool, &config);
    }
    if let Some(shared @ Some(_)) = &surroundings.tls
        && !config.listeners.iter().any(|listener| listener.tls == *shared)
    {
        t.warn("tls", "no listener uses this table", "every listener has a table of its own");
    }
    Some(config)
}

/// Nothing can listen twice on one address, except on port 0, which is a new port each time.
fn one_of_each_address(t: &mut Table<'_, '_, '_>, config: &Config) {
    let listeners = config.listeners.iter().enumerate();
    let others = [("admin.address", config.admin.address), ("health.address", config.health_address)];
    let mut seen: Vec<(SocketAddr, String)> = Vec::new();
    for (path, address) in listeners
        .map(|(index, listener)| (format!("listener[{index}].address"), Some(listener.address)))
        .chain(others.map(|(path, address)| (path.into(), address)))
    {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        let other_family = |(other, _): &&(SocketAddr, String)| other.is_ipv4() != address.is_ipv4();
        match seen.iter().filter(|(other, _)| overlap(*other, address)).min_by_key(other_family) {
            Some(taken @ (first, by)) if !other_family(&taken) => {
                let message = if *first == address {
                    format!("{address} is taken by `{by}` already")
                } else {
                    format!("{address} can't be opened beside {first}, which `{by}` has")
                };
                t.report_at(&path, Severity::Error, message, String::new());
            }
            // Not where net.ipv6.bindv6only is set, nor where a socket unit says BindIPv6Only=ipv6-only.
            Some((first, by)) => {
                let message = format!(
                    "{address} can't be opened beside {first}, which `{by}` has, as [::] takes IPv4 clients too"
                );
                let help = "leave the IPv4 address out, unless IPv6 sockets are for IPv6 alone on this system".into();
                t.report_at(&path, Severity::Warning, message, help);
            }
            None => {}
        }
        seen.push((address, path));
    }
}

/// Whether a socket at one address leaves no place for one at the other.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |all: SocketAddr, one: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    one == other || (one.port() == other.port() && (takes(one, other) || takes(other, one)))
}

/// Names are what metrics and logs tell listeners apart by.
fn one_of_each_name(t: &mut Table<'_, '_, '_>, listeners: &[Listener]) {
    for (index, listener) in listeners.iter().enumerate() {
        if listeners[..index].iter().any(|earlier| earlier.name == listener.name) {
            let message = format!("the name \"{}\" is another listener's already", listener.name);
            t.report_at(
                &format!("listener[{index}].name"),
                Severity::Error,
                message,
                "give each its own `name`".into(),
            );
        }
    }
}

/// A pool should be used, and never by a listener that is its own backend: a client would go round in circles.
fn serves_a_listener(t: &mut Table<'_, '_, '_>, pool: &Pool, Config { listeners, pools, .. }: &Config) {
    let path = format!("pools.{}", pool.name);
    // A listener without a pool may have meant this one: that it is misspelt was said already.
    if listeners.iter().all(|listener| listener.pool != pool.name && pools.contains_key(&listener.pool)) {
        t.report_at(&path, Severity::Warning, "no listener uses this pool".into(), String::new());
    }
    for (index, backend) in pool.backends.iter().enumerate() {
        if listeners.iter().any(|listener| reaches(&backend.address, listener.address)) {
            let message = "this backend is a listener of this very file".into();
            t.report_at(&format!("{path}.backends[{index}]"), Severity::Error, message, String::new());
        }
    }
}

/// Whether connecting to the backend would end at the listener.
fn reaches(backend: &BackendAddress, listener: SocketAddr) -> bool {
    let BackendAddress::Socket(backend) = backend else { return false };
    let every_address = listener.ip().is_unspecified() && backend.ip().is_loopback();
    backend.port() == listener.port() && (backend.ip() == listener.ip() || every_address)
}
