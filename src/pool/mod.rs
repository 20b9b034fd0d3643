//! A named set of backends: their states, and which one serves next.

mod account;
mod address_book;
mod backend;
mod connect;
mod current;
mod names;
mod opening;
mod patience;
mod queue;
#[cfg(test)]
mod tests;
mod warm;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{mpsc, watch};

pub use account::{Account, ProbeRecord};
pub use address_book::AddressBook;
pub use backend::{Backend, Duty, Endpoint, Event, EventKind, Health, Seat, Standing};
pub use connect::{Left, NoBackend, Shortage};
pub use current::CurrentPool;
pub use opening::Opening;
pub use patience::patiently;
pub use warm::keep_warm;

use crate::balance;
use crate::config::{self, BackendAddress};
use crate::metrics::{Metrics, PoolMetrics};
use crate::upstream::Connector;
use backend::{Bells, Life};
use queue::Queue;

/// The backends of a pool at one moment, in configuration order.
pub type Backends = Arc<Vec<Arc<Backend>>>;

/// A named set of backends.
pub struct Pool {
    settings: Arc<config::Pool>,
    backends: watch::Sender<Backends>,
    policy: Box<dyn balance::Policy>,
    connector: Connector,
    queue: Queue,
    bells: Arc<Bells>,
    metrics: Arc<Metrics>,
    pool_metrics: PoolMetrics,
    events: mpsc::Sender<Event>,
    /// What operators have asked: it holds for a backend that DNS loses and finds again.
    duties: Mutex<HashMap<SocketAddr, Duty>>,
    /// Those that sessions are left of: a backend that is found again is the one they are on.
    lives: Mutex<HashMap<SocketAddr, Weak<Life>>>,
    addresses: Arc<AddressBook>,
    names: names::Names,
}

/// What [`Pool::admit`] changed, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admission {
    /// New backends.
    pub added: Vec<String>,
    /// Those that take no new session; the ones they have go on until they end.
    pub removed: Vec<String>,
}

impl Pool {
    /// A pool without backends yet: [`Pool::admit`] brings them. What real traffic meets goes to `events`.
    pub fn new(
        settings: Arc<config::Pool>,
        connector: Connector,
        metrics: Arc<Metrics>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let pool_metrics = metrics.pool(&settings.name);
        let bells = Arc::<Bells>::default();
        Self {
            backends: watch::Sender::default(),
            policy: balance::policy(settings.balance),
            connector,
            queue: Queue::new(settings.queue, settings.queue_timeout, Arc::clone(&bells), pool_metrics.clone()),
            bells,
            metrics,
            pool_metrics,
            events,
            duties: Mutex::default(),
            lives: Mutex::default(),
            addresses: Arc::default(),
            names: names::Names::default(),
            settings,
        }
    }

    /// The same, with its backends named as this book has it, which other pools are in too.
    pub fn among(self, addresses: Arc<AddressBook>) -> Self {
        Self { addresses, ..self }
    }

    /// `[pools.NAME]`
    pub fn settings(&self) -> &Arc<config::Pool> {
        &self.settings
    }

    /// Where the pool's own figures are counted.
    pub fn metrics(&self) -> &PoolMetrics {
        &self.pool_metrics
    }

    /// How connections are opened, for probes.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The backends known now, in configuration order.
    pub fn backends(&self) -> Backends {
        Arc::clone(&self.backends.borrow())
    }

    /// The backends known now and every later set of them.
    pub fn subscribe(&self) -> watch::Receiver<Backends> {
        self.backends.subscribe()
    }

    /// The backend at this address.
    pub fn backend_at(&self, address: SocketAddr) -> Option<Arc<Backend>> {
        self.backends.borrow().iter().find(|backend| backend.address() == address).cloned()
    }

