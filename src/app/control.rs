//! The admin side's view of the proxy.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Proxy, State};
use crate::admin::model::{self, BackendState, Snapshot};
use crate::admin::{Control, NotFound, Reloading};
use crate::config::ListenerProtocol;
use crate::pool::{Backend, Duty, Health, Pool, ProbeRecord};
use crate::session::Command;

/// What the admin side may do, for the running proxy.
pub(super) struct Controller(pub Arc<Proxy>);

impl Control for Controller {
    fn snapshot(&self) -> Snapshot {
        let proxy = &self.0;
        let state = proxy.state();
        let sessions = proxy.registry.sessions();
        let listeners = state.config.listeners.iter().filter_map(|settings| {
            let running = state.parts.listeners.get(&settings.name)?;
            Some(model::Listener {
                name: settings.name.clone(),
                address: running.address.to_string(),
                protocol: match settings.protocol {
                    ListenerProtocol::Ldaps => "ldaps".to_owned(),
                    ListenerProtocol::Ldap => "ldap".to_owned(),
                },
                pool: settings.pool.clone(),
                sessions: sessions
                    .iter()
                    .filter_map(|session| state.parts.listener_of(session))
                    .filter(|listener| std::ptr::eq(*listener, running))
                    .count(),
            })
        });
        let backends = state.parts.pools.iter().flat_map(|(pool, running)| {
            running.pool.backends().iter().map(|backend| show_backend(pool, backend)).collect::<Vec<_>>()
        });
        let certificates = state.parts.tls.certificates();
        Snapshot {
            started: unix(proxy.started),
            draining: proxy.leaving.is_cancelled(),
            not_ready: proxy.not_ready(&state),
            listeners: listeners.collect(),
            backends: backends.collect(),
            certificates: certificates
                .into_iter()
                .map(|certificate| model::Certificate {
                    name: certificate.name,
                    subject: certificate.subject,
                    names: certificate.sans,
                    issuer: certificate.issuer,
                    not_after: certificate.not_after.as_secs(),
                    key: certificate.key_type,
                    fingerprint: certificate.fingerprint,
                })
                .collect(),
            last_reload: state.reloads.shown().cloned(),
            recent_failures: proxy
                .metrics
                .failures
                .newest()
                .into_iter()
                .map(|failure| model::Failure {
                    at: unix(failure.at),
                    reason: failure.reason.to_owned(),
                    subject: failure.subject,
                    detail: failure.detail,
                    count: failure.count,
                })
                .collect(),
        }
    }

    fn sessions(&self) -> Vec<model::Session> {
        let sessions = self.0.registry.sessions();
        sessions
            .iter()
            .map(|session| {
                let facts = session.facts();
                model::Session {
                    id: session.id,
                    client: session.client.to_string(),
                    listener: session.listener.to_string(),
                    tls: facts.tls.map(|tls| tls.version.to_owned()),
                    bind_name: facts.bind_name.map(Into::into),
                    backend: facts.backend.map(|backend| backend.name().to_owned()),
                    started: unix(session.started),
                    tunnel: facts.tunnel,
                    operations: session.operations.load(Ordering::Relaxed),
                    in_flight: session.in_flight.load(Ordering::Relaxed),
                    received: session.received.load(Ordering::Relaxed),
                    sent: session.sent.load(Ordering::Relaxed),
                }
            })
            .collect()
    }

    fn drain(&self, name: &str) -> Result<(), NotFound> {
        // Held, so that no reload takes over what was asked before while this is being asked.
        let state = self.0.state();
        for (pool, backend) in find_backends(&state, name)? {
            pool.drain(backend.name());
            tracing::info!(pool = pool.settings().name, backend = backend.name(), "draining");
            self.0.registry.command_on(&backend, Command::Move);
        }
        Ok(())
    }

    fn enable(&self, name: &str) -> Result<(), NotFound> {
        // Held, so that no reload takes over what was asked before while this is being asked.
        let state = self.0.state();
        let mut is_known = false;
        for (pool, address) in find_places(&state, name) {
            if pool.enable_at(address) {
                is_known = true;
                tracing::info!(pool = pool.settings().name, backend = %address, "enabled");
            }
        }
        if is_known { Ok(()) } else { Err(NotFound) }
    }

    fn kill(&self, session: u64) -> Result<(), NotFound> {
        self.0.registry.find(session).ok_or(NotFound)?.command(Command::Kill);
        Ok(())
    }

    fn reload(&self) -> Reloading<'_> {
        Box::pin(self.0.reload_all())
    }

    fn log_level(&self, filter: &str) -> Result<(), String> {
        self.0.log.set_level(filter)
    }
}

/// How a running proxy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitals {
    /// Whether everything runs that must: if not, only a restart helps.
    pub alive: bool,
    /// A line for people.
    pub status: String,
}

/// A backend and its pool.
type Place = (Arc<Pool>, Arc<Backend>);

impl Proxy {
    /// How many sessions there are.
    pub fn session_count(&self) -> usize {
        self.registry.len()
    }

    /// How it goes, for who supervises the process.
    pub fn vitals(&self) -> Vitals {
        let sessions = self.registry.len();
        let state = self.state();
        if self.leaving.is_cancelled() {
            return Vitals { alive: true, status: format!("draining, {sessions} sessions left") };
        }
        let pools = state.parts.pools.iter().map(|(name, running)| {
            let backends = running.pool.backends();
            let up = backends.iter().filter(|backend| backend.is_usable()).count();
            format!("{name}: {up} of {} backends up", backends.len())
        });
        let status = pools.chain([format!("{sessions} sessions")]).collect::<Vec<_>>().join("; ");
        let deaf = state.parts.listeners.iter().find(|(_, listener)| listener.accepting.is_finished());
        match deaf {
            Some((name, _)) => {
                Vitals { alive: false, status: format!("listener {name} has stopped accepting; {status}") }
            }
            None => Vitals { alive: true, status },
        }
    }

