//! A named set of backends: their states, and which one serves next.

mod backend;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::{Instant, timeout_at};

pub use backend::{Backend, Duty, Event, EventKind, Health, Seat};

use crate::balance::{self, Draw};
use crate::config;
use crate::upstream::{Connector, Upstream};

/// A named set of backends.
pub struct Pool {
    settings: Arc<config::Pool>,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    policy: Box<dyn balance::Policy>,
    connector: Connector,
}

/// No backend could be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoBackend {
    /// What was tried and what came of it, for logs.
    pub attempts: Vec<(String, String)>,
}

impl Pool {
    /// A pool without backends yet: discovery and `app` set them.
    pub fn new(settings: Arc<config::Pool>, connector: Connector) -> Self {
        let policy = balance::policy(settings.balance);
        Self { settings, backends: ArcSwap::default(), policy, connector }
    }

    /// `[pools.NAME]`
    pub fn settings(&self) -> &Arc<config::Pool> {
        &self.settings
    }

    /// The backends known now, in configuration order.
    pub fn backends(&self) -> Arc<Vec<Arc<Backend>>> {
        self.backends.load_full()
    }

    /// The backend of this name (`host:port`).
    pub fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        self.backends().iter().find(|backend| backend.name() == name).cloned()
    }

    /// Replaces the set of backends. Sessions on a backend that is gone keep it until they end.
    pub fn set_backends(&self, backends: Vec<Arc<Backend>>) {
        self.backends.store(Arc::new(backends));
    }

    /// How connections are opened, for probes.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Opens an upstream for `client`: the best backend first, then the next, each at most once, until the connect
    /// budget is used up. Backends that are down are tried last, drained and disabled ones never. `lost` is the backend
    /// that has just failed this session, tried after its equals.
    pub async fn connect(&self, client: SocketAddr, lost: Option<Arc<Backend>>) -> Result<Upstream, NoBackend> {
        let deadline = Instant::now() + self.settings.connect_budget;
        let backends = self.backends();
        let mut untried: Vec<_> = backends.iter().filter(|backend| backend.duty() == Duty::Enabled).collect();
        let mut attempts = Vec::new();
        while let Some(backend) = self.choose(&mut untried, client, lost.as_ref()) {
            let seat = backend.occupy();
            let started = Instant::now();
            let attempt = (started + self.settings.connect_timeout).min(deadline);
            let failure = match timeout_at(attempt, self.connector.open(backend, client)).await {
                Ok(Ok(stream)) => {
                    backend.report(client.ip(), EventKind::Connected(started.elapsed()));
                    return Ok(Upstream::new(stream, seat));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection within {:?}", attempt - started),
            };
            backend.report(client.ip(), EventKind::ConnectFailed);
            attempts.push((backend.name().to_owned(), failure));
            if self.settings.failover.mode == config::FailoverMode::None || Instant::now() >= deadline {
                break;
            }
        }
        Err(NoBackend { attempts })
    }

    /// Takes the next backend to try out of `untried`.
    fn choose<'a>(
        &self,
        untried: &mut Vec<&'a Arc<Backend>>,
        client: SocketAddr,
        lost: Option<&Arc<Backend>>,
    ) -> Option<&'a Arc<Backend>> {
        let rank = |backend: &Arc<Backend>| {
            let health = match backend.health() {
                Health::Unknown | Health::Up => 0,
                Health::Degraded => 1,
                Health::Down => 2,
            };
            (health, lost.is_some_and(|lost| Arc::ptr_eq(lost, backend)), backend.tier())
        };
        let best = untried.iter().map(|backend| rank(backend)).min()?;
        let eligible: Vec<_> = (0..untried.len()).filter(|&index| rank(untried[index]) == best).collect();
        let candidates: Vec<_> = eligible.iter().map(|&index| untried[index].candidate()).collect();
        let draw = Draw { client: client.ip(), random: fastrand::u64(..) };
        Some(untried.remove(eligible[self.policy.choose(&candidates, draw)]))
    }
}