    /// The backend of this name.
    pub fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        self.backends.borrow().iter().find(|backend| backend.name() == name).cloned()
    }

    /// Whether a new session may expect to be served: the question `/readyz` asks. In panic mode any backend will do.
    pub fn is_usable(&self) -> bool {
        self.backends
            .borrow()
            .iter()
            .any(|backend| backend.is_usable() || (self.settings.health.panic_mode && backend.duty() == Duty::Enabled))
    }

    /// Makes `endpoints` the pool's backends. One that is known keeps its state and its sessions. The first set is believed
    /// to work; a backend that comes later is used once it has passed a probe. One that is gone takes no new session; if it
    /// comes back, the sessions it still has are its own again.
    pub fn admit(&self, endpoints: &[Endpoint]) -> Admission {
        self.admit_heirs(endpoints, &[])
    }

    fn admit_heirs(&self, endpoints: &[Endpoint], ancestors: &[Arc<Backend>]) -> Admission {
        let before = self.backends();
        let ancestor_of =
            |endpoint: &Endpoint| ancestors.iter().find(|ancestor| ancestor.address() == endpoint.address);
        // A set that is new as a whole is believed, as at the start: there is nothing better.
        let has_better = !before.is_empty() || endpoints.iter().any(|endpoint| ancestor_of(endpoint).is_some());
        self.addresses.enter(&self.settings.name, endpoints.iter().map(|endpoint| endpoint.address));
        let mut admission = Admission::default();
        let mut backends: Vec<Arc<Backend>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            if backends.iter().any(|backend| backend.address() == endpoint.address) {
                continue;
            }
            let is_same = |known: &&Arc<Backend>| known.address() == endpoint.address && known.host() == endpoint.host;
            if let Some(known) = before.iter().find(is_same) {
                known.rank(endpoint);
                backends.push(Arc::clone(known));
                continue;
            }
            let name = self.addresses.name(&self.settings.name, endpoint.address);
            let metrics = self.metrics.backend(&self.settings.name, &name);
            let events = self.events.clone();
            let ancestor = ancestor_of(endpoint);
            let former_life = self.lives().get(&endpoint.address).and_then(Weak::upgrade);
            let life = match ancestor {
                Some(ancestor) => Some(Arc::clone(ancestor.life())),
                None => former_life.inspect(|life| life.begin_anew()),
            };
            let backend = match life {
                Some(life) => Backend::successor(endpoint, name.clone(), metrics, events, life),
                None => Backend::new(endpoint, name.clone(), metrics, events),
            };
            if has_better && ancestor.is_none() {
                backend.make_newcomer();
            }
            // The life it takes up may have been left drained.
            let duty = self.duties().get(&endpoint.address).copied().unwrap_or(Duty::Enabled);
            if backend.duty() != duty {
                backend.set_duty(duty);
            }
            admission.added.push(name);
            backends.push(Arc::new(backend));
        }
        let is_gone = |known: &&Arc<Backend>| !backends.iter().any(|backend| backend.address() == known.address());
        for gone in before.iter().filter(is_gone) {
            self.metrics.forget_backend(&self.settings.name, gone.name());
            admission.removed.push(gone.name().to_owned());
        }
        let mut lives = self.lives();
        lives.retain(|_, life| life.strong_count() > 0);
        lives.extend(backends.iter().map(|backend| (backend.address(), Arc::downgrade(backend.life()))));
        drop(lives);
        self.set_backends(backends);
        admission
    }

    /// Replaces the set of backends. Sessions on a backend that is gone keep it until they end.
    pub fn set_backends(&self, backends: Vec<Arc<Backend>>) {
        for backend in &backends {
            backend.hang(&self.bells);
        }
        self.pool_metrics.backends(backends.len());
        let backends = Arc::new(backends);
        let before = self.backends.send_replace(Arc::clone(&backends));
        let is_gone = |known: &&Arc<Backend>| !backends.iter().any(|backend| Arc::ptr_eq(backend, known));
        before.iter().filter(is_gone).for_each(|gone| gone.stock.close());
        self.bells.seats.notify_one();
        self.bells.stock.notify_one();
    }

    /// Closes the warm upstreams, for good: the pool's sessions may go on, but nobody looks after them any more.
    pub fn retire(&self) {
        self.backends().iter().for_each(|backend| backend.stock.close());
    }

    /// Takes over from `before`, the same pool under older settings, what operators asked and what is known of the backends.
    /// Those that sessions have there are theirs here. What was asked of a backend that the settings no longer name is forgotten:
    /// whatever comes to its address is another one.
    pub fn succeed(&self, before: &Self, endpoints: &[Endpoint]) -> Admission {
        let mut duties = before.duties().clone();
        duties.retain(|address, _| {
            endpoints.iter().any(|endpoint| endpoint.address == *address)
                || self.may_be_named_again(*address, before.backend_at(*address).as_deref())
        });
        *self.duties() = duties;
        let lives = before.lives().clone();
        *self.lives() = lives;
        let admission = self.admit_heirs(endpoints, &before.backends());
        // Who waits there may find a seat, if there are more of them now.
        before.bells.seats.notify_one();
        let known = before.backends();
        if self.backends().iter().any(|backend| known.iter().any(|other| other.is(backend))) {
            self.inherit_names(before);
        }
        admission
    }

    /// Whether DNS may name this address again, though it doesn't now. `known` is who was there until now; who was there before DNS
    /// lost it is forgotten.
    fn may_be_named_again(&self, address: SocketAddr, known: Option<&Backend>) -> bool {
        self.settings.backends.iter().any(|source| match (&source.address, known) {
            (BackendAddress::Socket(_), _) => false,
            (_, None) => true,
            (BackendAddress::Host { name, port }, Some(known)) => known.host() == name && *port == address.port(),
            // One that the settings give by its address is called by that.
            (BackendAddress::Service(_), Some(known)) => known.host() != address.ip().to_string(),
        })
    }

    /// How many sessions of each other backend a backend that has returned should take over: by weight where they are
    /// equals, all where it is the better one, none where it is worse.
    pub fn excess(&self, returned: &Arc<Backend>) -> Vec<(Arc<Backend>, usize)> {
        let backends = self.backends();
        let rank = |backend: &Backend| (backend.standing(), backend.tier());
        let equals = || backends.iter().filter(|backend| rank(backend) == rank(returned) && backend.is_usable());
        let weights: u64 = equals().map(|backend| u64::from(backend.weight())).sum();
        let sessions: u64 = equals().map(|backend| backend.sessions() as u64).sum();
        let excess = |other: &Backend| match rank(other).cmp(&rank(returned)) {
            Ordering::Less => 0,
            Ordering::Equal => {
                let share = (sessions * u64::from(other.weight())).div_ceil(weights.max(1));
                other.sessions().saturating_sub(usize::try_from(share).unwrap_or(usize::MAX))
            }
            Ordering::Greater => other.sessions(),
        };
        backends
            .iter()
            .filter(|other| !Arc::ptr_eq(other, returned))
            .map(|other| (Arc::clone(other), excess(other)))
            .filter(|(_, excess)| *excess > 0)
            .collect()
    }

    /// Gives the backend of this name no new session; those it has go on. Whether there is one.
    pub fn drain(&self, name: &str) -> bool {
        self.assign(name, Duty::Draining)
    }

    /// Takes the backend of this name back into service. Whether there is one.
    pub fn enable(&self, name: &str) -> bool {
        self.assign(name, Duty::Enabled)
    }

    /// Takes the backend at this address back into service, now or once DNS names it again. Whether there is one, or something that
    /// was asked of it.
    pub fn enable_at(&self, address: SocketAddr) -> bool {
        match self.backend_at(address) {
            Some(backend) => self.enable(backend.name()),
            None => self.duties().remove(&address).is_some(),
        }
    }

    fn assign(&self, name: &str, duty: Duty) -> bool {
        let Some(backend) = self.backend(name) else { return false };
        backend.set_duty(duty);
        match duty {
            Duty::Enabled => self.duties().remove(&backend.address()),
            Duty::Draining | Duty::Disabled => self.duties().insert(backend.address(), duty),
        };
        true
    }

    fn duties(&self) -> MutexGuard<'_, HashMap<SocketAddr, Duty>> {
        self.duties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<SocketAddr, Weak<Life>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