    /// Why this copy should get no new connections; empty if it should.
    fn not_ready(&self, state: &State) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.leaving.is_cancelled() {
            reasons.push("draining".to_owned());
        }
        if state.parts.listeners.is_empty() {
            reasons.push("no listener is up".to_owned());
        }
        // One that serves goes on where others can't: all copies see the same outage, and if all turned away, nobody would.
        let served: BTreeSet<_> = state.parts.listeners.values().map(|listener| &listener.settings.pool).collect();
        if !served.iter().any(|&name| state.parts.pools[name].pool.is_usable()) {
            reasons.extend(served.iter().map(|name| format!("pool {name} has no usable backend")));
        }
        reasons
    }
}

/// The backends called `host:port` in any pool, or `pool/host:port` in that one.
fn find_backends(state: &State, name: &str) -> Result<Vec<Place>, NotFound> {
    let backend = |(pool, address): (&Arc<Pool>, _)| Some((Arc::clone(pool), pool.backend_at(address)?));
    let found: Vec<_> = find_places(state, name).filter_map(backend).collect();
    if found.is_empty() { Err(NotFound) } else { Ok(found) }
}

/// Where a backend of this name is, or would be.
fn find_places<'a>(state: &'a State, name: &'a str) -> impl Iterator<Item = (&'a Arc<Pool>, SocketAddr)> {
    state.parts.pools.iter().filter_map(move |(pool, running)| {
        let own = name.strip_prefix(pool).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
        Some((&running.pool, own.parse().ok()?))
    })
}

fn show_backend(pool: &str, backend: &Arc<Backend>) -> model::Backend {
    let account = backend.account();
    model::Backend {
        name: backend.name().to_owned(),
        pool: pool.to_owned(),
        host: backend.host().to_owned(),
        state: match (backend.duty(), backend.health()) {
            (Duty::Draining, _) => BackendState::Draining,
            (Duty::Disabled, _) => BackendState::Disabled,
            (Duty::Enabled, Health::Unknown) => BackendState::Unknown,
            (Duty::Enabled, Health::Up) => BackendState::Up,
            (Duty::Enabled, Health::Degraded) => BackendState::Degraded,
            (Duty::Enabled, Health::Down) => BackendState::Down,
        },
        weight: backend.weight(),
        tier: backend.tier(),
        sessions: backend.sessions(),
        operations_in_flight: backend.metrics().in_flight(),
        reason: account.reason,
        since: unix(account.since),
        probes: account.probes.iter().map(show_probe).collect(),
    }
}

fn show_probe(probe: &ProbeRecord) -> model::Probe {
    model::Probe {
        at: unix(probe.at),
        kind: probe.kind.as_str().to_owned(),
        milliseconds: probe.duration.as_secs_f64() * 1000.0,
        failure: probe.failure.clone(),
    }
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::log::LogHandle;

    const CONFIG: &str = "[[listener]]\nname = \"corp\"\naddress = \"127.0.0.1:0\"\nprotocol = \"ldap\"\n\
        trusted_networks = [\"127.0.0.1/32\"]\npool = \"p\"\n[pools.p]\nbackends = [\"127.0.0.1:1\"]";

    /// A regression test: whoever had drained a backend that DNS then lost couldn't take it back before it was there again.
    #[tokio::test]
    async fn a_backend_that_dns_has_lost_can_be_enabled() {
        let config = config::parse(CONFIG, Path::new("test.toml")).expect("the file is right").config;
        let proxy = Proxy::start_without_file(config, LogHandle::of_no_log()).await.expect("it starts");
        let pool = Arc::clone(&proxy.state().parts.pools["p"].pool);
        let controller = Controller(Arc::clone(&proxy));
        let endpoint = crate::pool::Endpoint {
            address: ([127, 0, 0, 1], 1).into(),
            host: "127.0.0.1".to_owned(),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        };
        for name in ["127.0.0.1:1", "p/127.0.0.1:1"] {
            assert!(controller.drain(name).is_ok());
            pool.admit(&[]);
            assert!(controller.enable("127.0.0.1:2").is_err() && controller.enable("q/127.0.0.1:1").is_err());
            assert!(controller.enable(name).is_ok());
            assert!(controller.enable(name).is_err(), "nothing is left to be taken back");
            pool.admit(std::slice::from_ref(&endpoint));
            assert_eq!(pool.backends()[0].duty(), Duty::Enabled);
        }
        proxy.drain(std::future::ready(())).await;
    }

    #[tokio::test]
    async fn a_listener_that_has_stopped_accepting_is_no_life() {
        let config = config::parse(CONFIG, Path::new("test.toml")).expect("the file is right").config;
        let proxy = Proxy::start_without_file(config, LogHandle::of_no_log()).await.expect("it starts");
        assert!(proxy.vitals().alive);

        let accepting = proxy.state().parts.listeners["corp"].accepting.clone();
        accepting.abort();
        while !accepting.is_finished() {
            tokio::task::yield_now().await;
        }
        let Vitals { alive, status } = proxy.vitals();
        assert!(!alive);
        assert!(status.starts_with("listener corp has stopped accepting; p: "), "{status}");

        proxy.drain(std::future::ready(())).await;
        assert_eq!(proxy.vitals(), Vitals { alive: true, status: "draining, 0 sessions left".to_owned() });
    }
}
